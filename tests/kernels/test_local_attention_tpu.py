"""The TPU kernel, interpreted, against the dense reference, at the edges of blocks, windows and segments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.test_util import check_grads

from experiments.attention_kernels.parity import pack
from tests.marks import slow
from zoo.kernels.attention.inputs import AttentionInputs, check_inputs
from zoo.kernels.attention.reference import reference_attention
from zoo.kernels.local_attention.band import Band
from zoo.kernels.local_attention.tpu import local_attention_tpu
from zoo.kernels.local_attention.tpu_backward import vmem_bytes

BLOCK = 16
BASE = dict(queries=61, keys=61, window=20, heads=4, kv_heads=2, head_dim=16, cap=50.0, causal=True, packed=False)
"""An odd length, four blocks, a window of one block and a quarter."""


def make(dtype=jnp.float64, amplitude=1.0, **changes):
    """(arrays, function of arrays -> AttentionInputs)."""
    case = BASE | changes
    batch, queries, keys = 2, case["queries"], case["keys"]
    rng = np.random.default_rng(3)
    shapes = [(batch, queries, case["heads"], case["head_dim"])] + [
        (batch, keys, case["kv_heads"], case["head_dim"])
    ] * 2
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    arrays[0] = arrays[0] * amplitude
    positions, segments = jnp.tile(jnp.arange(keys, dtype=jnp.int32), (batch, 1)), None
    if case["packed"]:
        positions, segments = pack(rng, batch, keys)
    options = dict(
        scale=0.3,
        causal=case["causal"],
        sliding_window=case["window"],
        logits_soft_cap=case["cap"],
        query_positions=positions[:, keys - queries :],
        key_positions=positions,
        query_segment_ids=None if segments is None else segments[:, keys - queries :],
        key_segment_ids=segments,
        ordered_positions=True,
    )
    return arrays, lambda *qkv: check_inputs(*qkv, **options)


def value_and_gradients(attention, arrays, inputs):
    weight = jnp.asarray(np.random.default_rng(9).normal(size=arrays[0].shape), arrays[0].dtype)

    def loss(*qkv):
        out = attention(inputs(*qkv))
        return (out * weight).sum(), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    return out, *gradients


def worst(found, expected) -> float:
    return max(float(jnp.abs(x - y).max() / jnp.maximum(1, jnp.abs(y).max())) for x, y in zip(found, expected))


def compare(interpret=True, dtype=jnp.float64, **changes) -> float:
    """The largest error of outputs and gradients."""
    with jax.enable_x64(dtype == jnp.float64):
        arrays, inputs = make(dtype, **changes)
        kernel = functools.partial(local_attention_tpu, block=BLOCK, interpret=interpret)
        return worst(*(value_and_gradients(attention, arrays, inputs) for attention in (kernel, reference_attention)))


@pytest.mark.parametrize(
    "changes",
    [
        *(dict(window=window) for window in (BLOCK - 1, 1000)),
        *slow(*(dict(window=window) for window in (1, BLOCK, BLOCK + 1, 61))),
        *(dict(window=window, packed=True, cap=cap) for window, cap in ((1, 5.0), (BLOCK, None), (BLOCK + 1, 90.0))),
        dict(heads=2, kv_heads=2, packed=True),
        dict(heads=8, kv_heads=1, cap=None),
        dict(queries=1, keys=1),
        *slow(dict(heads=3, kv_heads=1), dict(queries=7, keys=7)),
        dict(queries=64, keys=64, packed=True),
        dict(queries=33, keys=61, packed=True, cap=None),
        *slow(dict(queries=33, keys=61), dict(causal=False)),
        dict(causal=False, queries=33, keys=61, packed=True, window=BLOCK + 1),
        dict(amplitude=1000.0),
    ],
    ids=lambda changes: "-".join(f"{name}={value}" for name, value in changes.items()),
)
def test_float64_equals_the_reference_to_the_last_digits(changes):
    assert compare(**changes) <= 1e-12


@pytest.mark.parametrize("changes", [dict(packed=True), dict(cap=None, heads=2, queries=33, keys=61)], ids=str)
def test_nothing_reads_memory_before_it_is_written_and_no_two_programs_race(changes):
    interpret = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise")
    assert compare(interpret, jnp.float32, **changes) <= 2e-6


def test_gradients_are_those_of_finite_differences():
    with jax.enable_x64(True):
        arrays, inputs = make(queries=19, keys=19, heads=2, window=7, packed=True)
        attention = jax.jit(lambda *qkv: local_attention_tpu(inputs(*qkv), block=BLOCK, interpret=True))
        check_grads(attention, arrays, 1, modes=["rev"])


def test_the_kernel_works_under_vmap_remat_and_scan():
    arrays, inputs = make(jnp.float32, queries=20, keys=20, heads=1, kv_heads=1)
    attention = functools.partial(local_attention_tpu, block=BLOCK, interpret=True)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def twice(query, key, value):
        def layer(x, _):
            return attention(inputs(x, key, value)), None

        return jax.lax.scan(layer, query, None, length=2)[0].sum()

    stacked = [jnp.stack([x, x / 2]) for x in arrays]
    found = jax.jit(jax.vmap(jax.grad(twice)))(*stacked)

    @jax.jit
    @jax.grad
    def expected(query, key, value):
        return reference_attention(inputs(reference_attention(inputs(query, key, value)), key, value)).sum()

    for index in range(2):
        np.testing.assert_allclose(found[index], expected(*(x[index] for x in stacked)), atol=2e-5)


def test_a_query_that_sees_no_key_gets_zeros_and_finite_gradients():
    arrays, inputs = make(jnp.float32, queries=20, keys=20)

    def far(*qkv) -> AttentionInputs:
        given = inputs(*qkv)
        return AttentionInputs(**{**vars(given), "key_positions": given.key_positions + 5})

    out, *gradients = value_and_gradients(functools.partial(local_attention_tpu, interpret=True), arrays, far)
    assert (out[:, :5] == 0).all() and (out[:, 5:] != 0).any()
    assert all(bool(jnp.isfinite(x).all()) for x in gradients)


@pytest.mark.parametrize(
    ("changes", "feature"),
    [
        (dict(sliding_window=None), "layers without a sliding window"),
        (dict(ordered_positions=False), "positions that are not promised to be in order"),
        (dict(query=jnp.zeros((2, 61, 4, 16), jnp.float16)), "float16"),
    ],
)
def test_what_it_does_not_do_raises_and_names_implementation_and_feature(changes, feature):
    arrays, inputs = make(jnp.float32)
    with pytest.raises(NotImplementedError, match=f"'pallas_tpu' does not support {feature}"):
        local_attention_tpu(AttentionInputs(**{**vars(inputs(*arrays)), **changes}))


def test_a_window_whose_gradients_do_not_fit_raises_and_names_what_would():
    shape = jax.ShapeDtypeStruct((1, 2**18, 1, 256), jnp.bfloat16)
    options = dict(scale=1.0, causal=True, sliding_window=2**17, logits_soft_cap=50.0, ordered_positions=False)
    places = dict.fromkeys(("query_positions", "key_positions", "query_segment_ids", "key_segment_ids"))
    with pytest.raises(
        NotImplementedError, match="'pallas_tpu' does not support a sliding window of 131072 .*'splash'"
    ):
        jax.eval_shape(lambda *qkv: local_attention_tpu(check_inputs(*qkv, **options, **places)), *[shape] * 3)


def test_the_memory_of_the_ring_depends_on_the_window_and_not_on_the_length():
    def ring(length, window):
        return vmem_bytes(Band(length, length, 512, 512, True, window, True), 2, 256, jnp.bfloat16)

    assert ring(8192, 4096) == ring(131_072, 4096) < ring(131_072, 8192)
