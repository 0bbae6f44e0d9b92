"""Parameters declared once: shape, initializer and logical axes. Matrix products that read like their einsum string."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.kernels.platform import target_platform
from zoo.nn.lora import LoraWeight, gated
from zoo.nn.packed import PackedWeight, packed_product


def parameter(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], initializer, dtype) -> nnx.Param:
    """A parameter with logical axis names, one per dimension; `zoo.parallel` maps them to mesh axes."""
    if len(shape) != len(axes):
        raise ValueError(f"shape {shape} and axes {axes} differ in length")
    return nnx.Param(initializer(rngs.params(), shape, jnp.float32).astype(dtype), axes=axes)


def fan_in_normal(fan_in: int):
    """Normal initializer with standard deviation 1 / sqrt(fan_in)."""
    return jax.nn.initializers.normal(1 / math.sqrt(fan_in))


def project(equation: str, inputs: Array, weight: Array | PackedWeight | LoraWeight) -> Float[Array, "..."]:
    """einsum of activations with a weight, e.g. ``project("btd,dnh->btnh", x, w)``; result in the dtype of `inputs`.

    The last axes of `inputs` are contracted with the first of `weight`. On CPU it is computed as one
    [tokens, in] @ [in, out] product: a weight gradient that contracts two token axes leaves XLA:CPU's fast matrix
    multiplication (2.6x). Packed weights (`zoo.nn.packed`) are unpacked a part at a time; those with a low-rank change
    (`zoo.nn.lora`) are multiplied in three products.
    """
    operands, result = equation.split("->")
    left, right = operands.split(",")
    contracted = "".join(axis for axis in left if axis in right)
    if (
        not (left.endswith(contracted) and right.startswith(contracted))
        or result != left[: -len(contracted)] + right[len(contracted) :]
    ):
        raise ValueError(f"{equation!r}: need the last input axes contracted with the first weight axes")
    if isinstance(weight, LoraWeight):
        lead, out = left[: -len(contracted)], right[len(contracted) :]
        low = project(f"{left},{contracted}R->{lead}R", weight.inputs(inputs), weight.a)
        changed = project(f"{lead}R,R{out}->{result}", gated(low, weight.gate), weight.b)
        return project(equation, inputs, weight.weight) + changed
    if isinstance(weight, PackedWeight):
        if weight.is_table or len(weight.contracted) != len(contracted):
            raise ValueError(f"{equation!r} does not contract the axes {weight.contracted} that were packed")
        rows = inputs.reshape(-1, math.prod(weight.contracted))
        product = packed_product(rows, weight, dtype=inputs.dtype, precision=precision_of(inputs.dtype))
        return product.reshape(*inputs.shape[: -len(contracted)], *weight.out)
    if target_platform() != "cpu":
        return jnp.einsum(equation, inputs, weight.astype(inputs.dtype), precision=precision_of(inputs.dtype))
    lead, fan_in = inputs.shape[: -len(contracted)], math.prod(weight.shape[: len(contracted)])
    precision = precision_of(inputs.dtype)
    rows, matrix = inputs.reshape(-1, fan_in), weight.astype(inputs.dtype).reshape(fan_in, -1)
    parts = _parts_of_few_rows(len(rows), *matrix.shape)
    if parts > 1:
        pieces = rows.reshape(len(rows), parts, -1).swapaxes(0, 1)
        flat = jnp.matmul(pieces, matrix.reshape(parts, -1, matrix.shape[1]), precision=precision).sum(0)
    else:
        flat = jnp.matmul(rows, matrix, precision=precision)
    return flat.reshape(*lead, *weight.shape[len(contracted) :])


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Of a product of such operands: float32 ones are not rounded to bfloat16 first."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def _parts_of_few_rows(rows: int, fan_in: int, fan_out: int) -> int:
    """Parts into which XLA:CPU likes the contraction of a few rows split: [8, 512] x [512, 2048] takes 0.75 of the time
    and [8, 2048] x [2048, 512] 0.65 of it in parts of 64, while outputs above 64 kB take longer (measured)."""
    few = 1 < rows <= 16 and rows * fan_out <= 16_384 and fan_in % 64 == 0
    return fan_in // 64 if few else 1
