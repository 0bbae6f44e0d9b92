"""The media of a prompt that is read in chunks: each chunk gets the images and clips whose soft tokens stand in it."""

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int

from zoo.data import AudioClips, Media, PackedImages


def media_in_chunks(media: Media | None, config: Any, chunk: int) -> list[Media] | None:
    """The media of each `chunk` columns of the tokens: whole images and clips, with slots counted anew. All have the
    same shapes, those of the fullest chunk. None without media.

    config: of the model, which says how many patches or frames a soft token has. T must be a multiple of `chunk`."""
    if media is None or (media.images is None and media.audio is None):
        return None
    slots = media.image_slots if media.images is not None else media.audio_slots
    assert slots is not None
    parts = [Media() for _ in range(slots.shape[1] // chunk)]
    if media.images is not None:
        images, square = media.images, config.vision_merge**2
        numbers = np.asarray(images.segment_ids)
        found = _units_in_chunks(np.asarray(media.image_slots), numbers[:, ::square], 1, chunk)
        for at, (units, own) in enumerate(found):
            real = np.repeat(units >= 0, square, axis=1)
            which = np.maximum(np.repeat(units, square, axis=1) * square + np.arange(real.shape[1]) % square, 0)
            shown = PackedImages(
                _taken(images.patches, which, real),
                _taken(images.coordinates, which, real),
                _taken(numbers, which, real),
            )
            parts[at] = replace(parts[at], images=shown, image_slots=own)
    if media.audio is not None:
        audio = media.audio
        rows, clips, frames, _ = audio.mel.shape
        owners = np.broadcast_to(np.arange(1, clips + 1), (rows, clips))
        found = _units_in_chunks(np.asarray(media.audio_slots), owners, frames // config.audio.reduction, chunk)
        for at, (units, own) in enumerate(found):
            real = units >= 0
            heard = AudioClips(*(_taken(array, np.maximum(units, 0), real) for array in (audio.mel, audio.mask)))
            parts[at] = replace(parts[at], audio=heard, audio_slots=own)
    return parts


def _units_in_chunks(
    slots: Int[np.ndarray, "b t"], owners: Int[np.ndarray, "b u"], tokens: int, chunk: int
) -> list[tuple[Int[np.ndarray, "b n"], Int[np.ndarray, "b chunk"]]]:
    """For each chunk (units, -1 = padding; slots among these). A unit is what gives `tokens` soft tokens; with one unit
    come all others of its owner (0 = none's)."""
    found = []
    for start in range(0, slots.shape[1], chunk):
        part = slots[:, start : start + chunk]
        chosen, own = [], np.full(part.shape, -1, np.int32)
        for row, (here, owner) in enumerate(zip(part, owners, strict=True)):
            stand = here >= 0
            units = np.flatnonzero(np.isin(owner, owner[here[stand] // tokens]) & (owner > 0))
            own[row, stand] = np.searchsorted(units, here[stand] // tokens) * tokens + here[stand] % tokens
            chosen.append(units)
        found.append((chosen, own))
    most = _rounded(max(1, *(len(units) for chosen, _ in found for units in chosen)))
    return [
        (np.stack([np.pad(units, (0, most - len(units)), constant_values=-1) for units in chosen]), own)
        for chosen, own in found
    ]


def _rounded(count: int) -> int:
    """The next multiple of an eighth of the largest power of two in `count`: prompts of similar size share a compiled
    program."""
    step = max(1, 2 ** (count.bit_length() - 4))
    return -(-count // step) * step


def _taken(array: Any, which: Int[np.ndarray, "b n"], real: Any) -> np.ndarray:
    """array[b, which[b, i]], zeros where not real."""
    array = np.asarray(array)
    rows = array[np.arange(len(array))[:, None], which]
    return np.where(real.reshape(*real.shape, *[1] * (rows.ndim - 2)), rows, np.zeros((), array.dtype))
