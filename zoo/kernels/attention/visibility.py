"""The one definition of which key a query may see. Dense, blocked, Pallas and cached paths all use it."""

import functools
import operator

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

EMPTY_POSITION = jnp.iinfo(jnp.int32).max
"""Position of a cache slot that holds no token: later than every query, hence never visible under a causal mask."""


def visible(
    query_positions: Int[Array, "*#b t"],
    key_positions: Int[Array, "*#b s"],
    query_segment_ids: Int[Array, "*#b t"] | None = None,
    key_segment_ids: Int[Array, "*#b s"] | None = None,
    *,
    causal: bool = True,
    sliding_window: int | None = None,
) -> Bool[Array, "*b t s"]:
    """True where query t may see key s; see `visible_pairs` for the rule."""
    segments = None, None
    if query_segment_ids is not None and key_segment_ids is not None:
        segments = query_segment_ids[..., :, None], key_segment_ids[..., None, :]
    return visible_pairs(
        query_positions[..., :, None],
        key_positions[..., None, :],
        *segments,
        causal=causal,
        sliding_window=sliding_window,
    )


def visible_pairs(
    query_positions: Int[Array, "*#x"],
    key_positions: Int[Array, "*#x"],
    query_segment_ids: Int[Array, "*#x"] | None = None,
    key_segment_ids: Int[Array, "*#x"] | None = None,
    *,
    causal: bool = True,
    sliding_window: int | None = None,
) -> Bool[Array, "*x"]:
    """True where the query may see the key; the arguments are broadcast against each other.

    causal: k <= q. Window W: q - W < k (a token sees W keys, itself included) and, when not causal, also k < q + W.
    Segments: only keys of the same segment. Source: Gemma 2 report, section 2; the three public implementations agree.
    """
    conditions = []
    if causal:
        conditions.append(key_positions <= query_positions)
    if sliding_window is not None:
        conditions.append(key_positions > query_positions - sliding_window)
        if not causal:
            conditions.append(key_positions < query_positions + sliding_window)
    if query_segment_ids is not None and key_segment_ids is not None:
        conditions.append(query_segment_ids == key_segment_ids)
    if not conditions:
        return jnp.ones(jnp.broadcast_shapes(query_positions.shape, key_positions.shape), bool)
    return functools.reduce(operator.and_, conditions)
