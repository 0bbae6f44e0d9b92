import jax.numpy as jnp
import numpy as np
import pytest

from zoo.errors import UserError
from zoo.kernels.attention.quantised import quantise
from zoo.kernels.attention.visibility import EMPTY_POSITION
from zoo.nn.cache import empty_cache


def write(cache, start, count):
    """Tokens start..start+count-1; the key of a token is its number."""
    positions = jnp.arange(start, start + count, dtype=jnp.int32)[None]
    key = positions[..., None, None].astype(jnp.float32)
    return cache.write(key, 2 * key, positions)


def held(cache):
    return [None if p == EMPTY_POSITION else int(p) for p in np.asarray(cache.positions)[0]]


def test_a_ring_of_four_keeps_the_last_four_tokens_each_at_its_index_modulo_four():
    cache = write(empty_cache(1, 4, 1, 1, jnp.float32), 0, 3)
    assert held(cache) == [0, 1, 2, None]
    cache = write(cache, 3, 1)
    assert held(cache) == [0, 1, 2, 3]
    cache = write(cache, 4, 1)
    assert held(cache) == [4, 1, 2, 3]
    cache = write(cache, 5, 3)
    assert held(cache) == [4, 5, 6, 7]
    np.testing.assert_array_equal(cache.key[0, 0, 0], [4, 5, 6, 7])
    np.testing.assert_array_equal(cache.value[0, 0, :, 0], [8, 10, 12, 14])
    assert int(cache.cursor) == 8


def test_a_prefill_longer_than_the_ring_leaves_its_tail_in_place():
    cache = write(empty_cache(1, 4, 1, 1, jnp.float32), 0, 10)
    assert held(cache) == [8, 9, 6, 7]
    assert held(write(cache, 10, 6)) == [12, 13, 14, 15]


def test_in_order_puts_the_oldest_slot_first():
    cache = write(write(empty_cache(1, 4, 1, 1, jnp.float32), 0, 3), 3, 2)
    assert held(cache) == [4, 1, 2, 3]
    np.testing.assert_array_equal(cache.in_order()[2], [[1, 2, 3, 4]])


# 8 bits


def test_a_vector_in_8_bits_is_off_by_at_most_half_a_step_of_its_own_scale():
    x = np.random.default_rng(0).standard_normal((3, 5, 2, 16)).astype(np.float32)
    x *= 10.0 ** np.arange(-2, 3)[:, None, None]  # tokens of very different sizes
    x[1, 2] = 0
    codes, scale = map(np.asarray, quantise(jnp.asarray(x)))
    assert codes.dtype == np.int8 and scale.shape == x.shape[:-1]
    np.testing.assert_allclose(scale, np.abs(x).max(-1) / 127, rtol=1e-6)
    assert not codes[1, 2].any() and (np.abs(codes).max(-1)[x.any(-1)] == 127).all()
    error = np.abs(codes.astype(np.float64) * scale[..., None] - x)
    assert (error <= 0.5001 * scale[..., None]).all() and error.max() > 0.4 * scale.max()


def test_a_cache_in_8_bits_holds_the_tokens_that_a_floating_one_holds():
    rng, parts = np.random.default_rng(1), (3, 1, 5, 2)
    exact, coded = (empty_cache(2, 4, 3, 8, dtype) for dtype in (jnp.float32, jnp.int8))
    for number, length in enumerate(parts):
        key, value = rng.standard_normal((2, 2, length, 3, 8)).astype(np.float32) * 4**number
        positions = jnp.arange(length)[None].repeat(2, 0) + sum(parts[:number])
        exact, coded = (cache.write(key, value, positions) for cache in (exact, coded))
    assert (coded.key.dtype, coded.value.dtype, coded.key_scale.dtype) == (jnp.int8, jnp.int8, jnp.float32)
    for ordered in ("by_slot", "in_order"):
        wide, near = getattr(exact, ordered)(), getattr(coded, ordered)()
        np.testing.assert_array_equal(near[2], wide[2])
        for x, y in zip(wide[:2], near[:2], strict=True):
            assert (np.abs(x - y) <= 0.5001 * np.abs(x).max(-1, keepdims=True) / 127).all() and (x != y).any()


def test_a_cache_in_8_bits_takes_a_byte_for_each_number_and_a_float32_for_each_token_and_head():
    cache = empty_cache(2, 40, 3, 16, jnp.int8)
    arrays = cache.key, cache.value, cache.key_scale, cache.value_scale
    assert sum(x.nbytes for x in arrays) == 2 * 40 * 3 * (2 * 16 + 2 * 4)
    assert empty_cache(2, 40, 3, 16, jnp.bfloat16).scales is None


def test_a_cache_of_another_whole_number_is_refused():
    with pytest.raises(UserError, match="floating or int8, got int16"):
        empty_cache(1, 4, 1, 1, jnp.int16)
