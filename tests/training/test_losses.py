"""The chunked cross-entropy against dense sums in float64, and what its compiled program holds in memory."""

import re
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh
from zoo.training.losses import LossSums, chunked_cross_entropy, default_chunk_length, next_token_loss

B, T, D, V = 3, 10, 8, 50


@dataclass(frozen=True)
class Problem:
    """Hidden states, embedding, targets and weights; some weights are 0, some are fractions."""

    hidden: jax.Array
    embedding: jax.Array
    targets: jax.Array
    weights: jax.Array

    @classmethod
    def make(cls, seed=0, *, batch_size=B, length=T, width=D, vocab_size=V, dtype=jnp.float32, scale=2.0):
        rng = np.random.default_rng(seed)
        weights = rng.uniform(0.1, 2.0, (batch_size, length)) * (rng.uniform(size=(batch_size, length)) > 0.3)
        return cls(
            hidden=jnp.asarray(scale * rng.standard_normal((batch_size, length, width)), dtype),
            embedding=jnp.asarray(rng.standard_normal((vocab_size, width)), dtype),
            targets=jnp.asarray(rng.integers(0, vocab_size, (batch_size, length)), jnp.int32),
            weights=jnp.asarray(weights, jnp.float32),
        )


def dense(problem: Problem, soft_cap: float | None, z_loss: float):
    """(loss, z_loss, weight), d_hidden and d_embedding of loss + z_loss, written out in float64."""
    h, e, w = (np.asarray(x, np.float64) for x in (problem.hidden, problem.embedding, problem.weights))
    raw = np.einsum("btd,vd->btv", h, e)
    logits = raw if soft_cap is None else soft_cap * np.tanh(raw / soft_cap)
    top = logits.max(-1, keepdims=True)
    lse = top + np.log(np.exp(logits - top).sum(-1, keepdims=True))
    one_hot = np.eye(e.shape[0])[np.asarray(problem.targets)]
    loss = (w * (lse[..., 0] - (logits * one_hot).sum(-1))).sum()
    z = z_loss * (w * lse[..., 0] ** 2).sum()
    d_logits = w[..., None] * (np.exp(logits - lse) * (1 + 2 * z_loss * lse) - one_hot)
    d_raw = d_logits if soft_cap is None else d_logits * (1 - np.tanh(raw / soft_cap) ** 2)
    return (loss, z, w.sum()), np.einsum("btv,vd->btd", d_raw, e), np.einsum("btv,btd->vd", d_raw, h)


def sums_and_gradients(problem: Problem, **options):
    def objective(hidden, embedding):
        sums = chunked_cross_entropy(hidden, embedding, problem.targets, problem.weights, **options)
        return sums.loss + sums.z_loss, sums

    gradients, sums = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))(problem.hidden, problem.embedding)
    return sums, *gradients


@pytest.mark.parametrize("soft_cap", [None, 5.0, 30.0])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("chunk_length", [None, 1, 4, 5, 10, 99])
def test_sums_and_gradients_equal_dense_float64(soft_cap, z_loss, chunk_length):
    problem = Problem.make()
    expected, d_hidden, d_embedding = dense(problem, soft_cap, z_loss)
    sums, hidden_gradient, embedding_gradient = sums_and_gradients(
        problem, soft_cap=soft_cap, z_loss=z_loss, chunk_length=chunk_length
    )
    np.testing.assert_allclose(np.array(jax.tree.leaves(sums)), expected, rtol=2e-6)
    np.testing.assert_allclose(hidden_gradient, d_hidden, atol=2e-5)
    np.testing.assert_allclose(embedding_gradient, d_embedding, atol=1e-4)


def test_the_sums_are_the_same_with_and_without_gradients():
    problem = Problem.make(1)
    options = dict(soft_cap=10.0, z_loss=1e-3, chunk_length=4)
    plain = chunked_cross_entropy(problem.hidden, problem.embedding, problem.targets, problem.weights, **options)
    differentiated, *_ = sums_and_gradients(problem, **options)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(differentiated), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7)


def test_bfloat16_inputs_are_summed_in_float32():
    problem = Problem.make(2, batch_size=4, length=64, width=16, dtype=jnp.bfloat16, scale=1.0)
    expected, d_hidden, d_embedding = dense(problem, 30.0, 1e-3)
    sums, hidden_gradient, embedding_gradient = sums_and_gradients(problem, soft_cap=30.0, z_loss=1e-3, chunk_length=1)
    np.testing.assert_allclose(np.array(jax.tree.leaves(sums)), expected, rtol=1e-5)
    assert hidden_gradient.dtype == embedding_gradient.dtype == jnp.bfloat16
    # One rounding to bfloat16 of the sum of 256 tokens, not 64 roundings of the chunks' sums.
    scale = np.abs(d_embedding).max()
    np.testing.assert_allclose(np.asarray(embedding_gradient, np.float64), d_embedding, atol=2**-8 * scale)
    np.testing.assert_allclose(np.asarray(hidden_gradient, np.float64), d_hidden, atol=2**-6 * np.abs(d_hidden).max())


def test_zero_weights_give_zero_loss_and_zero_gradients():
    problem = Problem.make(3)
    problem = Problem(problem.hidden, problem.embedding, problem.targets, jnp.zeros_like(problem.weights))
    sums, *gradients = sums_and_gradients(problem, soft_cap=30.0, z_loss=1e-2, chunk_length=4)
    assert [float(x) for x in jax.tree.leaves(sums)] == [0.0, 0.0, 0.0]
    assert all(not np.any(gradient) for gradient in gradients)


def test_the_gradient_is_proportional_to_the_cotangent():
    problem = Problem.make(4)

    def objective(hidden, factor):
        sums = chunked_cross_entropy(hidden, problem.embedding, problem.targets, problem.weights, z_loss=1e-2)
        return factor * (sums.loss + sums.z_loss)

    once, thrice = (jax.grad(objective)(problem.hidden, factor) for factor in (1.0, 3.0))
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-6)


def test_large_logits_do_not_overflow():
    problem = Problem.make(5, scale=1e3)
    sums, *gradients = sums_and_gradients(problem, soft_cap=None, chunk_length=4)
    expected, *_ = dense(problem, None, 0.0)
    np.testing.assert_allclose(sums.loss, expected[0], rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def compiled_gradient(batch_size: int, length: int, width: int, vocab_size: int, chunk_length: int | None):
    def objective(hidden, embedding, targets, weights):
        return chunked_cross_entropy(
            hidden, embedding, targets, weights, soft_cap=30.0, z_loss=1e-4, chunk_length=chunk_length
        ).loss

    shapes = [(batch_size, length, width), (vocab_size, width), (batch_size, length), (batch_size, length)]
    dtypes = [jnp.float32, jnp.float32, jnp.int32, jnp.float32]
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes)]
    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1))).lower(*arguments).compile()


@pytest.mark.parametrize("chunk_length", [None, 16])
def test_the_logits_of_all_tokens_never_exist_at_once(chunk_length):
    batch_size, length, width, vocab_size = 2, 64, 8, 262_144
    compiled = compiled_gradient(batch_size, length, width, vocab_size, chunk_length)
    sizes = [
        int(np.prod([int(size) for size in shape.split(",")]))
        for shape in re.findall(r"(?:f32|bf16|pred|s32)\[([\d,]+)\]", compiled.as_text())
    ]
    one_chunk = batch_size * (chunk_length or length // 2) * vocab_size
    assert one_chunk in sizes  # the pattern does find the logits of a chunk
    assert max(sizes) == one_chunk
    assert compiled.memory_analysis().temp_size_in_bytes < 2.1 * 4 * one_chunk  # the logits and their gradient


def test_the_logits_are_computed_once():
    batch_size, length, width, vocab_size = 2, 256, 32, 1024
    flops = [compiled_gradient(batch_size, length, width, vocab_size, length).cost_analysis()["flops"]]
    products = 3 * 2 * batch_size * length * width * vocab_size
    assert products <= flops[0] < 1.33 * products


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 1024, 8192), 256),  # 16 MB
        ((8, 64, 512), 64),  # small: one chunk
        ((1, 8192, 256_000), 256),
        ((4, 64, 262_144), 32),  # short rows of a large vocabulary: half of a row
        ((1, 1, 262_144), 1),
    ],
)
def test_the_default_chunk(shape, expected):
    assert default_chunk_length(*shape) == expected


@pytest.mark.parametrize("options", [{"chunk_length": 0}, {"soft_cap": 0.0}, {"soft_cap": -1.0}])
def test_senseless_options_raise(options):
    problem = Problem.make()
    with pytest.raises(ValueError, match=next(iter(options))):
        chunked_cross_entropy(problem.hidden, problem.embedding, problem.targets, problem.weights, **options)


def test_next_token_loss_reads_hidden_states_embedding_and_cap_of_the_model():
    problem = Problem.make(6)
    seen = {}

    def hidden_states(tokens, **inputs):
        seen.update(inputs)
        return problem.hidden[: tokens.shape[0]]

    model = SimpleNamespace(
        hidden_states=hidden_states,
        output_embedding=lambda: problem.embedding,
        config=SimpleNamespace(final_logit_soft_cap=5.0),
    )
    batch = SimpleNamespace(
        tokens=problem.targets,
        targets=problem.targets,
        loss_weights=problem.weights,
        positions="positions",
        segment_ids="segments",
        media=None,
    )
    sums = next_token_loss(model, batch, z_loss=1e-2, chunk_tokens=2 * B)
    assert isinstance(sums, LossSums)
    np.testing.assert_allclose(np.array(jax.tree.leaves(sums)), dense(problem, 5.0, 1e-2)[0], rtol=2e-6)
    assert seen == {"positions": "positions", "segment_ids": "segments", "media": None}


# ---- several devices

MESH_SHAPE = {"data": 2, "fsdp": 2, "tensor": 2}


def sharded_problem(mesh: jax.sharding.Mesh, problem: Problem) -> Problem:
    rows, table = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((("data", "fsdp"),), ("tensor", "fsdp")))
    return Problem(
        jax.device_put(problem.hidden, rows),
        jax.device_put(problem.embedding, table),
        jax.device_put(problem.targets, rows),
        jax.device_put(problem.weights, rows),
    )


def model_loss(hidden, embedding, targets, weights):
    """`next_token_loss` of a model that has nothing but these hidden states."""
    model = SimpleNamespace(
        hidden_states=lambda tokens, **inputs: hidden,
        output_embedding=lambda: embedding,
        config=SimpleNamespace(final_logit_soft_cap=30.0),
    )
    batch = SimpleNamespace(
        tokens=targets, targets=targets, loss_weights=weights, positions=None, segment_ids=None, media=None
    )
    sums = next_token_loss(model, batch, z_loss=1e-3, chunk_tokens=4 * hidden.shape[0])
    return sums.loss, sums


def test_sharded_arrays_give_the_same_sums_and_gradients_without_exchanging_the_gradient_in_the_loop():
    problem = Problem.make(7, batch_size=8, length=16, vocab_size=48)
    gradient = jax.grad(model_loss, argnums=(0, 1), has_aux=True)
    arguments = (problem.hidden, problem.embedding, problem.targets, problem.weights)
    expected = gradient(*arguments)

    mesh = make_mesh(MeshConfig(**MESH_SHAPE))
    sharded = sharded_problem(mesh, problem)
    arguments = (sharded.hidden, sharded.embedding, sharded.targets, sharded.weights)
    with activation_sharding(mesh, ShardingRules()):
        compiled = jax.jit(gradient).lower(*arguments).compile()
    for a, b in zip(jax.tree.leaves(compiled(*arguments)), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

    # Of the [48, D] gradient a device sums half of the words; it gets half of their width of the sum, after the loop.
    loop, entry = compiled.as_text().split("ENTRY")
    assert re.search(r"f32\[[\d,]+\]\S* reduce-scatter\(", entry)
    assert not re.search(rf"\[{48 // 2},{D}\].* (all-reduce|reduce-scatter)\(", loop)
