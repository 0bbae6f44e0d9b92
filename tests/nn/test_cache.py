import jax.numpy as jnp
import numpy as np

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
