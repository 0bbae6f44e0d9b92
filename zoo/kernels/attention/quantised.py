"""Keys and values of a cache in 8 bits: one scale for each token and head, symmetric, no zero point.

    scale = max_h |x_h| / 127,  code_h = round(x_h / scale),  x_h ~ scale * code_h,  |error| <= scale / 2

A scale per token can be fixed when the token is written: no token that comes later changes it.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int8

LARGEST = 127
"""Codes are -127 .. 127; -128 is not used, so that x and -x have codes of the same size."""

Scales = tuple[Float32[Array, "b k s"], Float32[Array, "b k s"]]
"""Of the keys and of the values that a cache holds."""


def quantise(x: Float[Array, "*x h"]) -> tuple[Int8[Array, "*x h"], Float32[Array, "*x"]]:
    """(codes, scales) of vectors, computed in float32. The scale of a vector of zeros is 0."""
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1) / LARGEST
    codes = jnp.round(wide / jnp.where(scale == 0, 1, scale)[..., None])
    return jnp.clip(codes, -LARGEST, LARGEST).astype(jnp.int8), scale


def dequantise(codes: Int8[Array, "..."], scale: Float32[Array, "..."], axis: int, dtype: DTypeLike) -> Array:
    """scale * code, rounded once to `dtype`. axis: of the head's dimensions, which the scales do not have."""
    return (codes.astype(jnp.float32) * jnp.expand_dims(scale, axis)).astype(dtype)
