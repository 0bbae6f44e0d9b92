"""Layer normalisation with scale and bias."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.nn.execution import Execution
from zoo.nn.parameters import parameter


class LayerNorm(nnx.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * scale + bias over the last axis, in float32, returned in x's dtype."""

    def __init__(self, dim: int, *, eps: float, execution: Execution, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = parameter(rngs, (dim,), ("norm",), jax.nn.initializers.ones, execution.weight_dtype)
        self.bias = parameter(rngs, (dim,), ("norm",), jax.nn.initializers.zeros, execution.weight_dtype)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return _layer_norm(x, self.scale[...], self.bias[...], self.eps)


@partial(jax.checkpoint, static_argnums=3)
def _layer_norm(
    x: Float[Array, "... d"], scale: Float[Array, "d"], bias: Float[Array, "d"], eps: float
) -> Float[Array, "... d"]:
    """Keeps x alone for the backward pass, not the arrays between x and the result."""
    centred = x.astype(jnp.float32)
    centred = centred - jnp.mean(centred, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)
