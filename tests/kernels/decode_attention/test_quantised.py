"""Decode attention to keys and values in 8 bits is that to the numbers which their codes and scales stand for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.decode_attention.cases import CASES, float64
from zoo.kernels.attention.quantised import dequantise, quantise
from zoo.kernels.decode_attention import decode_attention, xla
from zoo.kernels.decode_attention.reference import reference_decode_attention


def coded(case, dtype=jnp.float32):
    """(arguments with codes, their scales, the same arguments with the numbers that they stand for)."""
    query, (key, value, positions), own, query_positions = case.arguments(dtype)
    (keys, key_scale), (values, value_scale) = quantise(key.swapaxes(2, 3)), quantise(value)
    keys = keys.swapaxes(2, 3)
    wide = dequantise(keys, key_scale, 2, jnp.float32), dequantise(values, value_scale, 3, jnp.float32), positions
    return (
        (query, (keys, values, positions), own, query_positions),
        (key_scale, value_scale),
        (query, wide, own, query_positions),
    )


def expected(case, wide, soft_cap):
    with jax.enable_x64(True):
        return np.asarray(reference_decode_attention(*float64(wide), **case.options(soft_cap)))


# Blocks of 128 slots: of 300 the last block repeats what the one before it had.
@pytest.mark.parametrize("implementation", ["reference", "xla", None])
@pytest.mark.parametrize(
    ("case", "soft_cap"), [(CASES[0], None), (CASES[0], 50.0), (CASES[2], 100.0), (CASES[4], None)]
)
def test_float32_agrees_with_the_reference_to_4e_6(case, soft_cap, implementation, monkeypatch):
    monkeypatch.setattr(xla, "CONVERTED_BYTES", 1)
    arguments, scales, wide = coded(case)
    call = functools.partial(decode_attention, **case.options(soft_cap), implementation=implementation)
    out = jax.jit(call)(*arguments, held_scales=scales)
    np.testing.assert_allclose(out, expected(case, wide, soft_cap), atol=4e-6, rtol=0)
    assert not np.asarray(out[2:]).any(), "a query that sees nothing gets zeros"


def test_codes_are_exact_in_bfloat16():
    case = CASES[0]
    arguments, scales, wide = coded(case, jnp.bfloat16)
    out = jax.jit(functools.partial(decode_attention, **case.options(None)))(*arguments, held_scales=scales)
    plain = jax.jit(functools.partial(decode_attention, **case.options(None)))(*wide)
    exact = expected(case, wide, None)
    assert out.dtype == jnp.bfloat16
    off, plain_off = (np.abs(np.asarray(found, np.float64) - exact).max() for found in (out, plain))
    assert off <= 1.5 * plain_off


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
def test_kernels_refuse_a_cache_in_8_bits(implementation):
    arguments, scales, _ = coded(CASES[0])
    with pytest.raises(NotImplementedError, match=f"{implementation}' reads no cache in 8 bits"):
        decode_attention(*arguments, **CASES[0].options(None), held_scales=scales, implementation=implementation)
