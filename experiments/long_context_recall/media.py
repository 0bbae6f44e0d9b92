"""Media tasks of the grid: which frames and recordings they take, and a sample of a cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.long_context_recall.audio import AudioHaystack, digit_in_a_stream
from experiments.long_context_recall.grid import Cell
from experiments.long_context_recall.samples import Sample
from experiments.long_context_recall.video import VideoHaystack, drawn_frames, real_frames, word_in_a_video
from experiments.multimodal.sources import Clip, real_sources, synthetic_sources


@dataclass(frozen=True, eq=False)
class MediaSources:
    """What videos and recordings are made of."""

    frames: np.ndarray
    """uint8 [n, h, w, 3]."""
    clips: Sequence[Clip]
    """Recordings of digits."""


def media_sources(shared: Path | None) -> MediaSources:
    """Frames and recordings of the folder `shared`; drawn and sounded ones without it."""
    if shared is None:
        return MediaSources(drawn_frames(64), synthetic_sources().clips)
    return MediaSources(real_frames(shared), real_sources(shared).clips)


def media_sample(cell: Cell, seed: int, sources: MediaSources, folder: Path, number: int) -> Sample:
    """Sample `number` of a media cell; its files go below `folder`."""
    if cell.task == "video":
        return word_in_a_video(
            VideoHaystack(frames=cell.length), cell.task, seed, sources.frames, folder, number, cell.depth
        )
    ask = "keyword" if cell.task == "audio-keyword" else "time"
    haystack = AudioHaystack(ask, recordings=cell.length)  # type: ignore[arg-type]
    return digit_in_a_stream(haystack, cell.task, seed, sources.clips, folder, number, cell.depth)
