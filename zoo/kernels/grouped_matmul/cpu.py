"""The grouped products on CPU: group after group, in plain products of blocks of rows.

A loop over the groups that have rows; within it, loops over blocks of 512 rows, then of fewer and fewer, so that every
row is in one block and only the last block of a group, of 32 rows, is masked. Block after block reads and writes rows
in place: no row is moved or padded, and the work is that of a dense product of as many rows. What was slower: a batched
product of padded blocks with copies of their matrices (0.5x of this), blocks of one size with a matrix each (0.9x),
`jax.lax.ragged_dot`, which multiplies all rows with all matrices here (0.12x at 8 groups), a `switch` over the sizes of
blocks (0.7x: XLA:CPU copies all rows for a branch, and runs its element-wise work on one thread).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

ROWS = (512, 256, 128, 64, 32)
"""Rows of a block; smaller ones take over where larger ones do not fit."""

OUTER_ROWS = (1024, 512, 256, 128, 64)
"""As `ROWS`, for gradients of matrices: every block reads and writes the sum of a whole matrix."""

LARGE = 2**18
"""Elements of a matrix from which on `MANY_ROWS` are worth their loops."""

MANY_ROWS = (1024, 896, 768, 640, 512, 448, 384, 320, 256, 192, 128, 64, 32)
"""As `ROWS`, for large matrices: most groups are two blocks. A block packs its matrix anew, which takes as long as 17
rows of 512 x 1792 (measured), and a small matrix less than the loops that find nothing to do."""


def cpu_product(
    lhs: Float[Array, "m k"], rhs: Float[Array, "g k n"], group_sizes: Int[Array, " g"], *, transposed: bool = False
) -> Float[Array, "m n"]:
    """See `grouped_matmul`; transposed: the matrices are [G, N, K]."""
    wide = jnp.promote_types(lhs.dtype, jnp.float32)
    # Contracted as it lies: of `matrix.T`, XLA:CPU writes a copy for every group, and another one for every block.
    contracted = (((1,), (1 if transposed else 0,)), ((), ()))
    sizes = MANY_ROWS if rhs.shape[1] * rhs.shape[2] >= LARGE else ROWS

    def group(out, number, first, size):
        matrix = lax.dynamic_index_in_dim(rhs, number, keepdims=False).astype(wide)

        def block(out, rows, at, own):
            x = lax.dynamic_slice_in_dim(lhs, at, rows).astype(wide)
            y = lax.dot_general(x, matrix, contracted, precision=lax.Precision.HIGHEST).astype(lhs.dtype)
            if own is not None:
                y = jnp.where(own, y, lax.dynamic_slice_in_dim(out, at, rows))
            return lax.dynamic_update_slice_in_dim(out, y, at, 0)

        return _each_block(out, first, size, len(lhs), sizes, block)

    out = jnp.zeros((len(lhs), rhs.shape[1 if transposed else 2]), lhs.dtype)
    return _each_group(out, group_sizes, group) if len(lhs) else out


def cpu_outer(
    lhs: Float[Array, "m k"], rows: Float[Array, "m n"], group_sizes: Int[Array, " g"]
) -> Float[Array, "g k n"]:
    """Per group the sum over its rows of lhs[m] rows[m]^T."""
    wide = jnp.promote_types(lhs.dtype, jnp.float32)
    sizes = MANY_ROWS[:-1] if lhs.shape[1] * rows.shape[1] >= LARGE else OUTER_ROWS

    def group(out, number, first, size):
        def block(total, count, at, own):
            left, right = (lax.dynamic_slice_in_dim(x, at, count).astype(wide) for x in (lhs, rows))
            if own is not None:
                left, right = jnp.where(own, left, 0), jnp.where(own, right, 0)
            return total + jnp.matmul(left.T, right, precision=lax.Precision.HIGHEST)

        total = _each_block(jnp.zeros(out.shape[1:], wide), first, size, len(lhs), sizes, block)
        return lax.dynamic_update_index_in_dim(out, total.astype(out.dtype), number, 0)

    out = jnp.zeros((len(group_sizes), lhs.shape[1], rows.shape[1]), rows.dtype)
    return _each_group(out, group_sizes, group) if len(lhs) else out


def _each_group(carry: Array, group_sizes: Int[Array, " g"], body: Callable) -> Array:
    """carry = body(carry, number of the group, its first row, its rows), for every group that has rows."""
    first = jnp.cumsum(group_sizes) - group_sizes
    held = group_sizes > 0
    numbers = jnp.argsort(~held, stable=True)

    def step(index, carry):
        number = numbers[index]
        return body(carry, number, first[number], group_sizes[number])

    return lax.fori_loop(0, held.sum(), step, carry)


def _each_block(
    carry: Array, first: Array, size: Array, num_rows: int, sizes: tuple[int, ...], body: Callable
) -> Array:
    """carry = body(carry, rows of the block, its first row, mask [rows, 1]), for blocks that cover a group's rows.

    The mask is None in all but the last block, which may hold rows of other groups.
    """
    sizes = tuple(rows for rows in sizes if rows <= num_rows) or (num_rows,)
    end = first + size
    for rows in sizes:
        last = rows == sizes[-1]
        count = -(-(end - first) // rows) if last else (end - first) // rows

        def step(index, carry, rows=rows, last=last, first=first):
            wanted = first + index * rows
            at = jnp.minimum(wanted, num_rows - rows) if last else wanted
            row = at + jnp.arange(rows)[:, None]
            return body(carry, rows, at, (row >= wanted) & (row < end) if last else None)

        carry = lax.fori_loop(0, count, step, carry)
        first = first + count * rows
    return carry
