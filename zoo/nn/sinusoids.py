"""Positions as sines and cosines."""

import numpy as np
from jaxtyping import Float, Float32

LONGEST_PERIOD = 10_000.0
"""Of the last column, in units of 2 pi."""


def sinusoids(positions: Float[np.ndarray, "n"], width: int) -> Float32[np.ndarray, "n d"]:
    """sin(p r_i), i < d / 2, and then cos(p r_i), with r_i = 10000^(-i / (d / 2 - 1)).

    "Attention Is All You Need" (arXiv 1706.03762, section 3.5) as tensor2tensor, Whisper and Gemma 3n compute it: all
    sines before all cosines, and a last period of 10,000 times the first. (Equation and code differ there.)

    Args:
      positions: float32 or float64, the precision that angles are computed in.
      width: d, even.

    Raises:
      ValueError: an odd width.
    """
    if width % 2:
        raise ValueError(f"width={width} must be even: a cosine for each sine")
    count, dtype = width // 2, positions.dtype.type
    rates = np.exp(np.arange(count, dtype=dtype) * dtype(-np.log(LONGEST_PERIOD) / max(count - 1, 1)))
    angles = positions[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)
