"""What the forward and the backward TPU kernels share: products, scores, the mask of a tile, memory and block specs."""

import functools
import math
import operator
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from zoo.kernels.attention.block import NO_MAXIMUM_SOFT_CAP
from zoo.kernels.attention.visibility import visible_pairs
from zoo.kernels.local_attention.band import Band, PaddedPositions
from zoo.kernels.platform import target_platform

LANES = 128
"""Columns of a vector register."""

NO_SCORE = -1e20
"""Running maximum before the first score. Masked scores lie far below, so their weight is zero even then."""


@dataclass(frozen=True)
class Softmax:
    """How scores become weights: softmax of cap(scale * q . k)."""

    scale: float
    cap: float | None

    def online(self, dtype) -> bool:
        """Whether a running maximum is needed: exp(score) may leave the range of the weights' dtype."""
        return self.cap is None or self.cap > NO_MAXIMUM_SOFT_CAP or dtype == jnp.float16

    def accumulator(self, dtype) -> jnp.dtype:
        """Dtype of sums."""
        return jnp.promote_types(dtype, jnp.float32)

    def scores(self, products: Float[Array, "..."]) -> Float[Array, "..."]:
        """cap * tanh(scale * products / cap), or scale * products."""
        return self.scale * products if self.cap is None else self.cap * bounded(products, self.scale / self.cap)


def bounded(products: Float[Array, "..."], factor: float) -> Float[Array, "..."]:
    """tanh(factor * products): a score over its cap, for factor = scale / cap."""
    return jnp.tanh(factor * products)


def dot(equation: str, left: Array, right: Array) -> Array:
    """einsum with sums in float32 (float64 for float64)."""
    accumulator = jnp.promote_types(left.dtype, jnp.float32)
    precision = jax.lax.Precision.HIGHEST if left.dtype == accumulator else None
    return jnp.einsum(equation, left, right, preferred_element_type=accumulator, precision=precision)


def strips_of(group: int, block_q: int) -> list[tuple[int, int, int]]:
    """(head, first row, rows) of the strips in which a tile is computed, 256 rows where they divide the block.

    Whole tiles overlap the units less and spill more registers, thin strips wait for each other: on v6e (512 keys,
    D = 256) 792 bundles per 512 x 512 scores as one tile, 726 in strips of 256 rows, 816 in strips of 128.
    """
    size = math.gcd(block_q, 256)
    return [(head, start, size) for head in range(group) for start in range(0, block_q, size)]


def lane_sums(x: Float[Array, "r c"]) -> Float[Array, "r l"]:
    """Sums over the registers of a row, left in 128 lanes: adding up the lanes can wait until the last tile."""
    if x.shape[1] % LANES:
        return jnp.pad(x.sum(1, keepdims=True), ((0, 0), (0, LANES - 1)))
    return functools.reduce(operator.add, (x[:, i : i + LANES] for i in range(0, x.shape[1], LANES)))


def rows_to_columns(row: Array, width: int) -> Array:
    """[1, n] -> [n, width] with equal columns.

    A vector lies along lanes in memory. A transposed block of 128 equal rows is repeated register by register, where
    the broadcast of a single column would take a move across lanes for every register.
    """
    block = jnp.broadcast_to(row, (LANES, row.shape[1])).T
    return jnp.concatenate([block] * (width // LANES), axis=1) if width % LANES == 0 else block[:, :1]


def tile_mask(position_refs, band: Band, *, queries_in_rows: bool) -> Bool[Array, "x y"]:
    """The mask [block_q, block_k] of one tile, or its transpose, from refs of positions and, if any, segments."""
    queries, keys, *segments = (ref[...] for ref in position_refs)

    def columns(x, other):
        return rows_to_columns(x, other.shape[1])

    def pair(query, key):
        return (columns(query, key), key) if queries_in_rows else (query, columns(key, query))

    query_positions, key_positions = pair(queries, keys)
    return visible_pairs(
        query_positions,
        key_positions,
        *(pair(*segments) if segments else ()),
        causal=band.causal,
        sliding_window=band.sliding_window,
    )


def position_specs(positions: PaddedPositions, block_q: int, block_k: int, query_index, key_index):
    """Arrays [B or 1, 1, length] and their block specs for `tile_mask`; the index functions take the grid's indices."""
    arrays: list[Int[Array, "#b 1 n"]] = []
    specs = []
    for query_side, x in (
        (True, positions.query_positions),
        (False, positions.key_positions),
        (True, positions.query_segment_ids),
        (False, positions.key_segment_ids),
    ):
        if x is None:
            continue
        shared, index = x.shape[0] == 1, query_index if query_side else key_index

        def block(b, *rest, shared=shared, index=index):
            return 0 if shared else b, 0, index(b, *rest)

        arrays.append(x[:, None])
        specs.append(pl.BlockSpec((None, 1, block_q if query_side else block_k), block))
    return arrays, specs


def compiler_params(semantics: tuple[Literal["parallel", "arbitrary"], ...], vmem_bytes: int) -> pltpu.CompilerParams:
    """Mosaic's parameters: which grid axes may be split between cores, and how much VMEM a kernel may take.

    Bounds checks of copies are left out: the index maps clamp every block, and interpret mode checks them in the tests.
    """
    return pltpu.CompilerParams(
        dimension_semantics=semantics, vmem_limit_bytes=min(vmem_bytes, vmem_capacity()), disable_bounds_checks=True
    )


def vmem_capacity() -> int:
    """Bytes of VMEM of one core of the chip that is compiled for; in interpret mode those of v5p."""
    return pltpu.get_tpu_info().vmem_capacity_bytes if target_platform() == "tpu" else 64 * 2**20
