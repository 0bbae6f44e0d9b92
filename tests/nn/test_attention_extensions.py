"""Attention with sinks, biases and norms of queries and keys; YaRN; norms around one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.marks import slow
from zoo.errors import UserError
from zoo.kernels import dot_product_attention
from zoo.kernels.decode_attention import decode_attention
from zoo.nn import Attention, Execution, RMSNorm, empty_cache, rope_angles
from zoo.nn.rope import YarnScaling
from zoo.nn.stacking import gathered
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, init_sharded, make_mesh, spmd, state_axes

BATCH, LENGTH, HEADS, KV_HEADS, WIDTH = 2, 24, 4, 2, 16


def arrays(length=LENGTH):
    keys = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(keys[0], (BATCH, length, HEADS, WIDTH))
    key, value = jax.random.normal(keys[1], (2, BATCH, length, KV_HEADS, WIDTH))
    return query, key, value, 2 * jax.random.normal(keys[2], (HEADS,))


def with_sink_column(query, key, value, sinks, *, window=None, segments=None):
    """The definition: one more column of scores, left out after the softmax."""
    key, value = (jnp.repeat(x, HEADS // KV_HEADS, axis=2) for x in (key, value))
    scores = WIDTH**-0.5 * jnp.einsum("btnh,bsnh->bnts", query, key, precision="highest")
    place = jnp.arange(query.shape[1])
    seen = place[:, None] >= place
    if window is not None:
        seen &= place[:, None] - place < window
    seen = jnp.broadcast_to(seen, (BATCH, 1, *seen.shape))
    if segments is not None:
        seen &= (segments[:, :, None] == segments[:, None])[:, None]
    column = jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:3], 1))
    weights = jax.nn.softmax(jnp.concatenate([jnp.where(seen, scores, -jnp.inf), column], axis=-1), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights[..., :-1], value, precision="highest")


@pytest.mark.parametrize(
    ("implementation", "window"),
    [
        ("xla", None),
        ("xla", 5),
        ("reference", 5),
        *slow(("reference", None), ("pallas_tpu", 5), ("pallas_tpu", None), ("pallas_gpu", 5), ("pallas_gpu", None)),
    ],
)
def test_sinks_join_the_denominator_forward_and_backward(implementation, window):
    segments = jnp.where(jnp.arange(LENGTH) < 10, 1, 2)[None].repeat(BATCH, 0)
    positions = jnp.arange(LENGTH)[None].repeat(BATCH, 0)

    def ours(query, key, value, sinks):
        return dot_product_attention(
            query,
            key,
            value,
            scale=WIDTH**-0.5,
            sliding_window=window,
            query_positions=positions,
            key_positions=positions,
            query_segment_ids=segments,
            key_segment_ids=segments,
            ordered_positions=True,
            sinks=sinks,
            implementation=implementation,
        )

    def expected(*inputs):
        return with_sink_column(*inputs, window=window, segments=segments)

    weight = jax.random.normal(jax.random.key(9), (BATCH, LENGTH, HEADS, WIDTH))

    def value_and_gradients(function):
        def loss(inputs):
            out = function(*inputs)
            return (out * weight).sum(), out

        return jax.jit(jax.grad(loss, has_aux=True))(arrays())

    for one, other in zip(
        jax.tree.leaves(value_and_gradients(ours)), jax.tree.leaves(value_and_gradients(expected)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_sink_that_weighs_nothing_changes_nothing():
    query, key, value, sinks = arrays()
    plain = dot_product_attention(query, key, value, scale=0.25)
    np.testing.assert_allclose(
        dot_product_attention(query, key, value, scale=0.25, sinks=jnp.full_like(sinks, -1e4)), plain, atol=1e-6
    )


@pytest.mark.parametrize("implementation", ["splash", "cudnn", "mosaic_gpu"])
def test_an_implementation_without_the_sum_of_weights_refuses_sinks(implementation):
    query, key, value, sinks = arrays()
    with pytest.raises(NotImplementedError, match=f"{implementation}.*attention sinks"):
        dot_product_attention(query, key, value, scale=0.25, sinks=sinks, implementation=implementation)


@pytest.mark.parametrize("implementation", ["xla", *slow("reference", "pallas_tpu", "pallas_gpu")])
def test_a_decode_step_has_the_sinks_of_the_full_pass(implementation):
    query, key, value, sinks = arrays()
    held = (
        key[:, :-1].transpose(0, 2, 3, 1),
        value[:, :-1].swapaxes(1, 2),
        jnp.arange(LENGTH - 1)[None].repeat(BATCH, 0),
    )
    last = jnp.full((BATCH, 1), LENGTH - 1)
    out = decode_attention(
        query[:, -1],
        held,
        (key[:, -1], value[:, -1], last),
        last,
        scale=WIDTH**-0.5,
        sliding_window=None,
        logits_soft_cap=None,
        sinks=sinks,
        implementation=implementation,
    )
    np.testing.assert_allclose(out, with_sink_column(query, key, value, sinks)[:, -1], atol=2e-5)


def make_attention(window=None, implementation=None):
    """With everything, and numbers in what starts at zero."""
    module = Attention(
        32,
        HEADS,
        KV_HEADS,
        WIDTH,
        scale=WIDTH**-0.5,
        sliding_window=window,
        logits_soft_cap=None,
        bias=True,
        qk_norm_eps=1e-6,
        sinks=True,
        execution=Execution(attention_implementation=implementation),
        rngs=nnx.Rngs(0),
    )
    for i, (path, leaf) in enumerate(nnx.to_flat_state(nnx.state(module))):
        if path[-1] in ("scale", "sinks") or path[-1].endswith("bias"):
            value = leaf.get_value()
            leaf.set_value(value + jax.random.normal(jax.random.key(i), value.shape, value.dtype))
    return module


def inputs(length=LENGTH):
    x = jax.random.normal(jax.random.key(5), (BATCH, length, 32))
    positions = jnp.arange(length)[None].repeat(BATCH, 0)
    return x, positions


def test_biases_and_norms_come_before_the_rotation():
    module, (x, positions) = make_attention(), inputs()
    angles = rope_angles(positions, WIDTH, 10_000.0)

    def project(weight, bias):
        return jnp.einsum("btd,dnh->btnh", x, weight[...], precision="highest") + bias[...]

    def normed(y, norm):
        return y / jnp.sqrt(jnp.mean(y**2, -1, keepdims=True) + 1e-6) * norm.scale[...]

    def rotated(y):
        half = jnp.split(y, 2, axis=-1)
        sin, cos = angles[0][..., WIDTH // 2 :], angles[1][..., : WIDTH // 2]
        return jnp.concatenate([half[0] * cos - half[1] * sin, half[1] * cos + half[0] * sin], axis=-1)

    @jax.jit
    def both():
        query = rotated(normed(project(module.query, module.query_bias), module.query_norm))
        key = rotated(normed(project(module.key, module.key_bias), module.key_norm))
        mixed = with_sink_column(query, key, project(module.value, module.value_bias), module.sinks[...])
        output = jnp.einsum("btnh,nhd->btd", mixed, module.output[...], precision="highest")
        return module(x, angles, positions, None)[0], output + module.output_bias[...]

    out, expected = both()
    np.testing.assert_allclose(out, expected, atol=5e-5)


@pytest.mark.parametrize(("window", "implementation"), [(5, None), *slow((None, None), (5, "reference"))])
def test_cached_steps_are_the_full_pass(window, implementation):
    graphdef, state = nnx.split(make_attention(window, implementation))
    module = jax.jit(lambda *arguments: nnx.merge(graphdef, state)(*arguments))
    x, positions = inputs(12)
    angles = rope_angles(positions, WIDTH, 10_000.0)
    full, _ = module(x, angles, positions, None)
    cache, outs = empty_cache(BATCH, window or 12, KV_HEADS, WIDTH, jnp.float32), []
    for start, stop in ((0, 7), (7, 8), (8, 11), (11, 12)):
        part = slice(start, stop)
        own = tuple(a[:, part] for a in angles)
        out, cache = module(x[:, part], own, positions[:, part], None, cache)
        outs.append(out)
    np.testing.assert_allclose(jnp.concatenate(outs, axis=1), full, atol=2e-5)


@pytest.mark.parametrize(
    ("window", "mesh", "rules"),
    [
        (None, MeshConfig(context=2, tensor=2), ShardingRules(context_exchange="gather")),
        *slow(
            (5, MeshConfig(context=2, tensor=2), ShardingRules()),
            (None, MeshConfig(tensor=4), ShardingRules(kv_heads=None)),
        ),
    ],
)
def test_on_a_mesh_values_and_gradients_are_those_of_one_device(window, mesh, rules):
    x, positions = inputs()
    angles = rope_angles(positions, WIDTH, 10_000.0)

    def value_and_gradient(graphdef, state):
        def run(state, x, angles, positions):
            return nnx.merge(graphdef, gathered(state, Execution()))(x, angles, positions, None)[0]

        tokens = ("batch", "length", None, None)
        axes = (state_axes(state), ("batch", "residual_length", None), (tokens, tokens), ("batch", None))
        sizes = {"batch": BATCH, "length": LENGTH, "residual_length": LENGTH}

        def loss(state):
            out = spmd(run, axes, ("batch", "residual_length", None), sizes)(state, x, angles, positions)
            return jnp.sin(out).sum(), out

        return jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(state))

    expected = value_and_gradient(*nnx.split(make_attention(window)))
    devices = make_mesh(mesh)
    with activation_sharding(devices, rules):
        found = value_and_gradient(*init_sharded(lambda: make_attention(window), devices, rules))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_a_norm_around_one_multiplies_with_its_scale_and_starts_at_one():
    norm = RMSNorm(8, eps=1e-6, zero_centred=False, execution=Execution(), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 8))
    rms = jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norm(x), x / rms, rtol=1e-5)
    norm.scale.set_value(jnp.full(8, 3.0))
    np.testing.assert_allclose(norm(x), 3 * x / rms, rtol=1e-5)


def test_yarn_keeps_high_frequencies_and_divides_low_ones():
    head_dim, theta = 64, 150_000.0
    scaling = YarnScaling(32.0, 4096, truncate=False)
    powers = (theta ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    ratio = scaling.frequencies(powers, head_dim, theta) * powers
    # Turns of each frequency within the original context: more than 32 stay, fewer than 1 are divided by 32.
    turns = 4096 / (2 * np.pi * powers)
    np.testing.assert_allclose(ratio[turns > 32], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[turns < 1], 1 / 32, rtol=1e-5)
    between = ratio[(turns <= 32) & (turns >= 1)]
    assert len(between) > 5
    assert (np.diff(between) < 0).all()
    sin, cos = rope_angles(jnp.zeros((1, 1), jnp.int32), head_dim, theta, scaling)
    np.testing.assert_allclose(cos, 0.1 * np.log(32) + 1, rtol=1e-6)
    assert not sin.any()


def test_yarn_with_whole_indices_and_its_own_factor():
    powers = (1e4 ** (np.arange(0, 64, 2) / 64)).astype(np.float32)
    rough, smooth = (YarnScaling(3.0, 512, truncate=t).frequencies(powers, 64, 1e4) for t in (True, False))
    assert (rough != smooth).any()
    assert YarnScaling(3.0, 512, attention_factor=1.25).magnitude == 1.25
    with pytest.raises(UserError, match=r"rope_scaling\.factor"):
        YarnScaling(0.0, 512)
