"""Root-mean-square normalisation, with a scale around zero (Gemma) or around one."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.nn.execution import Execution
from zoo.nn.parameters import parameter


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * (1 + scale) over the last axis, in float32, returned in x's dtype.

    With `zero_centred=False` the factor is `scale` itself, which starts at one (Mixtral, Qwen3, gpt-oss, Gemma 3n).
    """

    def __init__(self, dim: int, *, eps: float, zero_centred: bool = True, execution: Execution, rngs: nnx.Rngs):
        self.eps, self.zero_centred = eps, zero_centred
        initializer = jax.nn.initializers.zeros if zero_centred else jax.nn.initializers.ones
        self.scale = parameter(rngs, (dim,), ("norm",), initializer, execution.weight_dtype)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return _rms_norm(x, self.scale[...], self.eps, self.zero_centred)


@partial(jax.checkpoint, static_argnums=(2, 3))
def _rms_norm(x: Float[Array, "... d"], scale: Float[Array, "d"], eps: float, centred: bool) -> Float[Array, "... d"]:
    """Keeps x alone for the backward pass, not the arrays between x and the result."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    factor = scale.astype(jnp.float32)
    return (normed * (1 + factor if centred else factor)).astype(x.dtype)
