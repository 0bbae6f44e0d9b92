"""Attention under a divided length equals attention of the whole arrays: values and gradients."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.context_attention.cases import divided, mesh_of, rows, value_and_gradients, whole
from zoo.kernels.context_attention import choose_exchange, context_attention
from zoo.parallel import ShardingRules, activation_sharding


def check(length, mesh, sliding_window, *, exchange="auto", cap=30.0, implementation="xla", rtol=1e-5, **arrays):
    """Against the dense reference; gradients to `rtol` of 1, or of the largest of their kind."""
    qkv, positions, segments = rows(length, **arrays)
    options = dict(scale=0.3, sliding_window=sliding_window, logits_soft_cap=cap)
    expected = value_and_gradients(lambda qkv: whole(qkv, positions, segments, **options), qkv)
    result = divided(qkv, positions, segments, mesh, exchange=exchange, implementation=implementation, **options)
    for got, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        chex.assert_trees_all_close(got, wanted, atol=rtol * max(1, np.abs(wanted).max()), rtol=0)


@pytest.mark.parametrize(
    ("length", "context", "window", "options"),
    [
        (64, 4, 10, {}),
        (64, 8, 17, {"cap": None}),
        (24, 8, 100, {"packed": False}),
        pytest.param(64, 4, 40, {"batch": 3}, marks=pytest.mark.slow),
        pytest.param(64, 8, 16, {"kv_heads": 1}, marks=pytest.mark.slow),
        pytest.param(64, 8, 18, {}, marks=pytest.mark.slow),
        pytest.param(64, 2, 1, {}, marks=pytest.mark.slow),
        pytest.param(640, 2, 200, {"cap": None}, marks=pytest.mark.slow),
    ],
    ids=[
        "a part of a neighbour",
        "two neighbours entirely",
        "more than the sequence",
        "three neighbours",
        "one key less than two neighbours",
        "one key more than two neighbours",
        "nothing but itself",
        "in blocks",
    ],
)
def test_a_local_layer_sees_its_window_across_devices(length, context, window, options):
    check(length, mesh_of(context), window, **options)


@pytest.mark.parametrize("exchange", ["ring", "gather"])
@pytest.mark.parametrize(
    ("length", "context", "options"),
    [
        # 9 tokens per device do not spread evenly over 8.
        (72, 8, {"cap": None, "packed": False}),
        pytest.param(64, 4, {}, marks=pytest.mark.slow),
        pytest.param(36, 2, {"kv_heads": 1, "batch": 3}, marks=pytest.mark.slow),
        pytest.param(2048, 2, {"batch": 1}, marks=pytest.mark.slow),
    ],
    ids=["eight devices, uneven", "packed", "two devices", "in chunks"],
)
def test_a_global_layer_sees_all_devices(exchange, length, context, options):
    check(length, mesh_of(context), None, exchange=exchange, **options)


@pytest.mark.parametrize(
    ("window", "exchange", "kv_heads"),
    [
        (20, "auto", 1),
        (None, "ring", 2),
        pytest.param(None, "gather", 2, marks=pytest.mark.slow),
        pytest.param(None, "ring", 1, marks=pytest.mark.slow),
    ],
)
def test_heads_are_divided_at_the_same_time(window, exchange, kv_heads):
    check(64, mesh_of(4, tensor=2), window, exchange=exchange, kv_heads=kv_heads)


@pytest.mark.parametrize(("window", "exchange"), [(20, "auto"), (None, "ring"), (None, "gather")])
def test_float64_equals_the_reference_to_the_last_digits(window, exchange):
    with jax.enable_x64(True):
        check(32, mesh_of(4), window, exchange=exchange, dtype=jnp.float64, batch=1, rtol=1e-12)


@pytest.mark.parametrize("cap", [30.0, None])
@pytest.mark.parametrize("implementation", ["reference", "xla", "pallas_tpu", "pallas_gpu"])
@pytest.mark.slow
def test_every_implementation_has_all_exchanges(implementation, cap):
    for window, exchange in ((20, "auto"), (None, "ring"), (None, "gather")):
        check(64, mesh_of(4), window, exchange=exchange, implementation=implementation, cap=cap)


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
def test_a_ring_of_kernels_equals_the_reference(implementation):
    check(32, mesh_of(2), None, exchange="ring", implementation=implementation, batch=1)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "exchange"), [(20, "auto"), (None, "ring"), (None, "gather")])
def test_bfloat16_is_nearly_as_exact_as_on_one_device(window, exchange):
    qkv, positions, segments = rows(64, dtype=jnp.bfloat16)
    options = dict(scale=0.3, sliding_window=window, logits_soft_cap=30.0)

    def of_whole(implementation):
        return lambda qkv: whole(qkv, positions, segments, implementation=implementation, **options)

    exact = value_and_gradients(of_whole("reference"), tuple(x.astype(jnp.float32) for x in qkv))
    on_one = value_and_gradients(of_whole("xla"), qkv)
    on_four = divided(qkv, positions, segments, mesh_of(4), exchange=exchange, implementation="xla", **options)

    def error(result):
        return [
            np.sqrt(np.mean((one.astype(np.float32) - other) ** 2))
            for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(exact), strict=True)
        ]

    assert np.all(np.array(error(on_four)) <= 1.25 * np.array(error(on_one))), (error(on_four), error(on_one))


def test_a_small_layer_gathers_and_a_large_one_goes_around():
    assert choose_exchange(16 * 2**20) == "gather"
    assert choose_exchange(16 * 2**20 + 1) == "ring"
    assert choose_exchange(2**40, has_parts=False) == "gather"


def test_what_cannot_be_exchanged_raises():
    qkv, positions, segments = rows(32)
    options = dict(scale=0.3, sliding_window=None, logits_soft_cap=None)
    with pytest.raises(NotImplementedError, match='splash.*context_exchange="gather"'):
        divided(qkv, positions, segments, mesh_of(4), exchange="ring", implementation="splash", **options)
    # The gradients of 131,072 queries of a device, 128 MiB per head, do not fit into vector memory.
    long = jax.ShapeDtypeStruct((1, 2**18, 1, 256), jnp.float32)
    places = jnp.zeros((1, 2**18), jnp.int32)
    with pytest.raises(NotImplementedError, match='131072 tokens.*context_exchange="gather"'):
        with activation_sharding(mesh_of(2), ShardingRules(context_exchange="ring")):
            attend = partial(context_attention, positions=places, segment_ids=None, **options)
            jax.eval_shape(partial(attend, implementation="pallas_tpu"), long, long, long)
    odd = rows(34)
    with pytest.raises(ValueError, match="'length' of size 34 is not divisible by 4"):
        divided(*odd, mesh_of(4), **options)


def test_one_device_needs_no_exchange():
    """Of a mesh whose context has one device, the ordinary path is traced."""
    from flax import nnx

    from zoo.models.gemma2 import Gemma2, Gemma2Config

    config = Gemma2Config(
        vocab_size=16, embed_dim=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, hidden_dim=8,
        query_pre_attn_scalar=4, sliding_window=4,
    )  # fmt: skip
    model = Gemma2(config, rngs=nnx.Rngs(0))
    tokens = jnp.ones((2, 8), jnp.int32)
    alone = str(jax.make_jaxpr(lambda tokens: model(tokens))(tokens))
    with activation_sharding(mesh_of(1), ShardingRules()):
        assert str(jax.make_jaxpr(lambda tokens: model(tokens))(tokens)) == alone
    with activation_sharding(mesh_of(1, fsdp=2), ShardingRules()):
        program = str(jax.make_jaxpr(lambda tokens: model(tokens))(tokens))
    assert "ppermute" not in program and "all_to_all" not in program
