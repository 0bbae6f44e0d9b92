"""Parameters declared once: shape, initializer and logical axes. Matrix products that read like their einsum string."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def parameter(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], initializer, dtype) -> nnx.Param:
    """A parameter with logical axis names, one per dimension; `zoo.parallel` maps them to mesh axes."""
    if len(shape) != len(axes):
        raise ValueError(f"shape {shape} and axes {axes} differ in length")
    return nnx.Param(initializer(rngs.params(), shape, jnp.float32).astype(dtype), axes=axes)


def fan_in_normal(fan_in: int):
    """Normal initializer with standard deviation 1 / sqrt(fan_in)."""
    return jax.nn.initializers.normal(1 / math.sqrt(fan_in))


def project(equation: str, inputs: Array, weight: Array) -> Float[Array, "..."]:
    """einsum of activations with a weight, e.g. ``project("btd,dnh->btnh", x, w)``; result in the dtype of `inputs`.

    The last axes of `inputs` are contracted with the first of `weight`. Computed as one [tokens, in] @ [in, out]
    product: a weight gradient that contracts two token axes leaves XLA:CPU's fast matrix multiplication (2.6x).
    """
    operands, result = equation.split("->")
    left, right = operands.split(",")
    contracted = "".join(axis for axis in left if axis in right)
    if (
        not (left.endswith(contracted) and right.startswith(contracted))
        or result != left[: -len(contracted)] + right[len(contracted) :]
    ):
        raise ValueError(f"{equation!r}: need the last input axes contracted with the first weight axes")
    lead, fan_in = inputs.shape[: -len(contracted)], math.prod(weight.shape[: len(contracted)])
    precision = jax.lax.Precision.HIGHEST if inputs.dtype == jnp.float32 else None
    flat = jnp.matmul(inputs.reshape(-1, fan_in), weight.astype(inputs.dtype).reshape(fan_in, -1), precision=precision)
    return flat.reshape(*lead, *weight.shape[len(contracted) :])
