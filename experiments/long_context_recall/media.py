"""Media tasks of the grid: which frames and recordings they take, and a sample of a cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from experiments.long_context_recall.audio import AudioHaystack, digit_in_a_stream
from experiments.long_context_recall.grid import Cell
from experiments.long_context_recall.samples import Sample
from experiments.long_context_recall.video import VideoHaystack, drawn_frames, real_frames, word_in_a_video
from experiments.multimodal.sources import Clip, spoken_digits, synthetic_sources


@dataclass(frozen=True, eq=False)
class MediaSources:
    """What videos and recordings are made of."""

    frames: np.ndarray
    """uint8 [n, h, w, 3]."""
    clips: Sequence[Clip]
    """Recordings of digits."""


Part = Literal["train", "validation", "test"]
TEST_TAKES, VALIDATION_TAKES = 5, 10
"""Recordings 0 .. 4 of each digit and speaker are for tests (the data set's own split), the next five for looks on the
way, all others for training."""


def media_sources(shared: Path | None, part: Part = "test") -> MediaSources:
    """A part of the frames and recordings of the folder `shared`; of drawn and sounded ones without it.

    Of a video the first three fifths are for training, the next one for looks on the way, the last one for tests."""
    if shared is None:
        frames, clips = drawn_frames(64), synthetic_sources(count=480).clips
    else:
        frames, clips = real_frames(shared), spoken_digits(shared)
    edges = [0, *(len(frames) * fifths // 5 for fifths in (3, 4, 5))]
    number = get_args(Part).index(part)
    return MediaSources(frames[edges[number] : edges[number + 1]], [clip for clip in clips if part_of(clip) == part])


def part_of(clip: Clip) -> Part:
    """Which part a recording belongs to."""
    return "test" if clip.index < TEST_TAKES else "validation" if clip.index < VALIDATION_TAKES else "train"


def media_sample(cell: Cell, seed: int, sources: MediaSources, folder: Path, number: int) -> Sample:
    """Sample `number` of a media cell; its files go below `folder`."""
    if cell.task == "video":
        return word_in_a_video(
            VideoHaystack(frames=cell.length), cell.task, seed, sources.frames, folder, number, cell.depth
        )
    ask = "keyword" if cell.task == "audio-keyword" else "time"
    haystack = AudioHaystack(ask, recordings=cell.length)  # type: ignore[arg-type]
    return digit_in_a_stream(haystack, cell.task, seed, sources.clips, folder, number, cell.depth)
