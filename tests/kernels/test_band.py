"""Block ranges against brute force: they leave out no visible pair and call nothing full that is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.kernels.attention.inputs import check_inputs
from zoo.kernels.attention.visibility import visible
from zoo.kernels.local_attention.band import Band, key_ranges, pad_positions, query_ranges


@functools.partial(jax.jit, static_argnums=0)
def mask_and_ranges(band, query_positions, key_positions, query_segment_ids, key_segment_ids):
    """What is visible, and the ranges of keys and of queries: one program, since most of the time is compilation."""
    query, key = jnp.zeros((1, band.queries, 1, 4)), jnp.zeros((1, band.keys, 1, 4))
    inputs = check_inputs(
        query, key, key, scale=1.0, causal=band.causal, sliding_window=band.sliding_window, logits_soft_cap=None,
        query_positions=query_positions, key_positions=key_positions, query_segment_ids=query_segment_ids,
        key_segment_ids=key_segment_ids, ordered_positions=band.ordered,
    )  # fmt: skip
    padded = pad_positions(inputs, band)
    places = padded.query_positions, padded.key_positions, padded.query_segment_ids, padded.key_segment_ids
    mask = visible(*places, causal=band.causal, sliding_window=band.sliding_window)[0]
    return mask, key_ranges(band, padded), query_ranges(band, padded)


# Few lengths, since each new shape is compiled.
@settings(max_examples=10)
@given(
    queries=st.sampled_from([1, 23, 32]),
    more_keys=st.sampled_from([0, 5]),
    block_q=st.sampled_from([4, 12]),
    block_k=st.just(8),
    window=st.sampled_from([None, 1, 3, 8, 9, 100]),
    causal=st.booleans(),
    ordered=st.booleans(),
    cuts=st.lists(st.integers(1, 59), max_size=3),
    seed=st.integers(0, 3),
)
def test_ranges_hold_every_visible_pair_and_full_blocks_need_no_mask(
    queries, more_keys, block_q, block_k, window, causal, ordered, cuts, seed
):
    keys, rng = queries + more_keys, np.random.default_rng(seed)
    segments = np.searchsorted(sorted(cuts), np.arange(keys), side="right").astype(np.int32)[None]
    # Positions with gaps; in any order unless the order is promised.
    positions = np.cumsum(rng.integers(1, 3, keys)).astype(np.int32)[None]
    if not ordered:
        positions, segments = rng.permutation(positions, axis=1), rng.permutation(segments, axis=1)
    band = Band(queries, keys, block_q, block_k, causal, window, ordered)
    own = slice(more_keys, None)
    mask, of_queries, of_keys = jax.device_get(
        mask_and_ranges(band, positions[:, own], positions, segments[:, own], segments)
    )
    assert not mask[:, keys:].any(), "keys of the padding are never seen"
    tiles = mask.reshape(band.query_blocks, block_q, band.key_blocks, block_k).transpose(0, 2, 1, 3)
    for ranges, seen in ((of_queries, tiles), (of_keys, tiles.swapaxes(0, 1))):
        for own, row in enumerate(seen):
            first, last, first_full, last_full = (
                int(x[0, own]) for x in (ranges.first, ranges.last, ranges.first_full, ranges.last_full)
            )
            some = [other for other, tile in enumerate(row) if tile.any()]
            assert all(first <= other <= last for other in some)
            assert all(row[other].all() for other in range(first_full, last_full + 1))
            assert first <= first_full and last_full <= last


@pytest.mark.parametrize(("window", "blocks"), [(1, 1), (2, 2), (512, 2), (513, 2), (514, 3), (4096, 9), (4097, 9)])
def test_the_band_is_as_wide_as_the_formula_says(window, blocks):
    band = Band(16_384, 16_384, 512, 512, True, window, True)
    assert band.max_key_blocks == -(-(window - 1) // 512) + 1 == blocks == band.max_query_blocks


def test_work_grows_with_length_times_window():
    def tiles(length):
        return Band(length, length, 512, 512, True, 4096, True).visited_tiles

    assert tiles(8192) == 16 * 9 - 36  # the first eight rows of blocks begin at the left edge
    assert tiles(131_072) == 256 * 9 - 36


def test_a_packed_row_visits_its_own_documents_only():
    length, block = 64, 8
    segments = jnp.repeat(jnp.arange(4, dtype=jnp.int32), 16)[None]
    positions = jnp.tile(jnp.arange(16, dtype=jnp.int32), 4)[None]
    x = jnp.zeros((1, length, 1, 4))
    inputs = check_inputs(
        x, x, x, scale=1.0, causal=True, sliding_window=1000, logits_soft_cap=None, query_positions=positions,
        key_positions=positions, query_segment_ids=segments, key_segment_ids=segments, ordered_positions=True,
    )  # fmt: skip
    band = Band(length, length, block, block, True, 1000, True)
    ranges = key_ranges(band, pad_positions(inputs, band))
    assert ranges.first[0].tolist() == [0, 0, 2, 2, 4, 4, 6, 6]
    assert ranges.last[0].tolist() == list(range(8))
    assert ranges.first_full[0].tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert ranges.last_full[0].tolist() == [0, 0, 2, 2, 4, 4, 6, 6]
