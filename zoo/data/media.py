"""What a batch holds besides tokens: images as patches, recordings as clips of log-mel features, and where they stand.

The first axis of every array is the batch. Placeholders in `Batch.tokens` keep the places of soft tokens; an encoder
gives soft tokens of a whole row, and a slot says which of them stands at a position.
"""

import logging
import multiprocessing
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float32, Int32

from zoo.errors import UserError

# numpy arrays from the pipeline, jax arrays once the trainer has put them on devices.
Array = np.ndarray | jax.Array

logger = logging.getLogger(__name__)


class BadMedia(UserError):
    """A record that cannot be used because of its images, recordings or videos. `MediaConfig.bad_media` says whether
    it ends the run."""


class LeftOut:
    """Which records were left out, and why: those found while files were opened, and those found since."""

    def __init__(self, found: Mapping[str, str] | None = None):
        self._reasons = dict(found or {})

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def reasons(self) -> Mapping[str, str]:
        """What is wrong, by record ("file:line")."""
        return dict(self._reasons)

    def add(self, where: str, reason: str) -> None:
        """Counts a record, and says so when it is met for the first time."""
        if where not in self._reasons:
            self._reasons[where] = reason
            if multiprocessing.parent_process() is not None:
                return  # a worker's are counted, and said, by the process that takes its batches
            logger.warning("left out (data.media.bad_media=skip): %s", reason)


class Skipping:
    """Leaves records out one by one, and ends data that have no usable one, which would be read for ever."""

    def __init__(self, left_out: LeftOut, num_documents: int):
        self._left_out, self._most, self._in_a_row = left_out, 2 * num_documents, 0

    def used(self) -> None:
        """A record was usable."""
        self._in_a_row = 0

    def skip(self, where: str, error: BadMedia) -> None:
        """Counts a record as left out. Raises `UserError` if as many as two epochs have were left out in a row: one of
        the shuffled epochs was read whole, and there is none to go on with."""
        self._left_out.add(where, str(error))
        self._in_a_row += 1
        if self._in_a_row > self._most:
            raise UserError(f"no document is left to train on: all have media that cannot be used; {error}") from None


@dataclass(frozen=True)
class PackedImages:
    """Images of any size, one after the other in rows of P patches. merge x merge neighbouring patches (a square, row
    by row) follow each other and become one soft token: soft token s is patches s * merge^2 .. (s + 1) * merge^2 - 1.
    """

    patches: Float32[Array, "batch patches pixels"]
    """Pixels in -1..1, in the order (row, column, channel) within a patch of p x p pixels: 3 p^2 of them."""

    coordinates: Float32[Array, "batch patches 2"]
    """Centre of the patch, (row, column), as a fraction of its image's height and width."""

    segment_ids: Int32[Array, "batch patches"]
    """Number of the image in its row, from 1; 0 is padding."""


@dataclass(frozen=True)
class AudioClips:
    """Recordings, A clips of F log-mel frames in a row; a longer recording takes several clips. Soft token
    a * (F // reduction) + i of a row is the i-th of clip a."""

    mel: Float32[Array, "batch clips frames bins"]
    """Log-mel features; padding may hold anything."""

    mask: Bool[Array, "batch clips frames"]
    """True where a frame is real."""


@dataclass(frozen=True)
class Media:
    """Inputs of other modalities of one batch."""

    images: PackedImages | None = None
    """None where the run reads no images."""

    audio: AudioClips | None = None
    """None where the run reads no audio."""

    image_slots: Int32[Array, "batch length"] | None = None
    """Which soft token of its row's images stands at a position; -1 = none. None as `images`."""

    audio_slots: Int32[Array, "batch length"] | None = None
    """Which soft token of its row's recordings stands at a position; -1 = none. None as `audio`."""

    pixel_values: Float32[Array, "batch channels side side"] | None = None
    """Images with classes, one a row (`zoo.data.labelled_images`); None elsewhere."""


for _kind, _fields in (
    (PackedImages, ["patches", "coordinates", "segment_ids"]),
    (AudioClips, ["mel", "mask"]),
    (Media, ["images", "audio", "image_slots", "audio_slots", "pixel_values"]),
):
    jax.tree_util.register_dataclass(_kind, data_fields=_fields, meta_fields=[])
