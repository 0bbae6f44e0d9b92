"""The choice of the next token from a model's logits: greedy, temperature, top-k, top-p (nucleus)."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from zoo.errors import UserError

SMALLEST_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: softmax(logits / temperature), cut to the top_k most probable, then the top_p nucleus."""

    temperature: float = 0.0
    """0 = greedy (the most probable token, the lowest id of several); 1 = the model's own distribution."""
    top_k: int | None = None
    """Keep the K most probable tokens; None = all."""
    top_p: float | None = None
    """Keep the fewest most probable tokens whose probabilities (after top-k) sum to at least P; None = all."""

    def __post_init__(self):
        temperature = self.temperature
        if not math.isfinite(temperature) or (temperature != 0 and temperature < SMALLEST_TEMPERATURE):
            raise UserError(f"temperature must be 0 (greedy) or at least {SMALLEST_TEMPERATURE:g}, got {temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top-p must lie in (0, 1], got {self.top_p}")


def sample(logits: Float[Array, "b v"], keys: Key[Array, "b"] | None, sampling: Sampling) -> Int[Array, "b"]:
    """One token id per row, int32.

    Each row is drawn with its own key, so a row's token does not depend on the rows beside it. `keys` may be None for
    greedy sampling, which draws nothing. The nucleus contains the token that crosses top_p (Holtzman et al. 2020).
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    vocab_size = logits.shape[-1]
    # The maximum is subtracted first: a tiny temperature must not overflow.
    if keys is None:
        raise ValueError("sampling with a temperature needs a key per row")
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)).astype(jnp.float32) / sampling.temperature
    if sampling.top_k is None and sampling.top_p is None:
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    kept, ids = jax.lax.top_k(logits, min(sampling.top_k or vocab_size, vocab_size))
    if sampling.top_p is not None and sampling.top_p < 1:
        probabilities = jax.nn.softmax(kept, axis=-1)
        mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # The first token stays whatever rounding does.
        inside = (mass_before < sampling.top_p).at[:, 0].set(True)
        kept = jnp.where(inside, kept, -jnp.inf)
    choice = jax.vmap(jax.random.categorical)(keys, kept)
    return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)
