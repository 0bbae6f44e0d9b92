"""Root-mean-square normalisation with a zero-centred scale."""

from functools import partial

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
        return _rms_norm(x, self.scale[...], self.eps)


@partial(jax.checkpoint, static_argnums=2)
def _rms_norm(x: Float[Array, "... d"], scale: Float[Array, "d"], eps: float) -> Float[Array, "... d"]:
    """Keeps x alone for the backward pass, not the arrays between x and the result."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (normed * (1 + scale.astype(jnp.float32))).astype(x.dtype)
