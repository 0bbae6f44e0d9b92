"""From the outputs of a media encoder to tokens of the residual stream."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.nn.execution import Execution
from zoo.nn.norm import RMSNorm
from zoo.nn.parameters import fan_in_normal, parameter, project


class SoftTokenProjector(nnx.Module):
    """norm(mean of `pooled` neighbours) . W: the encoder's width to the decoder's, at the scale of word embeddings.

    Pool, norm and one matrix, as in Gemma 3's projector (transformers, Gemma3MultiModalProjector).
    """

    def __init__(self, width: int, embed_dim: int, *, pooled: int, eps: float, execution: Execution, rngs: nnx.Rngs):
        self.pooled = pooled
        self.norm = RMSNorm(width, eps=eps, execution=execution, rngs=rngs)
        self.kernel = parameter(rngs, (width, embed_dim), (None, None), fan_in_normal(width), execution.weight_dtype)

    def __call__(self, encoded: Float[Array, "b n w"]) -> Float[Array, "b s d"]:
        """Soft token s from the outputs s * pooled .. (s + 1) * pooled - 1."""
        batch, count, width = encoded.shape
        groups = encoded.reshape(batch, count // self.pooled, self.pooled, width)
        return project("bsw,wd->bsd", self.norm(groups.mean(axis=2)), self.kernel[...])


def place_soft_tokens(
    x: Float[Array, "b t d"], soft: Float[Array, "b s d"], slots: Int[Array, "b t"]
) -> Float[Array, "b t d"]:
    """x with soft token slots[b, t] of its row at each position where that is not -1."""
    rows = jnp.take_along_axis(soft, jnp.maximum(slots, 0)[..., None], axis=1)
    return jnp.where((slots >= 0)[..., None], rows.astype(x.dtype), x)
