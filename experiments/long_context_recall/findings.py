"""What the cells say: recall with intervals, cell by cell, by length and over the whole grid."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.long_context_recall.cells import CellResult, SampleResult

NORMAL = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Recall:
    """A mean score and Wilson's 95 % interval."""

    mean: float
    """Of the scores, 0 .. 1."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    samples: int
    """How many."""

    def __str__(self) -> str:
        return f"{self.mean:.1%} ({self.low:.1%} to {self.high:.1%})"


def wilson(scores: Sequence[float]) -> Recall:
    """(p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), p the mean score of n samples.

    Scores are 0 or 1. Where they are shares, the interval is that of as many whole successes: too wide, never too
    narrow, since a share varies less than a 0 or 1 of the same mean."""
    n, p, z = len(scores), statistics.fmean(scores), NORMAL
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Recall(p, max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n)), n)


def written(results: Sequence[CellResult]) -> Recall:
    """Of the answers that the model wrote, all samples together; cells of a grid have equally many."""
    return wilson([sample.score for result in results for sample in result.samples])


def ranked(results: Sequence[CellResult]) -> Recall | None:
    """How often the right answer is the most likely of the candidates; None where there are none."""
    ranks = [sample.rank for result in results for sample in result.samples if sample.rank is not None]
    return wilson([float(rank == 0) for rank in ranks]) if ranks else None


def by_chance(results: Sequence[CellResult]) -> float | None:
    """The share of `ranked` that guessing gives."""
    counts = [sample.candidates for result in results for sample in result.samples if sample.rank is not None]
    return statistics.fmean(1 / count for count in counts) if counts else None


def by_task(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """The cells of each task, in order."""
    found: dict[str, list[CellResult]] = {}
    for result in results:
        found.setdefault(result.cell.task, []).append(result)
    return found


def by_length(results: Sequence[CellResult]) -> dict[int, list[CellResult]]:
    """The cells of each length, ascending."""
    lengths = sorted({result.cell.length for result in results})
    return {length: [result for result in results if result.cell.length == length] for length in lengths}


def worst(results: Sequence[CellResult], choice: str = "written") -> CellResult:
    """The cell of the lowest recall."""
    return min(results, key=lambda result: value_of(result, choice))


def value_of(result: CellResult, choice: str) -> float:
    """The mean of a cell: of what was "written", or of what was "ranked" (nan without candidates)."""
    found = written([result]) if choice == "written" else ranked([result])
    return math.nan if found is None else found.mean


def failures(results: Sequence[CellResult], most: int = 5) -> list[tuple[CellResult, SampleResult]]:
    """The first samples that were not answered fully, for a look at what the model wrote."""
    return [(r, sample) for r in results for sample in r.samples if sample.score < 1][:most]
