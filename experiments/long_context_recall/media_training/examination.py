"""The grid that a trained model of media is examined on: depth x frames, or depth x recordings."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.long_context_recall.cells import Subject, read_cell, run_cell, write_cell
from experiments.long_context_recall.haystacks import Haystack, haystack
from experiments.long_context_recall.media import MediaSources
from experiments.long_context_recall.training.examination import Examined, Grid, summary
from experiments.runs import say
from zoo.data import MediaConfig, Tokenizer


@dataclass(frozen=True)
class MediaExamined:
    """A cell, as it is kept."""

    cell: Examined
    """Scores and ranks; its length is frames or recordings."""
    tokens: int
    """Of the longest prompt."""
    seconds: float
    """Median of reading and answering a sample."""


def examine(
    model: Any, tokenizer: Tokenizer, media: MediaConfig, sources: MediaSources, grid: Grid, folder: Path
) -> tuple[MediaExamined, ...]:
    """All cells, each written to `folder` as soon as it is done. The samples are the same for all runs."""
    folder.mkdir(parents=True, exist_ok=True)
    subject = Subject(model, tokenizer, _no_text(tokenizer), 0, grid.chunk, grid.cache_dtype, media, sources)
    found = []
    for cell, samples in grid.cells():
        result = read_cell(folder, cell)
        if result is None:
            with tempfile.TemporaryDirectory() as scratch:
                result = run_cell(subject, cell, samples, Path(scratch))
            write_cell(result, folder)
            right = sum(sample.score for sample in result.samples)
            say(f"{cell.name}: {right:g} of {samples}")
        times = sorted(sample.prefill_seconds + sample.answer_seconds for sample in result.samples)
        longest = max(sample.tokens for sample in result.samples)
        found.append(MediaExamined(summary(result), longest, times[len(times) // 2]))
    return tuple(found)


def _no_text(tokenizer: Tokenizer) -> Haystack:
    return haystack(tokenizer, characters=2_000)
