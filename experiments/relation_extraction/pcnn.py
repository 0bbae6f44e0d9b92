"""PCNN, the sentence encoder before BERT (Zeng et al., EMNLP 2015): convolution and three pools.

    q_t = [word(w_t); position(t - head); position(t - tail)]
    c_t = F [q_t-1; q_t; q_t+1] + f
    x = tanh([max c_t, t <= p1; max c_t, p1 < t <= p2; max c_t, t > p2]),    p1 <= p2 the places of the two mentions

A piece without tokens is 0 before the tanh. The vectors go into the heads of `bag_heads`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from zoo.nn import Execution
from zoo.nn.parameters import fan_in_normal, parameter, precision_of


@dataclass(frozen=True)
class PcnnConfig:
    """Sizes; the widths and the window are those commonly used since Lin et al. (ACL 2016), from memory."""

    vocab_size: int
    """Words or pieces."""
    word_dim: int = 50
    """Width of a word."""
    position_dim: int = 5
    """Width of each of the two places."""
    filters: int = 230
    """Width of a piece; a sentence's vector is three times as wide."""
    window: int = 3
    """Tokens that a filter sees, odd."""
    max_distance: int = 60
    """Larger distances to a mention count as this one."""

    def __post_init__(self):
        if self.window % 2 == 0:
            raise ValueError(f"window must be odd, got {self.window}")


class Pcnn(nnx.Module):
    """Tokens to one vector for each row."""

    def __init__(self, config: PcnnConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        dtype, normal = (execution or Execution()).weight_dtype, jax.nn.initializers.normal
        width = config.word_dim + 2 * config.position_dim
        self.config = config
        self.word = parameter(rngs, (config.vocab_size, config.word_dim), ("vocab", "embed"), normal(0.1), dtype)
        shape = (2, 2 * config.max_distance + 1, config.position_dim)
        self.position = parameter(rngs, shape, (None, None, None), normal(0.1), dtype)
        shape = (config.window, width, config.filters)
        self.kernel = parameter(rngs, shape, (None, None, None), fan_in_normal(config.window * width), dtype)
        self.bias = parameter(rngs, (config.filters,), (None,), jax.nn.initializers.zeros, dtype)

    @property
    def width(self) -> int:
        """Of a sentence's vector."""
        return 3 * self.config.filters

    def __call__(
        self, tokens: Int[Array, "n t"], places: Int[Array, "n 2"], visible: Bool[Array, "n t"]
    ) -> Float[Array, "n e"]:
        """x of every row.

        Args:
          places: of head and tail (their first token).
          visible: False at padding, which stands after the tokens.
        """
        far = self.config.max_distance
        at = jnp.arange(tokens.shape[1])
        distance = jnp.clip(at[None, :, None] - places[:, None, :], -far, far) + far
        parts = [
            self.word[...][tokens],
            self.position[...][0][distance[..., 0]],
            self.position[...][1][distance[..., 1]],
        ]
        inputs = jnp.where(visible[..., None], jnp.concatenate(parts, axis=-1), 0)
        convolved = jax.lax.conv_general_dilated(
            inputs, self.kernel[...], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"),
            precision=precision_of(inputs.dtype),
        ) + self.bias[...]  # fmt: skip
        first, second = places.min(1)[:, None], places.max(1)[:, None]
        pieces = [at <= first, (at > first) & (at <= second), at > second]
        pooled = [_largest(convolved, piece & visible) for piece in pieces]
        return jnp.tanh(jnp.concatenate(pooled, axis=-1))


def _largest(values: Float[Array, "n t f"], within: Bool[Array, "n t"]) -> Float[Array, "n f"]:
    """Maximum over the tokens of a piece, 0 where it has none."""
    found = jnp.max(jnp.where(within[..., None], values, -jnp.inf), axis=1)
    return jnp.where(within.any(1, keepdims=True), found, 0)
