"""Every implementation computes the reference's function."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.decode_attention.cases import CASES, DecodeCase, float64
from tests.marks import all_but
from zoo.kernels.attention.visibility import EMPTY_POSITION
from zoo.kernels.decode_attention import decode_attention, dispatch
from zoo.kernels.decode_attention.gpu import gpu_decode_attention
from zoo.kernels.decode_attention.inputs import visible_blocks
from zoo.kernels.decode_attention.reference import reference_decode_attention
from zoo.kernels.decode_attention.tpu import tpu_decode_attention
from zoo.kernels.decode_attention.xla import xla_decode_attention

# Small blocks, so that a row has several and the last one is not full.
IMPLEMENTATIONS = {
    "xla": xla_decode_attention,
    "pallas_tpu": functools.partial(tpu_decode_attention, block=128, interpret=True),
    "pallas_gpu": functools.partial(gpu_decode_attention, block=32, splits=3, interpret=True),
}
CAPS = [None, 50.0, 100.0]
GRID = [(case, cap) for index, case in enumerate(CASES) for cap in (CAPS if index < 2 else [CAPS[index % 3]])]
ONCE = [(case, CAPS[index % 3]) for index, case in enumerate(CASES)]
"""Every case with one of the caps in turn."""


def error(implementation: str, case: DecodeCase, soft_cap, dtype, cache_dtype=None) -> float:
    """Largest difference from the reference in float64; rows that see nothing must be zeros."""
    options = case.options(soft_cap)
    arguments = case.arguments(dtype, cache_dtype)
    with jax.enable_x64(True):
        expected = np.asarray(reference_decode_attention(*float64(arguments), **options))
        out = jax.jit(functools.partial(IMPLEMENTATIONS[implementation], **options))(*arguments)
    assert out.dtype == dtype
    assert not np.asarray(out[2:], np.float64).any(), "a query that sees nothing gets zeros"
    assert expected[:2].any()
    return float(np.abs(np.asarray(out, np.float64) - expected).max())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("case", "soft_cap"), all_but(ONCE, GRID), ids=str)
def test_float64_agrees_with_the_reference_to_1e_12(case, soft_cap, implementation):
    with jax.enable_x64(True):
        assert error(implementation, case, soft_cap, jnp.dtype("float64")) <= 1e-12


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("case", "soft_cap"), all_but(ONCE[:2], GRID[::2]), ids=str)
def test_float32_agrees_with_the_reference_to_2e_6(case, soft_cap, implementation):
    assert error(implementation, case, soft_cap, jnp.dtype("float32")) <= 2e-6


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
@pytest.mark.parametrize(
    ("cache_dtype", "case", "soft_cap"),
    all_but(
        [("bfloat16", CASES[0], 50.0), ("float32", CASES[1], None)],
        [(dtype, *cell) for dtype in ("bfloat16", "float32") for cell in GRID[1:6:2]],
    ),
    ids=str,
)
def test_bfloat16_is_no_worse_than_twice_xla(cache_dtype, case, soft_cap, implementation):
    arguments = case, soft_cap, jnp.dtype("bfloat16"), jnp.dtype(cache_dtype)
    of_xla = error("xla", *arguments)
    assert of_xla < 2e-2 and error(implementation, *arguments) <= 2 * of_xla


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_cache_of_lower_precision_is_read_in_the_dtype_of_the_query(implementation):
    case = CASES[0]
    arguments, options = case.arguments(jnp.float32, jnp.bfloat16), case.options(50.0)
    out = jax.jit(functools.partial(IMPLEMENTATIONS[implementation], **options))(*arguments)
    np.testing.assert_allclose(out, reference_decode_attention(*arguments, **options), atol=2e-6, rtol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("soft_cap", [None, 50.0])
def test_the_largest_and_the_smallest_scores_neither_overflow_nor_vanish(soft_cap, implementation):
    case = CASES[0]
    options = case.options(soft_cap) | {"scale": 1000.0}
    for sign in (1, -1):
        # All scores of the half-filled row are of one sign, and with a soft-cap they are saturated.
        query, (key, value, positions), own, query_positions = case.arguments(jnp.float32)
        arguments = (
            jnp.ones_like(query),
            (sign * (jnp.abs(key) + 1), value, positions),
            (sign * (jnp.abs(own[0]) + 1), *own[1:]),
            query_positions,
        )
        out = jax.jit(functools.partial(IMPLEMENTATIONS[implementation], **options))(*arguments)
        expected = reference_decode_attention(*arguments, **options)
        np.testing.assert_allclose(out, expected, atol=5e-6, rtol=0)
        assert np.asarray(out[:2]).any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_query_position_may_serve_all_rows(implementation):
    case = DecodeCase(2, 2, 2, 16, 40, 30)
    query, held, own, query_positions = case.arguments(jnp.float32)
    one = query_positions[:1]
    call = jax.jit(functools.partial(IMPLEMENTATIONS[implementation], **case.options(None)))
    both = call(query, held, own, jnp.broadcast_to(one, (2, 1)))
    np.testing.assert_array_equal(call(query, held, own, one), both)


@pytest.mark.parametrize(
    ("splits", "group"),
    all_but([(1, 2), (5, 8), (16, 2)], [(splits, group) for splits in (1, 2, 5, 16) for group in (2, 8)]),
)
def test_the_number_of_splits_on_gpu_changes_no_result(splits, group):
    case = DecodeCase(3, 1, group, 16, 200, None)
    call = functools.partial(gpu_decode_attention, block=16, splits=splits, interpret=True, **case.options(None))
    arguments = case.arguments(jnp.float32)
    expected = reference_decode_attention(*arguments, **case.options(None))
    np.testing.assert_allclose(jax.jit(call)(*arguments), expected, atol=2e-6, rtol=0)


def test_the_visible_blocks_of_a_row_are_those_from_its_first_to_its_last_visible_slot():
    positions = np.full((4, 12), EMPTY_POSITION, np.int32)
    positions[0] = np.arange(12)
    positions[1, 4:7] = np.arange(3)
    positions[2] = [12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11]
    query_positions = np.array([[11], [3], [16], [0]], np.int32)
    first, last = visible_blocks(query_positions, positions, 12, 4)
    assert first.tolist()[:3] == [0, 1, 0] and last.tolist()[:3] == [2, 1, 2]
    assert first[3] > last[3], "a row that sees nothing has no block"
    first, last = visible_blocks(query_positions, positions, 3, 4)
    assert (first.tolist()[0], last.tolist()[0]) == (2, 2), "position 11 sees 9 and 10, besides itself"


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
def test_blocks_that_no_query_sees_are_not_read(implementation):
    """NaN in every block without a visible key does no harm: the kernels never fetch it (XLA would return NaN)."""
    case = DecodeCase(2, 1, 2, 16, 512, 140)
    query, (key, value, positions), own, _ = case.arguments(jnp.float32)
    positions = jnp.broadcast_to(jnp.arange(512, dtype=jnp.int32), (2, 512))
    query_positions = jnp.array([[300], [400]], jnp.int32)
    read = np.zeros((2, 512), bool)
    read[0, 128:384] = read[1, 256:512] = True  # blocks of 128 that hold 161..300 and 261..400
    key = jnp.where(read[:, None, None], key, jnp.nan)
    value = jnp.where(read[:, None, :, None], value, jnp.nan)
    arguments = query, (key, value, positions), (*own[:2], query_positions), query_positions
    out = jax.jit(functools.partial(IMPLEMENTATIONS[implementation], **case.options(None)))(*arguments)
    clean = query, (jnp.nan_to_num(key), jnp.nan_to_num(value), positions), *arguments[2:]
    np.testing.assert_allclose(out, reference_decode_attention(*clean, **case.options(None)), atol=2e-6, rtol=0)


@pytest.mark.parametrize("implementation", ["reference", "xla", "pallas_tpu", "pallas_gpu", None])
def test_implementations_are_chosen_by_name_and_logged_once(implementation, caplog):
    case = CASES[0]
    arguments, options = case.arguments(jnp.float32), case.options(50.0)
    dispatch._load.cache_clear()
    with caplog.at_level(logging.INFO, logger="zoo.kernels"):
        outs = [decode_attention(*arguments, **options, implementation=implementation) for _ in range(2)]
    assert [record.message for record in caplog.records] == [
        f"decode attention implementation: {implementation or 'xla'}"
    ]
    np.testing.assert_allclose(outs[1], reference_decode_attention(*arguments, **options), atol=2e-6, rtol=0)


def test_unknown_implementations_and_missing_features_raise():
    case = CASES[0]
    arguments, options = case.arguments(jnp.float16), case.options(50.0)
    with pytest.raises(ValueError, match=r"unknown decode attention implementation 'cuda'; known: reference, xla"):
        decode_attention(*arguments, **options, implementation="cuda")
    with pytest.raises(NotImplementedError, match="'pallas_tpu' takes bfloat16 and float32, not float16"):
        tpu_decode_attention(*arguments, **options)
    with pytest.raises(NotImplementedError, match=r"'pallas_gpu' takes head sizes 2\*\*n >= 16, not 24"):
        gpu_decode_attention(*DecodeCase(1, 1, 1, 24, 32, None).arguments(jnp.float32), **options)
    with pytest.raises(ValueError, match="block must be a multiple of 128, got 100"):
        tpu_decode_attention(*case.arguments(jnp.float32), **options, block=100)
    with pytest.raises(ValueError, match="block must be a power of two, at least 16, got 24"):
        gpu_decode_attention(*case.arguments(jnp.float32), **options, block=24)
