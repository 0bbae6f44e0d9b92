"""Rotary position embedding, half-split layout (the first half of a head is rotated against the second)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rope_angles(positions: Int[Array, "b t"], head_dim: int, theta: float) -> tuple[Array, Array]:
    """((-sin, sin), (cos, cos)) float32 [b, t, 1, head_dim] of the angles position * theta^(-2i / head_dim)."""
    # On the host and by this formula the constants are torch's bit for bit; one bit more or less moves the angles of
    # far positions by far more than other float32 rounding does.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1) / np.float32(theta) ** exponents
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    # Computed once: without the barrier XLA puts sine and cosine into every use, each head of each layer.
    return jax.lax.optimization_barrier((jnp.concatenate([-sin, sin], axis=-1), jnp.concatenate([cos, cos], axis=-1)))


def apply_rope(x: Float[Array, "b t n h"], angles: tuple[Array, Array]) -> Float[Array, "b t n h"]:
    """Rotates pairs (x_i, x_{i + h/2}) by their angle, in float32, returned in x's dtype."""
    signed_sin, cos = angles
    x32 = x.astype(jnp.float32)
    # A roll by half a head swaps the halves; splitting and joining them costs four times as much on CPU.
    return (x32 * cos + jnp.roll(x32, x.shape[-1] // 2, axis=-1) * signed_sin).astype(x.dtype)
