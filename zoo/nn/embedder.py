"""Token embedding, tied with the output head."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.nn.execution import Execution
from zoo.nn.parameters import fan_in_normal, parameter


class Embedder(nnx.Module):
    """x = E[token] * sqrt(D) on the way in, h . E^T on the way out.

    The normaliser is rounded to the compute dtype first, as the released weights were trained (bf16: 48, 59.75, 68).
    """

    def __init__(self, vocab_size: int, embed_dim: int, *, execution: Execution, rngs: nnx.Rngs):
        self.dtype = execution.dtype
        self.embedding = parameter(
            rngs, (vocab_size, embed_dim), ("vocab", "embed"), fan_in_normal(embed_dim), execution.weight_dtype
        )

    def encode(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Scaled embeddings in the compute dtype."""
        rows = jnp.take(self.embedding[...], tokens, axis=0).astype(self.dtype)
        return rows * jnp.asarray(math.sqrt(rows.shape[-1]), self.dtype)

    def decode(self, hidden: Float[Array, "b t d"], soft_cap: float | None) -> Float[Array, "b t v"]:
        """float32 logits c * tanh(h . E^T / c); c = None: h . E^T."""
        embedding = self.embedding[...].astype(hidden.dtype)
        precision = jax.lax.Precision.HIGHEST if hidden.dtype == jnp.float32 else None
        flat = jnp.einsum(
            "id,vd->iv",
            hidden.reshape(-1, hidden.shape[-1]),
            embedding,
            preferred_element_type=jnp.float32,
            precision=precision,
        )
        logits = flat.reshape(*hidden.shape[:-1], -1)
        return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
