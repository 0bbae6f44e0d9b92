"""What the Triton kernels of local attention share: which rows a program owns, its loop over blocks, and the scores."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from zoo.kernels.attention.block import NO_MAXIMUM_SOFT_CAP
from zoo.kernels.attention.inputs import AttentionInputs
from zoo.kernels.attention.visibility import visible_pairs
from zoo.kernels.local_attention.band import Band, BlockRanges, PaddedPositions
from zoo.kernels.local_attention.gpu_tiles import Pass, Tile, default_tile

LOG2_E = math.log2(math.e)
"""exp(x) = 2 ** (x * LOG2_E): the hardware has a base-2 exponential, and the factor is folded into the scale."""


@dataclass(frozen=True)
class Options:
    """The static arguments of one call; see `dot_product_attention` and `local_attention_gpu`."""

    scale: float
    causal: bool
    sliding_window: int | None
    logits_soft_cap: float | None
    ordered_positions: bool
    block_q: int | None
    block_k: int | None
    interpret: bool


@dataclass(frozen=True)
class TileLayout:
    """How rows of tiles map to the rows of query [B * T * N, H] and key, value [B * S * K, H]."""

    band: Band
    tile: Tile
    num_heads: int
    """Query heads N."""
    num_kv_heads: int
    """Key and value heads K."""
    heads: int
    """Query heads of a group that are stacked in one tile; divides N / K."""

    @property
    def subgroups(self) -> int:
        """Tiles that it takes to hold all query heads of a group."""
        return self.num_heads // self.num_kv_heads // self.heads

    def split_heads(self, program) -> tuple[Array, Array]:
        """(key/value head, subgroup) of a program of a grid of K * subgroups."""
        subgroups = jnp.int32(self.subgroups)
        return jax.lax.div(program, subgroups), jax.lax.rem(program, subgroups)

    def query_rows(self, batch, kv_head, subgroup, block) -> tuple[Array, Array, Array | None]:
        """(rows of [B * T * N], query indices, which rows are real or None = all) of one tile; each [rows].

        Rows that are not real repeat a real one of the same tile: they compute and store the same, so no access needs
        a mask.
        """
        band = self.band
        row = jax.lax.broadcasted_iota(jnp.int32, (self.tile.rows,), 0)
        member = jax.lax.rem(row, jnp.int32(self.heads))
        own = jax.lax.div(row, jnp.int32(self.heads))
        query = block * band.block_q + own
        real = None
        if self.heads * band.block_q != self.tile.rows or band.queries % band.block_q:
            real = (own < band.block_q) & (query < band.queries)
            query = jnp.minimum(block * band.block_q + jnp.minimum(own, band.block_q - 1), band.queries - 1)
        head = (kv_head * jnp.int32(self.subgroups) + subgroup) * self.heads + member
        return (batch * band.queries + query) * self.num_heads + head, query, real

    def key_rows(self, batch, kv_head, block) -> tuple[Array, Array, Array]:
        """(rows of [B * S * K], key indices, padded key indices) of one block of keys; each [block_k].

        Keys of the padding repeat the last key; at their padded index they have a position that nobody sees.
        """
        band = self.band
        padded = block * band.block_k + jax.lax.broadcasted_iota(jnp.int32, (band.block_k,), 0)
        key = jnp.minimum(padded, band.keys - 1) if band.keys % band.block_k else padded
        return (batch * band.keys + key) * self.num_kv_heads + kv_head, key, padded


def tile_layout(direction: Pass, inputs: AttentionInputs, options: Options) -> TileLayout:
    """The layout with default tile sizes, or with blocks of block_q queries and block_k keys where they are given."""
    _, queries, num_heads, head_dim = inputs.query.shape
    keys, num_kv_heads = inputs.key.shape[1:3]
    tile = default_tile(direction, head_dim, inputs.query.dtype)
    group = num_heads // num_kv_heads
    # At least 4 queries to a tile: the fewer there are, the more often a key is read.
    heads = max(n for n in range(1, group + 1) if group % n == 0 and n <= tile.rows // 4)
    block_q, block_k = options.block_q or tile.rows // heads, options.block_k or tile.block_k
    rows = max(16, pl.next_power_of_2(heads * block_q))
    band = Band(queries, keys, block_q, block_k, inputs.causal, inputs.sliding_window, inputs.ordered_positions)
    return TileLayout(band, Tile(rows, block_k, tile.num_warps, tile.num_stages), num_heads, num_kv_heads, heads)


def for_each_block(ranges: BlockRanges, batch, block, body, carry):
    """Folds body(other block, carry, masked) over the blocks that `block` has to visit; `ranges` holds references.

    One loop takes the blocks that need no mask, a second one those on both sides of them: their order is of no
    consequence, and two loops are filled and drained instead of three.
    """
    bounds = ranges.first, ranges.last, ranges.first_full, ranges.last_full
    first, last, first_full, last_full = (load_batched(x, batch, block) for x in bounds)
    before = first_full - first

    def outer(i, carry):
        return body(jnp.where(i < before, first + i, last_full + 1 + i - before), carry, True)

    carry = jax.lax.fori_loop(first_full, last_full + 1, lambda i, carry: body(i, carry, False), carry)
    return jax.lax.fori_loop(jnp.int32(0), before + last - last_full, outer, carry)


def load_batched(ref, batch, index):
    """Elements of a [B or 1, n] reference; None stays None."""
    return None if ref is None else ref[batch if ref.shape[0] > 1 else jnp.int32(0), index]


@dataclass(frozen=True)
class Places:
    """Positions and segments of the queries or the keys of a tile, along one of its axes."""

    positions: Array
    segment_ids: Array | None

    def along(self, axis: int) -> "Places":
        """The same, as a column (axis 0) or a row (axis 1)."""

        def turn(x):
            return None if x is None else jnp.expand_dims(x, 1 - axis)

        return Places(turn(self.positions), turn(self.segment_ids))


def query_places(positions: PaddedPositions, batch, index) -> Places:
    """Of the queries with these padded indices; `positions` holds references."""
    return Places(
        load_batched(positions.query_positions, batch, index), load_batched(positions.query_segment_ids, batch, index)
    )


def key_places(positions: PaddedPositions, batch, index) -> Places:
    """Of the keys with these padded indices."""
    return Places(
        load_batched(positions.key_positions, batch, index), load_batched(positions.key_segment_ids, batch, index)
    )


def tile_mask(queries: Places, keys: Places, options: Options) -> Bool[Array, "x y"]:
    """Which pairs of a tile are visible; one side is a column, the other a row."""
    return visible_pairs(
        queries.positions,
        keys.positions,
        queries.segment_ids,
        keys.segment_ids,
        causal=options.causal,
        sliding_window=options.sliding_window,
    )


def takes_maximum(options: Options, dtype) -> bool:
    """Whether softmax needs the running maximum; without, exp(score) stays in the range of float32 and bfloat16."""
    cap = options.logits_soft_cap
    return cap is None or cap > NO_MAXIMUM_SOFT_CAP or dtype == jnp.float16


def log_weights(products: Float[Array, "x y"], options: Options, dtype) -> tuple[Array, Array | None]:
    """Base-2 logarithm of the unnormalised softmax weights of products q . k, and 1 - tanh^2 (None without a cap).

    The hardware's approximate tanh is off by up to 2^-11: at a cap of 50 that is 0.02 in a score, several times the
    rounding of a bfloat16 weight. For 16-bit inputs tanh is taken from an exponential and a reciprocal: right to 1e-7
    in absolute terms, with no branch. float32 needs it right in relative terms near zero too.
    """
    cap = options.logits_soft_cap
    if cap is None:
        return products * (options.scale * LOG2_E), None
    if jnp.dtype(dtype).itemsize > 2:
        tanh = jnp.tanh(products * (options.scale / cap))
        return tanh * (cap * LOG2_E), 1 - tanh * tanh
    rest = 1 / (1 + jnp.exp2(products * (2 * LOG2_E * options.scale / cap)))
    return cap * LOG2_E - (2 * cap * LOG2_E) * rest, 4 * rest * (1 - rest)


def product(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    """Matrix product over these axes, with float32 (float64) sums of operands as they are."""
    accumulator = accumulator_dtype(left.dtype)
    precision = jax.lax.Precision.HIGHEST if left.dtype == accumulator else None
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=accumulator)


def accumulator_dtype(dtype):
    """float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)
