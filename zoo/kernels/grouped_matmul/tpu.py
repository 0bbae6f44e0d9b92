"""The grouped products on TPU: XLA's ragged products, which its TPU compiler lowers to grouped kernels of its own."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def tpu_product(
    lhs: Float[Array, "m k"], rhs: Float[Array, "g k n"], group_sizes: Int[Array, " g"], *, transposed: bool = False
) -> Float[Array, "m n"]:
    """See `grouped_matmul`."""
    contracted = 2 if transposed else 1
    return _ragged(lhs, rhs, group_sizes, (((1,), (contracted,)), ((), ())), lhs.dtype, rhs_group_dimensions=(0,))


def tpu_outer(
    lhs: Float[Array, "m k"], rows: Float[Array, "m n"], group_sizes: Int[Array, " g"]
) -> Float[Array, "g k n"]:
    """Per group the sum over its rows of lhs[m] rows[m]^T."""
    return _ragged(lhs, rows, group_sizes, (((0,), (0,)), ((), ())), rows.dtype, rhs_group_dimensions=())


def _ragged(lhs, rhs, group_sizes, contraction, dtype, *, rhs_group_dimensions):
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=contraction, lhs_ragged_dimensions=(0,), rhs_group_dimensions=rhs_group_dimensions
    )
    precision = jax.lax.Precision.HIGHEST if lhs.dtype == jnp.float32 else None
    product = jax.lax.ragged_dot_general(
        lhs, rhs, group_sizes, numbers, precision=precision, preferred_element_type=jnp.float32
    )
    return product.astype(dtype)
