"""Prompts with images and recordings: several of them as one left-padded batch, checked against the model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from zoo.data import AudioClips, Media, PackedImages
from zoo.errors import UserError
from zoo.inference.prompts import left_pad

MediaPrompt = tuple[Int[np.ndarray, "1 length"], Media | None]
"""One prompt, as `zoo.data.load_media_prompt` gives it."""


def stack_prompts(
    prompts: Sequence[MediaPrompt],
    pad_id: int = 0,
    *,
    multiple: int = 1,
    patch_multiple: int = 1,
    clip_multiple: int = 1,
) -> tuple[Int[np.ndarray, "b t"], Int[np.ndarray, "b t"], Media | None]:
    """(tokens, mask, media) of prompts of unequal length: padding on the left of tokens, at the end of media.

    As many tokens, patches and clips as the largest prompt has, rounded up to the multiples: prompts of similar size
    then share a compiled program. Patches that are padding belong to image 0, frames have mask False and positions
    slot -1. media is None where no prompt has any. Raises UserError for no prompts.
    """
    tokens, mask = left_pad([ids[0] for ids, _ in prompts], pad_id, multiple)
    found = [media or Media() for _, media in prompts]
    images = _stacked([media.images for media in found], patch_multiple)
    audio = _stacked([media.audio for media in found], clip_multiple)
    if images is None and audio is None:
        return tokens, mask, None

    def slots(name: str) -> np.ndarray:
        rows = np.full(tokens.shape, -1, np.int32)
        for row, media in zip(rows, found, strict=True):
            if (own := getattr(media, name)) is not None:
                row[len(row) - own.shape[1] :] = own[0]
        return rows

    return tokens, mask, Media(
        images,
        audio,
        None if images is None else slots("image_slots"),
        None if audio is None else slots("audio_slots"),
    )  # fmt: skip


def with_answer(prompt: MediaPrompt, ids: Sequence[int]) -> MediaPrompt:
    """The prompt with further tokens after it, at which no media stand."""
    tokens, media = prompt
    longer = np.concatenate([tokens, np.asarray(ids, np.int32)[None]], axis=1)
    return longer, _with_slots(media, lambda slots: np.pad(slots, ((0, 0), (0, len(ids))), constant_values=-1))


def padded_media(media: Media | None, columns: int) -> Media | None:
    """The media of tokens that got so many columns of padding on the left."""
    if not columns:
        return media
    return _with_slots(media, lambda slots: np.pad(slots, ((0, 0), (columns, 0)), constant_values=-1))


def check_media(media: Media | None, config: Any, mask: Int[np.ndarray, "b t"]) -> None:
    """Raises UserError where media are not what the model of this config reads, or not those of tokens with this mask
    (0 = padding)."""
    if media is None:
        return
    pairs: tuple[tuple[str, str, Any, Any], ...] = (
        ("image", "vision", media.images, media.image_slots),
        ("audio", "audio", media.audio, media.audio_slots),
    )
    for name, part, items, slots in pairs:
        if (items is None) != (slots is None):
            raise UserError(f"media: {name} needs both its arrays and {name}_slots, which say where they stand")
        if items is None:
            continue
        encoder = getattr(config, part, None)
        if encoder is None:
            raise UserError(f"media: this model has no {name} encoder (model.{part}) and was given {name}")
        for field in dataclasses.fields(items):
            if (rows := len(getattr(items, field.name))) != len(mask):
                raise UserError(f"media: {name} {field.name} of {rows} rows for {len(mask)} prompts")
        if slots.shape != mask.shape:
            raise UserError(f"media: {name}_slots {list(slots.shape)} differ from the tokens' {list(mask.shape)}")
        count = _soft_tokens(name, items, config, encoder)
        host = np.asarray(slots)
        if host.min() < -1 or host.max() >= count:
            raise UserError(f"media: {name}_slots must lie in -1 .. {count - 1}, found {host.min()} .. {host.max()}")
        if (host[mask == 0] >= 0).any():
            raise UserError(f"media: {name}_slots stand at padding; pad slots on the left as tokens, with -1")


def media_contents(media: Media | None, rows: int) -> list[bytes]:
    """For each row what its images and recordings hold, padding left out; b"" for a row without any."""
    contents = [b""] * rows
    for items, real in _real_parts(media):
        arrays = [np.asarray(array) for array in items]
        for row, chosen in enumerate(real):
            contents[row] += b"".join(np.ascontiguousarray(array[row][chosen]).tobytes() for array in arrays)
    return contents


def _real_parts(media: Media | None) -> list[tuple[list[Any], np.ndarray]]:
    parts: list[tuple[list[Any], np.ndarray]] = []
    if media is not None and media.images is not None:
        images = media.images
        parts.append(([images.patches, images.coordinates, images.segment_ids], np.asarray(images.segment_ids) > 0))
    if media is not None and media.audio is not None:
        parts.append(([media.audio.mel], np.asarray(media.audio.mask)))
    return parts


def _soft_tokens(name: str, items: Any, config: Any, encoder: Any) -> int:
    """How many soft tokens a row's media become."""
    if name == "image":
        _, patches, pixels = items.patches.shape
        expected, square = 3 * encoder.patch_size**2, config.vision_merge**2
        if pixels != expected:
            raise UserError(f"media: patches of {pixels} numbers, the model's image encoder takes {expected}")
        if patches % square:
            raise UserError(f"media: {patches} patches a row are not whole squares of {square} patches")
        return patches // square
    _, clips, frames, bins = items.mel.shape
    if bins != encoder.num_mel_bins:
        raise UserError(
            f"media: log-mel features of {bins} bands, the model's audio encoder takes {encoder.num_mel_bins}"
        )
    if frames % encoder.reduction:
        raise UserError(f"media: clips of {frames} frames are not a multiple of {encoder.reduction}")
    return clips * frames // encoder.reduction


def _stacked(parts: Sequence[PackedImages | AudioClips | None], multiple: int) -> Any:
    """One value whose arrays hold all rows, filled up with zeros along the second axis; None where no row has any."""
    given = next((part for part in parts if part is not None), None)
    if given is None:
        return None
    kind, names = type(given), [field.name for field in dataclasses.fields(given)]
    most = max(getattr(part, names[0]).shape[1] for part in parts if part is not None)
    count = -(-most // multiple) * multiple

    def stacked(name: str) -> np.ndarray:
        like = getattr(given, name)
        rows = np.zeros((len(parts), count, *like.shape[2:]), like.dtype)
        for row, part in zip(rows, parts, strict=True):
            if part is not None:
                own = getattr(part, name)
                row[: own.shape[1]] = own[0]
        return rows

    return kind(*map(stacked, names))


def _with_slots(media: Media | None, change: Any) -> Media | None:
    if media is None:
        return None
    changed = {
        name: change(np.asarray(slots))
        for name in ("image_slots", "audio_slots")
        if (slots := getattr(media, name)) is not None
    }
    return dataclasses.replace(media, **changed)
