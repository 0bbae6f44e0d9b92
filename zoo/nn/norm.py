"""Root-mean-square normalisation with a zero-centred scale."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.nn.execution import Execution
from zoo.nn.parameters import parameter


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * (1 + scale) over the last axis, in float32, returned in x's dtype."""

    def __init__(self, dim: int, *, eps: float, execution: Execution, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = parameter(rngs, (dim,), ("norm",), jax.nn.initializers.zeros, execution.weight_dtype)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (normed * (1 + self.scale[...].astype(jnp.float32))).astype(x.dtype)
