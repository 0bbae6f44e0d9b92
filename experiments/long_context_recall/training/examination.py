"""The grid that a trained model is examined on, and what of it is kept in a run's result."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.long_context_recall.cells import CellResult, SampleResult, Subject, read_cell, run_cell, write_cell
from experiments.long_context_recall.grid import Cell, depths_of
from experiments.long_context_recall.haystacks import Haystack
from experiments.runs import say
from zoo.data import Tokenizer


@dataclass(frozen=True)
class Level:
    """Cells of one length."""

    length: int
    """Tokens of prompt and answer."""
    depths: int
    """How many, from 0 to 100 percent."""
    samples: int
    """Of each cell."""
    tasks: tuple[str, ...] = ()
    """Those of the grid that are asked here; none: all."""


@dataclass(frozen=True)
class Grid:
    """What is asked."""

    tasks: tuple[str, ...]
    """Names in the registry."""
    levels: tuple[Level, ...]
    """Rising lengths."""
    chunk: int = 1024
    """Tokens that go through the model at a time."""
    cache_dtype: str | None = None
    """Of keys and values; None: float32."""

    def cells(self) -> list[tuple[Cell, int]]:
        """(cell, samples), the short ones first."""
        return [
            (Cell(task, level.length, depth), level.samples)
            for level in self.levels
            for task in level.tasks or self.tasks
            for depth in depths_of(level.depths)
        ]


@dataclass(frozen=True)
class Examined:
    """A cell, as it is kept: what a model wrote is left out."""

    task: str
    """Of the cell."""
    length: int
    """Of the cell."""
    depth: float | None
    """Of the cell."""
    scores: tuple[float, ...]
    """Of what it wrote, sample by sample."""
    ranks: tuple[int | None, ...]
    """Candidates that are at least as likely as the right answer, sample by sample."""
    candidates: int
    """How many there are."""


def examine(model: Any, tokenizer: Tokenizer, hay: Haystack, grid: Grid, folder: Path) -> tuple[Examined, ...]:
    """All cells, each written to `folder` as soon as it is done. The samples are the same for all runs."""
    folder.mkdir(parents=True, exist_ok=True)
    subject = Subject(model, tokenizer, hay, 0, grid.chunk, grid.cache_dtype)
    found = []
    for cell, samples in grid.cells():
        result = read_cell(folder, cell)
        if result is None:
            with tempfile.TemporaryDirectory() as scratch:
                result = run_cell(subject, cell, samples, Path(scratch))
            write_cell(result, folder)
            right = sum(sample.score for sample in result.samples)
            say(f"{cell.name}: {right:g} of {samples}")
        found.append(summary(result))
    return tuple(found)


def summary(result: CellResult) -> Examined:
    """Without the answers."""
    samples, cell = result.samples, result.cell
    return Examined(
        cell.task,
        cell.length,
        cell.depth,
        tuple(sample.score for sample in samples),
        tuple(sample.rank for sample in samples),
        samples[0].candidates,
    )


def pooled(runs: Iterable[Sequence[Examined]]) -> list[CellResult]:
    """The samples of several runs cell by cell, for tables and heat maps of cells."""
    found: dict[Cell, list[SampleResult]] = {}
    for cells in runs:
        for each in cells:
            samples = found.setdefault(Cell(each.task, each.length, each.depth), [])
            for score, rank in zip(each.scores, each.ranks, strict=True):
                samples.append(SampleResult(len(samples), score, rank, each.candidates, "", "", each.length, 0, 0, {}))
    return [CellResult(cell, tuple(samples)) for cell, samples in found.items()]
