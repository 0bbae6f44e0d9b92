"""Which key blocks a block of queries meets: band arithmetic, and the ranges that positions and segments leave of it.

Everything here is a few integers per block. No kernel receives a mask: `Band` bounds its loop while compiling, a
`BlockRanges` says which blocks to visit and which of these need no mask, and inside the others `visible_pairs` decides.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from zoo.kernels.attention.inputs import AttentionInputs
from zoo.kernels.attention.visibility import EMPTY_POSITION


@dataclass(frozen=True)
class Band:
    """Blocks of `block_q` query rows against blocks of `block_k` keys, for T queries and S keys.

    Row i of the queries stands at key index i + S - T. With ordered positions (see `dot_product_attention`) the keys
    that a row may see lie at most W - 1 indices before it and, when causal, none after it; otherwise anywhere.
    """

    queries: int
    """Number of query rows T, before padding to whole blocks."""
    keys: int
    """Number of keys S, before padding to whole blocks."""
    block_q: int
    """Query rows per block."""
    block_k: int
    """Keys per block."""
    causal: bool
    """Whether a query sees no later key."""
    sliding_window: int | None
    """Visible keys, the query's own included; None = all."""
    ordered: bool
    """Whether the promise of ordered positions was given."""

    @property
    def query_blocks(self) -> int:
        """Number of blocks that cover the queries."""
        return -(-self.queries // self.block_q)

    @property
    def key_blocks(self) -> int:
        """Number of blocks that cover the keys."""
        return -(-self.keys // self.block_k)

    def key_span(self, query_block):
        """(first, last) key block that may hold a key visible from this block; an int or an integer array."""
        start = query_block * self.block_q + self.keys - self.queries
        return _span(start, self.block_q, self.block_k, self.key_blocks, self.reach_back, self.reach_ahead)

    def query_span(self, key_block):
        """(first, last) query block that may hold a query which sees a key of this block."""
        start = key_block * self.block_k + self.queries - self.keys
        return _span(start, self.block_k, self.block_q, self.query_blocks, self.reach_ahead, self.reach_back)

    @property
    def max_key_blocks(self) -> int:
        """Most key blocks that one query block meets; of aligned blocks ceil((W - 1) / block_k) + block_q / block_k."""
        return max(last - first + 1 for first, last in map(self.key_span, range(self.query_blocks)))

    @property
    def max_query_blocks(self) -> int:
        """Most query blocks that one key block meets."""
        return max(last - first + 1 for first, last in map(self.query_span, range(self.key_blocks)))

    @property
    def visited_tiles(self) -> int:
        """Tiles of the whole band: what a kernel computes of one head when neither segments nor gaps skip more."""
        return sum(last - first + 1 for first, last in map(self.key_span, range(self.query_blocks)))

    @property
    def reach_back(self) -> int | None:
        """Key indices before a query's own that it may see; None = all."""
        return min(self.sliding_window, self.keys) - 1 if self.ordered and self.sliding_window is not None else None

    @property
    def reach_ahead(self) -> int | None:
        """Key indices after a query's own that it may see; None = all."""
        return 0 if self.ordered and self.causal else self.reach_back


def _span(start, rows, block, blocks, back, ahead):
    """Blocks of `block` indices, `blocks` in all, that the indices start - back .. start + rows - 1 + ahead touch."""
    low, high = (max, min) if isinstance(start, int) else (jnp.maximum, jnp.minimum)
    first = start * 0 if back is None else (start - back) // block
    last = start * 0 + blocks - 1 if ahead is None else (start + rows - 1 + ahead) // block
    first = high(low(first, 0), blocks - 1)
    return first, low(high(last, blocks - 1), first)


@partial(jax.tree_util.register_dataclass, data_fields=["first", "last", "first_full", "last_full"], meta_fields=[])
@dataclass(frozen=True)
class BlockRanges:
    """For each block of one side, the blocks of the other that it has to visit; all bounds inclusive, [B, blocks].

    Blocks first..last hold every visible pair; last < first when there is none. Of these, first_full..last_full are
    visible throughout and need no mask; without such blocks first_full = last + 1 and last_full = last.
    """

    first: Int[Array, "b n"]
    last: Int[Array, "b n"]
    first_full: Int[Array, "b n"]
    last_full: Int[Array, "b n"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["query_positions", "key_positions", "query_segment_ids", "key_segment_ids"],
    meta_fields=[],
)
@dataclass(frozen=True)
class PaddedPositions:
    """Positions and segments of whole blocks, [B or 1, blocks * block]. No query sees a key of the padding."""

    query_positions: Int[Array, "#b t"]
    key_positions: Int[Array, "#b s"]
    query_segment_ids: Int[Array, "#b t"] | None
    key_segment_ids: Int[Array, "#b s"] | None


def pad_positions(inputs: AttentionInputs, band: Band) -> PaddedPositions:
    """Padding queries repeat the last one, so that they cost no mask; padding keys have no position and segment -1."""
    more_queries = band.query_blocks * band.block_q - band.queries
    more_keys = band.key_blocks * band.block_k - band.keys
    query_segments, key_segments = inputs.query_segment_ids, inputs.key_segment_ids
    if (query_segments is None or key_segments is None) and more_keys and not band.causal:
        # Without causality a key that has no position is told apart by its segment only.
        query_segments, key_segments = jnp.zeros((1, band.queries), jnp.int32), jnp.zeros((1, band.keys), jnp.int32)

    def pad(x, count, **options):
        return None if x is None else jnp.pad(x.astype(jnp.int32), ((0, 0), (0, count)), **options)

    return PaddedPositions(
        pad(inputs.query_positions, more_queries, mode="edge"),
        pad(inputs.key_positions, more_keys, constant_values=EMPTY_POSITION),
        pad(query_segments, more_queries, mode="edge"),
        pad(key_segments, more_keys, constant_values=-1),
    )


def key_ranges(band: Band, positions: PaddedPositions) -> BlockRanges:
    """The key blocks of each query block."""
    some, full = _block_visibility(band, positions)
    spans = band.key_span(jnp.arange(band.query_blocks, dtype=jnp.int32))
    return _ranges(some, full, spans, band.max_key_blocks)


def query_ranges(band: Band, positions: PaddedPositions) -> BlockRanges:
    """The query blocks of each key block."""
    some, full = _block_visibility(band, positions)
    spans = band.query_span(jnp.arange(band.key_blocks, dtype=jnp.int32))
    return _ranges(lambda j, i: some(i, j), lambda j, i: full(i, j), spans, band.max_query_blocks)


def _block_visibility(band: Band, positions: PaddedPositions):
    """Two functions of (query blocks, key blocks): may some pair be visible, are all. Judged by minima and maxima."""

    def bounds(x, block):
        blocks = x.reshape(x.shape[0], -1, block)
        return blocks.min(-1), blocks.max(-1)

    query_low, query_high = bounds(positions.query_positions, band.block_q)
    key_low, key_high = bounds(positions.key_positions, band.block_k)
    segments = positions.query_segment_ids is not None
    if segments:
        query_first, query_last = bounds(positions.query_segment_ids, band.block_q)
        key_first, key_last = bounds(positions.key_segment_ids, band.block_k)
    window = band.sliding_window

    def some(i, j):
        seen = key_low[:, j] <= query_high[:, i] if band.causal else jnp.ones((1, *i.shape), bool)
        if window is not None:
            seen &= key_high[:, j] > query_low[:, i] - window
            if not band.causal:
                seen &= key_low[:, j] < query_high[:, i] + window
        if segments:
            seen &= (key_first[:, j] <= query_last[:, i]) & (query_first[:, i] <= key_last[:, j])
        return seen

    def full(i, j):
        seen = key_high[:, j] <= query_low[:, i] if band.causal else jnp.ones((1, *i.shape), bool)
        if window is not None:
            seen &= key_low[:, j] > query_high[:, i] - window
            if not band.causal:
                seen &= key_high[:, j] < query_low[:, i] + window
        if segments:
            one = (query_first[:, i] == query_last[:, i]) & (key_first[:, j] == key_last[:, j])
            seen &= one & (query_first[:, i] == key_first[:, j])
        return seen

    return some, full


def _ranges(some, full, spans: tuple[Array, Array], most: int) -> BlockRanges:
    first, last = (x[:, None] for x in spans)
    other = first + jnp.arange(most, dtype=jnp.int32)
    inside = other <= last
    other = jnp.minimum(other, last)
    own = jnp.broadcast_to(jnp.arange(other.shape[0], dtype=jnp.int32)[:, None], other.shape)

    def bounds(seen):
        """(first, last, number) of the blocks that are seen; (large, -1, 0) of none."""
        seen &= inside
        low = jnp.where(seen, other, jnp.iinfo(jnp.int32).max).min(-1)
        return low, jnp.where(seen, other, -1).max(-1), seen.sum(-1, dtype=jnp.int32)

    low, high, count = bounds(some(own, other))
    low = jnp.where(count == 0, 0, low)
    full_low, full_high, full_count = bounds(full(own, other))
    contiguous = (full_count > 0) & (full_high - full_low + 1 == full_count)
    return BlockRanges(low, high, jnp.where(contiguous, full_low, high + 1), jnp.where(contiguous, full_high, high))
