"""The grouped products written densely: the specification, every row with every matrix."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def reference_product(
    lhs: Float[Array, "m k"], rhs: Float[Array, "g k n"], group_sizes: Int[Array, " g"], *, transposed: bool = False
) -> Float[Array, "m n"]:
    """See `grouped_matmul`; transposed: the matrices are [G, N, K]."""
    wide = jnp.promote_types(lhs.dtype, jnp.float32)
    equation = "mg,mk,gnk->mn" if transposed else "mg,mk,gkn->mn"
    belongs = _belongs(len(lhs), group_sizes).astype(wide)
    # A row of no group may hold anything, NaN too.
    lhs = jnp.where(belongs.any(1, keepdims=True), lhs, 0)
    product = jnp.einsum(equation, belongs, lhs.astype(wide), rhs.astype(wide), precision=jax.lax.Precision.HIGHEST)
    return product.astype(lhs.dtype)


def reference_outer(
    lhs: Float[Array, "m k"], rows: Float[Array, "m n"], group_sizes: Int[Array, " g"]
) -> Float[Array, "g k n"]:
    """Per group the sum over its rows of lhs[m] rows[m]^T."""
    wide = jnp.promote_types(lhs.dtype, jnp.float32)
    belongs = _belongs(len(lhs), group_sizes)
    lhs, rows = (jnp.where(belongs.any(1, keepdims=True), x, 0).astype(wide) for x in (lhs, rows))
    outer = jnp.einsum("mg,mk,mn->gkn", belongs.astype(wide), lhs, rows, precision=jax.lax.Precision.HIGHEST)
    return outer.astype(rows.dtype)


def _belongs(num_rows: int, group_sizes: Int[Array, " g"]) -> Array:
    """bool [M, G]: whether the row is one of the group's."""
    ends = jnp.cumsum(group_sizes)
    row = jnp.arange(num_rows)[:, None]
    return (row >= ends - group_sizes) & (row < ends)
