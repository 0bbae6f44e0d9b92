"""The grouped products on TPU, in Pallas: tiles of rows, and one step for every group that has rows in a tile.

XLA's own `ragged_dot` takes G times the FLOPs for the gradients of the matrices (libtpu 0.0.42, all chips).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from zoo.kernels.grouped_matmul.schedule import tile_steps, with_rest
from zoo.kernels.local_attention.tpu_tile import vmem_capacity

_LANES = 128
_SUBLANES = 16


def tpu_product(
    lhs: Float[Array, "m k"],
    rhs: Float[Array, "g k n"],
    group_sizes: Int[Array, " g"],
    *,
    transposed: bool = False,
    tiles: tuple[int, int, int] | None = None,
    interpret: Any = False,
) -> Float[Array, "m n"]:
    """See `grouped_matmul`; transposed: the matrices are [G, N, K], and are read as they lie.

    tiles: rows, K and N of a step; multiples of 16, 128 and 128, or the whole side. None = by size.

    Raises: NotImplementedError for other dtypes than bfloat16 and float32, unless interpreted.
    """
    _check(lhs.dtype, interpret)
    (num_rows, inner), outer = lhs.shape, rhs.shape[1 if transposed else 2]
    if not num_rows:
        return jnp.zeros((num_rows, outer), lhs.dtype)
    if num_rows < _SUBLANES:
        # Mosaic does not mask the end of K in arrays of so few rows.
        lhs = jnp.pad(lhs, ((0, _SUBLANES - num_rows), (0, 0)))
        options: dict[str, Any] = dict(transposed=transposed, tiles=tiles, interpret=interpret)
        return tpu_product(lhs, rhs, group_sizes, **options)[:num_rows]
    groups = len(group_sizes)
    bm, bk, bn = tiles or _tiles(num_rows, inner, outer, groups, lhs.dtype.itemsize)
    steps = tile_steps(with_rest(group_sizes, num_rows), num_rows, bm, empty=False)
    inner_blocks = -(-inner // bk)

    def inner_block(group, k):
        # Rows of no group need no factors: what is there stays.
        return jnp.where(group < groups, k, inner_blocks - 1)

    def lhs_index(n, step, k, group, block, *_):
        return block[step], inner_block(group[step], k)

    def rhs_index(n, step, k, group, *_):
        sides = inner_block(group[step], k), n
        return jnp.minimum(group[step], groups - 1), *(sides[::-1] if transposed else sides)

    accumulator = jnp.promote_types(lhs.dtype, jnp.float32)
    scratch = [pltpu.VMEM((bm, bn), accumulator)] if inner_blocks > 1 else []
    return pl.pallas_call(
        partial(_product_kernel, groups=groups, inner=inner, bk=bk, transposed=transposed),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(-(-outer // bn), steps.used, inner_blocks),
            in_specs=[
                pl.BlockSpec((bm, bk), lhs_index),
                pl.BlockSpec((None, bn, bk) if transposed else (None, bk, bn), rhs_index),
            ],
            out_specs=pl.BlockSpec((bm, bn), lambda n, step, k, group, block, *_: (block[step], n)),
            scratch_shapes=scratch,
        ),
        out_shape=jax.ShapeDtypeStruct((num_rows, outer), lhs.dtype),
        compiler_params=_compiler_params(("parallel", "arbitrary", "arbitrary")),
        cost_estimate=_cost(lhs, rhs, num_rows * outer, num_rows, inner, outer),
        interpret=interpret,
        name="grouped_matmul_transposed" if transposed else "grouped_matmul",
    )(steps.group, steps.block, steps.first, steps.end, lhs, rhs.astype(lhs.dtype))


def _product_kernel(
    group_ref,  # [S] in scalar memory, as the next three
    block_ref,
    first_ref,  # [G + 1]
    end_ref,
    lhs_ref,  # [m, k]
    rhs_ref,  # [k, n], transposed [n, k]
    out_ref,  # [m, n]
    *scratch,  # the sums [m, n] where K takes several steps
    groups: int,
    inner: int,
    bk: int,
    transposed: bool,
):
    step, k, last = pl.program_id(1), pl.program_id(2), pl.num_programs(2) - 1
    group, block = group_ref[step], block_ref[step]
    rows = lhs_ref.shape[0]
    dtype = out_ref.dtype
    new_tile = (step == 0) | (block_ref[jnp.maximum(step - 1, 0)] != block)

    def product():
        lhs, rhs = lhs_ref[...], rhs_ref[...]
        if inner % bk:
            # Past the end lies anything, NaN too.
            left = inner - k * bk
            lhs = jnp.where(jax.lax.broadcasted_iota(jnp.int32, lhs.shape, 1) < left, lhs, 0)
            axis = 1 if transposed else 0
            rhs = jnp.where(jax.lax.broadcasted_iota(jnp.int32, rhs.shape, axis) < left, rhs, 0)
        return _dot(lhs, rhs, (1, 1 if transposed else 0))

    def store(value):
        whole = (first_ref[group] <= block * rows) & (end_ref[group] >= (block + 1) * rows)

        @pl.when(whole)
        def _all_rows():
            out_ref[...] = value.astype(dtype)

        @pl.when(~whole)
        def _own_rows():
            row = block * rows + jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
            own = (row >= first_ref[group]) & (row < end_ref[group])
            # Rows of groups that come later are zero until then.
            before = jnp.where(new_tile, 0, out_ref[...].astype(value.dtype))
            out_ref[...] = jnp.where(own, value, before).astype(dtype)

    if not scratch:

        @pl.when(group < groups)
        def _step():
            store(product())

    else:
        (sum_ref,) = scratch

        @pl.when((group < groups) & (k == 0))
        def _first():
            sum_ref[...] = product()

        @pl.when((group < groups) & (k > 0))
        def _next():
            sum_ref[...] += product()

        @pl.when((group < groups) & (k == last))
        def _store():
            store(sum_ref[...])

    @pl.when((group == groups) & (k == last))
    def _rest():
        store(jnp.zeros(out_ref.shape, jnp.promote_types(dtype, jnp.float32)))


def tpu_outer(
    lhs: Float[Array, "m k"],
    rows: Float[Array, "m n"],
    group_sizes: Int[Array, " g"],
    *,
    tiles: tuple[int, int, int] | None = None,
    interpret: Any = False,
) -> Float[Array, "g k n"]:
    """Per group the sum over its rows of lhs[m] rows[m]^T, in the dtype of `rows`."""
    _check(lhs.dtype, interpret)
    (num_rows, left), right = lhs.shape, rows.shape[1]
    groups = len(group_sizes)
    if not num_rows:
        return jnp.zeros((groups, left, right), rows.dtype)
    bm, bk, bn = tiles or _outer_tiles(num_rows, left, right, groups, lhs.dtype.itemsize)
    steps = tile_steps(group_sizes, num_rows, bm, empty=True)
    accumulator = jnp.promote_types(lhs.dtype, jnp.float32)
    return pl.pallas_call(
        partial(_outer_kernel, groups=groups),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(-(-right // bn), -(-left // bk), steps.used),
            in_specs=[
                pl.BlockSpec((bm, bk), lambda n, k, step, group, block, *_: (block[step], k)),
                pl.BlockSpec((bm, bn), lambda n, k, step, group, block, *_: (block[step], n)),
            ],
            out_specs=pl.BlockSpec((None, bk, bn), lambda n, k, step, group, *_: (group[step], k, n)),
            scratch_shapes=[pltpu.VMEM((bk, bn), accumulator)],
        ),
        out_shape=jax.ShapeDtypeStruct((groups, left, right), rows.dtype),
        compiler_params=_compiler_params(("parallel", "arbitrary", "arbitrary")),
        cost_estimate=_cost(lhs, rows, groups * left * right, num_rows, left, right),
        interpret=interpret,
        name="grouped_matmul_outer",
    )(steps.group, steps.block, steps.first, steps.end, lhs, rows)


def _outer_kernel(
    group_ref,  # [S] in scalar memory, as the next three
    block_ref,
    first_ref,  # [G]
    end_ref,
    lhs_ref,  # [m, k]
    rows_ref,  # [m, n]
    out_ref,  # [k, n]
    sum_ref,  # [k, n]
    *,
    groups: int,
):
    step, last = pl.program_id(2), pl.num_programs(2) - 1
    group, block = group_ref[step], block_ref[step]
    count = lhs_ref.shape[0]
    first, end = first_ref[group], end_ref[group]

    @pl.when((step == 0) | (group_ref[jnp.maximum(step - 1, 0)] != group))
    def _new_group():
        sum_ref[...] = jnp.zeros_like(sum_ref)

    whole = (first <= block * count) & (end >= (block + 1) * count)

    @pl.when(whole)
    def _all_rows():
        sum_ref[...] += _dot(lhs_ref[...], rows_ref[...], (0, 0))

    @pl.when(~whole & (end > first))
    def _own_rows():
        row = block * count + jax.lax.broadcasted_iota(jnp.int32, (count, 1), 0)
        own = (row >= first) & (row < end)
        sum_ref[...] += _dot(jnp.where(own, lhs_ref[...], 0), jnp.where(own, rows_ref[...], 0), (0, 0))

    @pl.when((step == last) | (group_ref[jnp.minimum(step + 1, last)] != group))
    def _group_is_complete():
        out_ref[...] = sum_ref[...].astype(out_ref.dtype)


def _dot(left: Array, right: Array, contracted: tuple[int, int]) -> Array:
    accumulator = jnp.promote_types(left.dtype, jnp.float32)
    precision = jax.lax.Precision.HIGHEST if left.dtype == accumulator else None
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=accumulator)


def _check(dtype, interpret) -> None:
    if not interpret and dtype not in (jnp.bfloat16, jnp.float32):
        raise NotImplementedError(f"grouped matmul 'pallas_tpu' takes bfloat16 and float32, not {dtype}")


def _compiler_params(semantics: tuple[str, ...]) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=semantics,  # type: ignore[arg-type]
        vmem_limit_bytes=vmem_capacity() * 7 // 8,
    )


def _cost(first: Array, second: Array, result: int, m: int, k: int, n: int) -> pl.CostEstimate:
    """2 M K N FLOPs, whatever the group sizes; each array once."""
    size = first.dtype.itemsize
    return pl.CostEstimate(
        flops=2 * m * k * n, transcendentals=0, bytes_accessed=size * (first.size + second.size + result)
    )


def _side(size: int, most: int) -> int:
    """`size` where it is at most `most`, else its largest divisor above most / 2 (a multiple of 128), else `most`."""
    divisors = [part for part in range(_LANES, most + 1, _LANES) if size % part == 0 and 2 * part > most]
    return size if size <= most else max(divisors, default=most)


def _tiles(m: int, k: int, n: int, groups: int, itemsize: int) -> tuple[int, int, int]:
    """Rows, K and N of a step of `tpu_product`. With all of K a matrix is read once, not for every tile of rows."""
    return _rows(m, groups), _side(k, (8192 if _is_large() else 4096) // itemsize), _side(n, 2048 // itemsize)


def _outer_tiles(m: int, k: int, n: int, groups: int, itemsize: int) -> tuple[int, int, int]:
    """Rows, K and N of a step of `tpu_outer`."""
    return _rows(m, groups), _side(k, (4096 if _is_large() else 2048) // itemsize), _side(n, 1024)


def _rows(m: int, groups: int) -> int:
    """Rows of a tile. A group that ends within a tile costs one more tile: so tiles are smaller where groups are.
    With 128 rows the matrix units wait more (v6e: 1.4 bundles for an ideal one, with 256 rows 1.2; v5p: the same)."""
    return min(256 if m >= 512 * groups else 128, -(-m // _SUBLANES) * _SUBLANES)


def _is_large() -> bool:
    """Whether vector memory holds more than v4's 16 MiB."""
    return vmem_capacity() >= 32 << 20
