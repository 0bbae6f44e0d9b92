"""One training step's worth of packed rows."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32

# numpy arrays from the pipeline, jax arrays once the trainer has put them on devices.
Array = np.ndarray | jax.Array


@dataclass(frozen=True)
class Batch:
    """Packed rows, a pytree. In a row, segments are contiguous runs numbered from 1, positions rise by one from 0 in
    each of them, and what is left at the end of the row is padding: segment 0, position 0, token `pad`, weight 0."""

    tokens: Int32[Array, "batch length"]
    """What the model reads."""

    targets: Int32[Array, "batch length"]
    """The token that follows in the same document, also where the document goes on in another row. Of masked tokens
    (`DataConfig.format`): the token itself. Of an image with a class, which is a row: the number of its class."""

    positions: Int32[Array, "batch length"]
    """Position within the segment."""

    segment_ids: Int32[Array, "batch length"]
    """Which segment of the row a token belongs to; 0 is padding."""

    loss_weights: Float32[Array, "batch length"]
    """1 where the prediction of `targets` counts, else 0. Their sum is the number of predicted tokens. Of masked
    tokens: 1 where one may be masked."""

    media: Any = None
    """Inputs of other modalities (`zoo.data.Media`), or None."""


jax.tree_util.register_dataclass(
    Batch,
    data_fields=["tokens", "targets", "positions", "segment_ids", "loss_weights", "media"],
    meta_fields=[],
)
