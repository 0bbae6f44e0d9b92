"""Masks printed as matrices: a row is a query, a column a key, # = visible."""

import jax.numpy as jnp
import numpy as np
import pytest

from zoo.kernels.attention.visibility import EMPTY_POSITION, visible


def picture(mask) -> list[str]:
    return ["".join("#" if seen else "." for seen in row) for row in np.asarray(mask)]


def test_causal_mask_shows_every_key_up_to_the_query():
    positions = jnp.arange(4)
    assert picture(visible(positions, positions)) == [
        "#...",
        "##..",
        "###.",
        "####",
    ]


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (2, ["#....", "##...", ".##..", "..##.", "...##"]),
        (3, ["#....", "##...", "###..", ".###.", "..###"]),
        (4, ["#....", "##...", "###..", "####.", ".####"]),
    ],
    ids=["W-1", "W", "W+1"],
)
def test_window_counts_the_query_itself(window, expected):
    positions = jnp.arange(5)
    assert picture(visible(positions, positions, sliding_window=window)) == expected


def test_window_without_causality_reaches_equally_far_to_both_sides():
    positions = jnp.arange(5)
    assert picture(visible(positions, positions, causal=False, sliding_window=2)) == [
        "##...",
        "###..",
        ".###.",
        "..###",
        "...##",
    ]


def test_packed_segments_do_not_see_each_other_and_restart_their_window():
    positions = jnp.array([0, 1, 2, 0, 1, 2, 0])
    segments = jnp.array([1, 1, 1, 2, 2, 2, 0])
    assert picture(visible(positions, positions, segments, segments, sliding_window=2)) == [
        "#......",
        "##.....",
        ".##....",
        "...#...",
        "...##..",
        "....##.",
        "......#",
    ]


def test_ring_slots_are_seen_by_position_wherever_they_lie():
    # Tokens 4..7 in a ring of 4 whose next write goes to slot 2; slot 1 was never written.
    slots = jnp.array([6, EMPTY_POSITION, 4, 5])
    assert picture(visible(jnp.array([6]), slots, sliding_window=2)) == ["#..#"]
