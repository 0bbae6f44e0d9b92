"""Activation functions by name."""

from typing import Literal

import jax
from jaxtyping import Array, Float

Activation = Literal["gelu", "gelu_tanh", "silu"]
"""gelu: x * Phi(x) with the error function (Whisper). gelu_tanh: its tanh approximation (Gemma, SigLIP).
silu: x * sigmoid(x) (Mixtral, Qwen3, Parakeet)."""


def activated(x: Float[Array, "..."], activation: Activation) -> Float[Array, "..."]:
    """The activation function, element by element."""
    return jax.nn.silu(x) if activation == "silu" else jax.nn.gelu(x, approximate=activation == "gelu_tanh")
