"""Rotary position embedding, half-split layout (the first half of a head is rotated against the second)."""

import math
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.errors import UserError


def _check_positive(scaling: Any) -> None:
    """Raises `UserError` for a field that is no number above zero, None and switches apart."""
    for field in fields(scaling):
        value = getattr(scaling, field.name)
        if value is not None and not isinstance(value, bool) and not value > 0:
            raise UserError(f"rope_scaling.{field.name} must be positive, got {value}")


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (arXiv 2306.15595, section 2.3): all frequencies, and so all positions, are divided by
    `factor`. As config.json's rope_type "linear"."""

    factor: float
    """How many times longer the context is than it was in pre-training."""

    def __post_init__(self):
        _check_positive(self)

    @property
    def magnitude(self) -> float:
        """Factor of sine and cosine."""
        return 1.0

    def frequencies(self, powers: np.ndarray, head_dim: int, theta: float) -> np.ndarray:
        """The frequencies float32 [head_dim / 2] in place of 1 / powers."""
        return 1 / (np.float32(self.factor) * powers)


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's scaling, config.json's rope_type "llama3" (from Meta's public code; its report has only the base).

    With n = original_max_position_embeddings * f / (2 pi), the turns of a frequency f within the original context, and
    s = (n - low) / (high - low) cut to 0 .. 1, the frequency becomes s f + (1 - s) f / factor.
    """

    factor: float
    """How many times longer the context is than it was in pre-training; 8 in Llama 3.1."""
    original_max_position_embeddings: int
    """Context length of pre-training; 8192 in Llama 3.1."""
    low_freq_factor: float = 1.0
    """Frequencies of at most so many turns are divided by the factor."""
    high_freq_factor: float = 4.0
    """Frequencies of at least so many turns stay."""

    def __post_init__(self):
        _check_positive(self)
        if not self.low_freq_factor < self.high_freq_factor:
            raise UserError(
                f"rope_scaling.high_freq_factor must be above low_freq_factor = {self.low_freq_factor}, got "
                f"{self.high_freq_factor}"
            )

    @property
    def magnitude(self) -> float:
        """Factor of sine and cosine."""
        return 1.0

    def frequencies(self, powers: np.ndarray, head_dim: int, theta: float) -> np.ndarray:
        """The frequencies float32 [head_dim / 2] in place of 1 / powers."""
        turns = self.original_max_position_embeddings / (2 * math.pi * powers.astype(np.float64))
        kept = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return ((kept + (1 - kept) / self.factor) / powers).astype(np.float32)


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071, section 3.2): low frequencies are divided by `factor`, high ones stay, a ramp between.

    With r(d) = head_dim * log(original / (2 pi d)) / (2 log theta) the ramp over the index of the frequency begins at
    r(beta_fast) and ends at r(beta_slow).
    """

    factor: float
    """How many times longer the context is than it was in pre-training."""
    original_max_position_embeddings: int
    """Context length of pre-training."""
    beta_fast: float = 32.0
    """Frequencies of more turns than this within the original context stay."""
    beta_slow: float = 1.0
    """Frequencies of fewer turns than this are divided by the factor."""
    truncate: bool = True
    """Whether the ramp begins and ends at whole indices (gpt-oss: not)."""
    attention_factor: float | None = None
    """Factor of sine and cosine, whose square multiplies the scores; None = 0.1 log(factor) + 1."""

    def __post_init__(self):
        _check_positive(self)

    @property
    def magnitude(self) -> float:
        """Factor of sine and cosine."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def frequencies(self, powers: np.ndarray, head_dim: int, theta: float) -> np.ndarray:
        """The frequencies float32 [head_dim / 2] in place of 1 / powers."""

        def index(turns: float) -> float:
            reach = self.original_max_position_embeddings / (turns * 2 * math.pi)
            return head_dim * math.log(reach) / (2 * math.log(theta))

        low, high = index(self.beta_fast), index(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        high = high + 0.001 if low == high else high
        places = np.arange(head_dim // 2, dtype=np.float32)
        kept = 1 - np.clip((places - np.float32(low)) / np.float32(high - low), 0, 1)
        stretched = 1 / (np.float32(self.factor) * powers)
        return stretched * (1 - kept) + 1 / powers * kept


RopeScaling = LinearScaling | YarnScaling | Llama3Scaling
"""How the frequencies of a longer context follow from those of pre-training."""


def rope_angles(
    positions: Int[Array, "b t"], head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Array, Array]:
    """((-sin, sin), (cos, cos)) float32 [b, t, 1, head_dim] of the angles position * theta^(-2i / head_dim).

    With `scaling` the frequencies and the magnitude are its.
    """
    # One bit more or less moves the angles of far positions by far more than other float32 rounding does. Of exponents
    # in float32 and powers rounded from float64, torch's float32 constants are all but one in a hundred or so bit for
    # bit (numpy's float32 powers: all but one in seven).
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = (np.float64(theta) ** exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / powers if scaling is None else scaling.frequencies(powers, head_dim, theta)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    if scaling is not None:
        sin, cos = sin * scaling.magnitude, cos * scaling.magnitude
    # Computed once: without the barrier XLA puts sine and cosine into every use, each head of each layer.
    return jax.lax.optimization_barrier((jnp.concatenate([-sin, sin], axis=-1), jnp.concatenate([cos, cos], axis=-1)))


def apply_rope(x: Float[Array, "b t n h"], angles: tuple[Array, Array] | None) -> Float[Array, "b t n h"]:
    """Rotates pairs (x_i, x_{i + h/2}) by their angle, in float32, returned in x's dtype. None: x as it is."""
    if angles is None:
        return x
    signed_sin, cos = angles
    x32 = x.astype(jnp.float32)
    # A roll by half a head swaps the halves; splitting and joining them costs four times as much on CPU.
    return (x32 * cos + jnp.roll(x32, x.shape[-1] // 2, axis=-1) * signed_sin).astype(x.dtype)
