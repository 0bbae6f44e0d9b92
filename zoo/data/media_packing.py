"""Interleaved documents in packed rows: a document's media stay in the row of its tokens.

The packers move predictions of five numbers, (input, target, weight, image slot, audio slot), where the slots are those
of the input within its document; beside them go the document's patches, as 8-bit pixels, and clips. When a batch is
made the slots of all documents of a row are counted on.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from zoo.data.batch import Batch
from zoo.data.config import DataConfig
from zoo.data.images import scaled
from zoo.data.interleaved import Interleaved
from zoo.data.labelled_images import labelled_shapes
from zoo.data.media import AudioClips, BadMedia, LeftOut, Media, PackedImages, Skipping
from zoo.data.media_config import MediaConfig
from zoo.data.packing import PACKING_BINS, PREDICTIONS, make_batch, stack_rows
from zoo.data.rendering import EncodeImage, Rendered, render
from zoo.data.tokenizer import Tokenizer

PATCHES, COORDINATES, IMAGES = "patches", "coordinates", "images"
MEL, MASK = "mel", "mask"
BYTES_OF_BINS = 2**28  # what the rows that first-fit fills at a time may take


class MediaPredictions:
    """From a document to what is packed; None for one that is left out."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: DataConfig,
        left_out: LeftOut,
        num_documents: int,
        encode_image: EncodeImage | None = None,
    ):
        self._tokenizer, self._config, self._encode_image = tokenizer, config, encode_image
        self._skipping = Skipping(left_out, num_documents)

    def __call__(self, document: Interleaved | str) -> dict[str, np.ndarray] | None:
        media = self._config.media
        try:
            rendered = render(document, self._tokenizer, media, self._encode_image)
            if isinstance(document, Interleaved) and document.has_media:
                _check_fits(rendered, document.where, self._config)
        except BadMedia as error:
            if media.bad_media == "stop":
                raise
            assert isinstance(document, Interleaved)
            self._skipping.skip(document.where, error)
            return None
        self._skipping.used()
        return _element(rendered, media)


def media_lengths(config: MediaConfig) -> dict[str, int]:
    """What a row holds besides predictions, and how much of it."""
    lengths: dict[str, int] = {}
    if config.patches_per_row:
        lengths |= dict.fromkeys((PATCHES, COORDINATES, IMAGES), config.patches_per_row)
    if config.clips_per_row:
        lengths |= dict.fromkeys((MEL, MASK), config.clips_per_row)
    return lengths


def packing_bins(config: MediaConfig) -> int:
    """Rows that are filled at a time: fewer of large ones, for the sake of memory."""
    row = config.patches_per_row * config.patch_dim + 4 * config.clips_per_row * config.clip_frames * config.mel_bins
    return max(4, min(PACKING_BINS, BYTES_OF_BINS // max(row, 1)))


def make_media_batch(rows: Sequence[dict[str, np.ndarray]], batch_size: int, pad_id: int, config: MediaConfig) -> Batch:
    """As `make_batch`, with media."""
    batch = make_batch(rows, batch_size, pad_id)
    slots = np.where(batch.segment_ids[..., None] > 0, stack_rows(rows, PREDICTIONS, batch_size)[..., 3:], -1)
    media = Media()
    if config.patches_per_row:
        patches, coordinates, numbers, segments = (
            stack_rows(rows, key, batch_size) for key in (PATCHES, COORDINATES, IMAGES, f"{PATCHES}_segment_ids")
        )
        real = segments > 0
        images = PackedImages(scaled(patches) * real[..., None], coordinates, _numbers_in_row(numbers, segments))
        before = _first_of_segment(np.asarray(batch.segment_ids), segments) // config.merge**2
        media = dataclasses.replace(media, images=images, image_slots=_counted_on(slots[..., 0], before))
    if config.clips_per_row:
        mel, mask, segments = (stack_rows(rows, key, batch_size) for key in (MEL, MASK, f"{MEL}_segment_ids"))
        before = _first_of_segment(np.asarray(batch.segment_ids), segments) * config.clip_tokens
        media = dataclasses.replace(media, audio=AudioClips(mel, mask), audio_slots=_counted_on(slots[..., 1], before))
    return dataclasses.replace(batch, media=media if media_lengths(config) else None)


def media_shapes(config: DataConfig) -> Media | None:
    """Shapes and dtypes (`jax.ShapeDtypeStruct`) of `Batch.media` for this data; None for text."""
    if config.format == "labelled_images":
        return labelled_shapes(config)
    if config.format != "interleaved" or not media_lengths(config.media):
        return None
    media, rows = config.media, config.batch_size

    def shape(dtype: Any, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct((rows, *sizes), dtype)

    slots = shape(np.int32, config.sequence_length)
    patches, clips = media.patches_per_row, (media.clips_per_row, media.clip_frames)
    images = PackedImages(
        shape(np.float32, patches, media.patch_dim), shape(np.float32, patches, 2), shape(np.int32, patches)
    )
    audio = AudioClips(shape(np.float32, *clips, media.mel_bins), shape(np.bool_, *clips))
    return Media(
        images if media.patches_per_row else None,
        audio if media.clips_per_row else None,
        slots if media.patches_per_row else None,
        slots if media.clips_per_row else None,
    )


def _check_fits(rendered: Rendered, where: str, config: DataConfig) -> None:
    for name, found, most in (
        ("tokens", len(rendered.ids) - 1, config.sequence_length),
        ("patches", len(rendered.patches), config.media.patches_per_row),
        ("clips", len(rendered.mel), config.media.clips_per_row),
    ):
        if found > most:
            option = "data.sequence_length" if name == "tokens" else f"data.media.{name}_per_row"
            raise BadMedia(f"{where}: a document of {found:,} {name}, {option} is {most:,}")


def _element(rendered: Rendered, config: MediaConfig) -> dict[str, np.ndarray]:
    ids = rendered.ids
    columns = (ids[:-1], ids[1:], rendered.weights[1:], rendered.image_slots[:-1], rendered.audio_slots[:-1])
    found: Mapping[str, np.ndarray] = {
        PATCHES: rendered.patches,
        COORDINATES: rendered.coordinates,
        IMAGES: rendered.images,
        MEL: rendered.mel,
        MASK: rendered.mask,
    }
    return {PREDICTIONS: np.stack(columns, axis=1), **{name: found[name] for name in media_lengths(config)}}


def _first_of_segment(
    tokens: Int[np.ndarray, "batch length"], items: Int[np.ndarray, "batch items"]
) -> Int[np.ndarray, "batch length"]:
    """For each token the number of its segment's first item in the row; 0 where its segment has none."""
    first = np.zeros((len(tokens), int(tokens.max(initial=0)) + 1), np.int64)
    for row, segments in enumerate(items):
        found, index = np.unique(segments, return_index=True)
        first[row, found] = index
    return np.take_along_axis(first, tokens.astype(np.int64), axis=1)


def _counted_on(slots: np.ndarray, before: np.ndarray) -> np.ndarray:
    return np.where(slots >= 0, slots + before, -1).astype(np.int32)


def _numbers_in_row(numbers: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Numbers of images within their row, from numbers within their documents; 0 for padding."""
    pairs = np.stack([segments, numbers], axis=-1)
    new = np.any(pairs[:, 1:] != pairs[:, :-1], axis=-1)
    begins = np.concatenate([np.ones((len(pairs), 1), bool), new], axis=1)
    return (np.cumsum(begins, axis=1) * (segments > 0)).astype(np.int32)
