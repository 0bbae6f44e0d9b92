"""The grouped products on GPU, in Pallas through Triton: a program per block of rows of one group and tile of columns.

Blocks of rows start where their group starts, so no program sees two groups. Programs that run at the same time share
rows and matrices in the level-2 cache: eight blocks of rows go through the columns together.
"""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from zoo.kernels.grouped_matmul.schedule import block_steps, with_rest

BAND = 8
"""Blocks of rows that go through the columns together."""


@dataclass(frozen=True)
class Tile:
    """What a program works on, and the warps that do it; sizes are powers of two, at least 16."""

    rows: int
    """First side of the result: rows, or K of the matrices' gradient."""
    columns: int
    """Second side of the result."""
    inner: int
    """Part of the sum in one step."""
    num_warps: int
    """Warps of 32 threads."""
    num_stages: int
    """Tiles in flight."""


# Found by compiling for A100, H200 and B200 (tests/ahead_of_time/test_grouped_matmul.py): sums in registers without a
# spill, as many bytes in flight as shared memory holds. None was timed on a GPU. Tiles of 256 columns only on Hopper:
# on Blackwell a public Triton kernel gave wrong sums with them (marin#7484).
HOPPER = Tile(128, 256, 64, 8, 4)
BLACKWELL = Tile(128, 128, 64, 4, 4)
PORTABLE = Tile(128, 128, 32, 8, 4)
FLOAT32 = Tile(64, 64, 16, 4, 3)
_HOPPER = re.compile(r"\b(H20|H100|H200|H800|GH200)\b")
_BLACKWELL = re.compile(r"\b(B100|B200|B300|GB200|GB300)\b")


def gpu_product(
    lhs: Float[Array, "m k"],
    rhs: Float[Array, "g k n"],
    group_sizes: Int[Array, " g"],
    *,
    transposed: bool = False,
    tile: Tile | None = None,
    interpret: bool = False,
) -> Float[Array, "m n"]:
    """See `grouped_matmul`; transposed: the matrices are [G, N, K], and are read as they lie.

    Raises: NotImplementedError for other dtypes than bfloat16, float16 and float32, unless interpreted.
    """
    _check(lhs.dtype, interpret)
    (num_rows, inner), outer = lhs.shape, rhs.shape[1 if transposed else 2]
    if not num_rows:
        return jnp.zeros((num_rows, outer), lhs.dtype)
    tile = tile or default_tile(lhs.dtype, -(-num_rows // len(group_sizes)))
    steps = block_steps(with_rest(group_sizes, num_rows), num_rows, tile.rows)
    blocks, columns = len(steps.group), -(-outer // tile.columns)
    return pl.pallas_call(
        partial(grouped_matmul_product, blocks=blocks, columns=columns, tile=tile, transposed=transposed),
        grid=(blocks * columns,),
        out_shape=jax.ShapeDtypeStruct((num_rows, outer), lhs.dtype),
        compiler_params=_compiler_params(tile),
        cost_estimate=_cost(lhs, rhs, num_rows * outer, num_rows, inner, outer),
        interpret=interpret,
        name="grouped_matmul_transposed" if transposed else "grouped_matmul",
    )(steps.group, steps.block, steps.end, lhs, rhs.astype(lhs.dtype))


def grouped_matmul_product(
    group_ref,  # [S]
    row_ref,  # [S]
    end_ref,  # [G + 1]
    lhs_ref,  # [M, K]
    rhs_ref,  # [G, K, N], transposed [G, N, K]
    out_ref,  # [M, N]
    *,
    blocks: int,
    columns: int,
    tile: Tile,
    transposed: bool,
):
    """One block of rows times one tile of columns of its group's matrix."""
    (num_rows, inner), outer, groups = lhs_ref.shape, out_ref.shape[1], rhs_ref.shape[0]
    dtype = lhs_ref.dtype
    step, column = _place(pl.program_id(0), blocks, columns)
    group, row = group_ref[step], row_ref[step]
    # A step that is no work repeats the last group, behind its end: nothing of it is stored.
    end = end_ref[group]

    @pl.when(row < end)
    def _work():
        # Where there are enough rows, a block at the end moves up and repeats rows: so no load of rows has a mask.
        start = jnp.minimum(row, num_rows - tile.rows) if num_rows >= tile.rows else row
        rows = _Part(start, tile.rows, num_rows, num_rows < tile.rows)
        cols = _Part(column * tile.columns, tile.columns, outer, bool(outer % tile.columns))
        matrix = jnp.minimum(group, groups - 1)

        def add(index, total):
            part = _Part(index * tile.inner, tile.inner, inner, bool(inner % tile.inner))
            left = _load(lhs_ref, rows, part)
            right = _load(rhs_ref, *((cols, part) if transposed else (part, cols)), lead=(matrix,))
            return total + _dot(left, right, (1, 1 if transposed else 0))

        total = jnp.zeros((tile.rows, tile.columns), jnp.promote_types(dtype, jnp.float32))
        # Rows of no group, which are a group of their own behind the others, get zeros.
        count = jnp.where(group < groups, jnp.int32(-(-inner // tile.inner)), 0)
        total = jax.lax.fori_loop(jnp.int32(0), count, add, total)
        own = (rows.indices >= row) & (rows.indices < end)
        mask = own[:, None] & (cols.indices < outer)[None] if cols.masked else _broadcast(own[:, None], total.shape)
        plgpu.store(out_ref.at[rows.slice, cols.slice], total.astype(dtype), mask=mask)


def gpu_outer(
    lhs: Float[Array, "m k"],
    rows: Float[Array, "m n"],
    group_sizes: Int[Array, " g"],
    *,
    tile: Tile | None = None,
    interpret: bool = False,
) -> Float[Array, "g k n"]:
    """Per group the sum over its rows of lhs[m] rows[m]^T, in the dtype of `rows`."""
    _check(lhs.dtype, interpret)
    (num_rows, left), right = lhs.shape, rows.shape[1]
    groups = len(group_sizes)
    if not num_rows:
        return jnp.zeros((groups, left, right), rows.dtype)
    tile = tile or default_tile(lhs.dtype)
    sizes = group_sizes.astype(jnp.int32)
    end = jnp.cumsum(sizes, dtype=jnp.int32)
    blocks, columns = -(-left // tile.rows), -(-right // tile.columns)
    return pl.pallas_call(
        partial(grouped_matmul_outer, blocks=blocks, columns=columns, tile=tile),
        grid=(blocks * columns, groups),
        out_shape=jax.ShapeDtypeStruct((groups, left, right), rows.dtype),
        compiler_params=_compiler_params(tile),
        cost_estimate=_cost(lhs, rows, groups * left * right, num_rows, left, right),
        interpret=interpret,
        name="grouped_matmul_outer",
    )(end - sizes, end, lhs, rows)


def grouped_matmul_outer(
    first_ref,  # [G]
    end_ref,  # [G]
    lhs_ref,  # [M, K]
    rows_ref,  # [M, N]
    out_ref,  # [G, K, N]
    *,
    blocks: int,
    columns: int,
    tile: Tile,
):
    """One tile of one matrix, summed over the rows of its group."""
    num_rows, (_, left, right) = lhs_ref.shape[0], out_ref.shape
    block, column = _place(pl.program_id(0), blocks, columns)
    group = pl.program_id(1)
    first, end = first_ref[group], end_ref[group]
    dtype = lhs_ref.dtype
    at_left = _Part(block * tile.rows, tile.rows, left, bool(left % tile.rows))
    at_right = _Part(column * tile.columns, tile.columns, right, bool(right % tile.columns))

    def add(index, total, limit=num_rows, masked=False):
        part = _Part(first + index * tile.inner, tile.inner, limit, masked)
        return total + _dot(_load(lhs_ref, part, at_left), _load(rows_ref, part, at_right), (0, 0))

    total = jnp.zeros((tile.rows, tile.columns), jnp.promote_types(dtype, jnp.float32))
    whole = jax.lax.div(end - first, jnp.int32(tile.inner))
    total = jax.lax.fori_loop(jnp.int32(0), whole, add, total)
    some = jax.lax.div(end - first + tile.inner - 1, jnp.int32(tile.inner))
    total = jax.lax.fori_loop(whole, some, partial(add, limit=end, masked=True), total)
    plgpu.store(
        out_ref.at[group, at_left.slice, at_right.slice], total.astype(out_ref.dtype), mask=_mask(at_left, at_right)
    )


@dataclass(frozen=True)
class _Part:
    """Part of one axis of an array; what lies at `limit` and beyond does not exist where it is masked."""

    start: Array
    size: int
    limit: Any
    masked: bool

    @property
    def indices(self) -> Array:
        return self.start + jax.lax.iota(jnp.int32, self.size)

    @property
    def slice(self):
        return pl.ds(self.start, self.size)


def _mask(first: _Part, second: _Part) -> Array | None:
    shape = first.size, second.size
    masks = [
        _broadcast((part.indices < part.limit)[:, None] if axis == 0 else (part.indices < part.limit)[None], shape)
        for axis, part in enumerate((first, second))
        if part.masked
    ]
    return masks[0] & masks[1] if len(masks) == 2 else masks[0] if masks else None


def _broadcast(mask: Array, shape: tuple[int, int]) -> Array:
    return jnp.broadcast_to(mask, shape)


def _load(ref, first: _Part, second: _Part, lead: tuple = ()) -> Array:
    place = ref.at[(*lead, first.slice, second.slice)]
    mask = _mask(first, second)
    return plgpu.load(place) if mask is None else plgpu.load(place, mask=mask, other=0)


def _dot(left: Array, right: Array, contracted: tuple[int, int]) -> Array:
    accumulator = jnp.promote_types(left.dtype, jnp.float32)
    precision = jax.lax.Precision.HIGHEST if left.dtype == accumulator else None
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=accumulator)


def _place(program: Array, blocks: int, columns: int) -> tuple[Array, Array]:
    """(block, column) of a program: `BAND` blocks go through the columns together."""
    band = jax.lax.div(program, jnp.int32(BAND * columns))
    within = jax.lax.rem(program, jnp.int32(BAND * columns))
    height = jnp.minimum(blocks - band * BAND, BAND)
    return band * BAND + jax.lax.rem(within, height), jax.lax.div(within, height)


def default_tile(dtype, rows_per_group: int | None = None) -> Tile:
    """The tile for the device in use: the abstract one while compiling ahead of time, else the first GPU.

    rows_per_group: where they are few, the tile has no more rows, as reading the matrices is what takes time.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if device is None and jax.default_backend() == "gpu":
        device = jax.devices()[0]
    kind = "" if device is None else device.device_kind
    if jnp.dtype(dtype).itemsize >= 4:
        tile = FLOAT32
    else:
        tile = HOPPER if _HOPPER.search(kind) else BLACKWELL if _BLACKWELL.search(kind) else PORTABLE
    if rows_per_group is not None and rows_per_group < tile.rows:
        rows = max(16, pl.next_power_of_2(rows_per_group))
        tile = Tile(rows, min(tile.columns, 128), tile.inner, 4, tile.num_stages)
    return tile


def _compiler_params(tile: Tile) -> plgpu.CompilerParams:
    return plgpu.CompilerParams(num_warps=tile.num_warps, num_stages=tile.num_stages)


def _check(dtype, interpret: bool) -> None:
    if not interpret and dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(f"grouped matmul 'pallas_gpu' takes bfloat16, float16 and float32, not {dtype}")


def _cost(first: Array, second: Array, result: int, m: int, k: int, n: int) -> pl.CostEstimate:
    """2 M K N FLOPs, whatever the group sizes; each array once."""
    size = first.dtype.itemsize
    return pl.CostEstimate(
        flops=2 * m * k * n, transcendentals=0, bytes_accessed=size * (first.size + second.size + result)
    )
