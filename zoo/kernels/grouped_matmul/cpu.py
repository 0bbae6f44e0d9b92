"""The grouped products on CPU: group after group, in plain products of blocks of rows.

A loop over the groups that have rows; within it, loops over blocks of 512 rows, then of 256, 128, ... so that every row
is in one block and only the last block of a group, of 32 rows, is masked. Block after block reads and writes rows in
place: no row is moved or padded, and the work is that of a dense product of as many rows. What was slower: a batched
product of padded blocks with copies of their matrices (0.5x of this), blocks of one size with a matrix each (0.9x),
`jax.lax.ragged_dot`, which multiplies all rows with all matrices here (0.12x at 8 groups).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

ROWS = (512, 256, 128, 64, 32)
"""Rows of a block; smaller ones take over where larger ones do not fit."""

OUTER_ROWS = (1024, 512, 256, 128, 64)
"""As `ROWS`, for gradients of matrices: every block reads and writes the sum of a whole matrix."""


def cpu_product(
    lhs: Float[Array, "m k"], rhs: Float[Array, "g k n"], group_sizes: Int[Array, " g"], *, transposed: bool = False
) -> Float[Array, "m n"]:
    """See `grouped_matmul`; transposed: the matrices are [G, N, K]."""
    wide = jnp.promote_types(lhs.dtype, jnp.float32)

    def group(out, number, first, size):
        matrix = lax.dynamic_index_in_dim(rhs, number, keepdims=False).astype(wide)
        matrix = matrix.T if transposed else matrix

        def block(out, rows, at, own):
            x = lax.dynamic_slice_in_dim(lhs, at, rows).astype(wide)
            y = jnp.matmul(x, matrix, precision=lax.Precision.HIGHEST).astype(lhs.dtype)
            if own is not None:
                y = jnp.where(own, y, lax.dynamic_slice_in_dim(out, at, rows))
            return lax.dynamic_update_slice_in_dim(out, y, at, 0)

        return _each_block(out, first, size, len(lhs), ROWS, block)

    out = jnp.zeros((len(lhs), rhs.shape[1 if transposed else 2]), lhs.dtype)
    return _each_group(out, group_sizes, group) if len(lhs) else out


def cpu_outer(
    lhs: Float[Array, "m k"], rows: Float[Array, "m n"], group_sizes: Int[Array, " g"]
) -> Float[Array, "g k n"]:
    """Per group the sum over its rows of lhs[m] rows[m]^T."""
    wide = jnp.promote_types(lhs.dtype, jnp.float32)

    def group(out, number, first, size):
        def block(total, count, at, own):
            left, right = (lax.dynamic_slice_in_dim(x, at, count).astype(wide) for x in (lhs, rows))
            if own is not None:
                left, right = jnp.where(own, left, 0), jnp.where(own, right, 0)
            return total + jnp.matmul(left.T, right, precision=lax.Precision.HIGHEST)

        total = _each_block(jnp.zeros(out.shape[1:], wide), first, size, len(lhs), OUTER_ROWS, block)
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
