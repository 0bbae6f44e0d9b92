"""Recall as a picture: depth x length, green to red, a number in every cell; one panel for each task."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.long_context_recall.cells import CellResult
from experiments.long_context_recall.findings import by_task, value_of, wilson
from experiments.long_context_recall.grid import MEDIA_TASKS
from experiments.plotting import pyplot

NO_DEPTH = "drawn"
"""Label of the row of a task that has no depth."""

PANELS_ACROSS = 3


def draw(
    results: Sequence[CellResult], title: str, path: Path, choice: str = "written", trained: int | None = None
) -> None:
    """A PNG, up to three panels beside each other. `choice`: recall of what was "written", or how often the right
    candidate was "ranked" first. Cells that are not done are grey. A line divides the lengths that are beyond the
    `trained` context from the others."""
    panels = by_task(results)
    shapes = [(lengths_of(cells), depths_of(cells)) for cells in panels.values()]
    widest = max(len(lengths) for lengths, _ in shapes)
    across = min(len(panels), PANELS_ACROSS)
    lines = [shapes[first : first + across] for first in range(0, len(shapes), across)]
    heights = [0.34 * max(len(depths) for _, depths in line) + 1.0 for line in lines]
    figure, axes = pyplot().subplots(
        len(lines), across, figsize=((0.75 * widest + 1.2) * across + 2.4, sum(heights) + 0.4), squeeze=False,
        height_ratios=heights, layout="constrained",
    )  # fmt: skip
    figure.suptitle(title, fontsize=10)
    for panel in axes.flat[len(panels) :]:
        panel.set_axis_off()
    for panel, (task, cells), (lengths, depths) in zip(axes.flat, panels.items(), shapes, strict=False):
        values = matrix(cells, lengths, depths, choice)
        colours = pyplot().get_cmap("RdYlGn").with_extremes(bad="lightgrey")
        image = panel.imshow(values, vmin=0, vmax=1, cmap=colours, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "white" if value < 0.15 or value > 0.9 else "black"  # the ends of the scale are dark
                panel.text(column, row, number(value), ha="center", va="center", fontsize=7, color=colour)
        mean = wilson([value for value in values.ravel() if not np.isnan(value)]).mean
        panel.set_title(f"{task}: mean {mean:.1%}", fontsize=9)
        panel.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=8)
        panel.set_yticks(range(len(depths)), [label(depth) for depth in depths], fontsize=8)
        panel.set_xlabel(unit(task), fontsize=8)
        panel.set_ylabel("depth, %", fontsize=8)
        panel.tick_params(length=0)
        for spine in panel.spines.values():
            spine.set_visible(False)
        panel.set_xticks(np.arange(len(lengths) + 1) - 0.5, minor=True)
        panel.set_yticks(np.arange(len(depths) + 1) - 0.5, minor=True)
        panel.grid(which="minor", color="white", lw=1.5)
        panel.tick_params(which="minor", length=0)
        within = sum(length <= (trained or 0) for length in lengths)
        if trained and task not in MEDIA_TASKS and 0 < within < len(lengths):
            panel.axvline(within - 0.5, color="black", lw=1.5, ls="--")
    figure.colorbar(image, ax=list(axes.flat), shrink=0.8, aspect=30, pad=0.02)
    figure.savefig(path, dpi=150)
    pyplot().close(figure)


def lengths_of(cells: Sequence[CellResult]) -> list[int]:
    """Columns."""
    return sorted({result.cell.length for result in cells})


def depths_of(cells: Sequence[CellResult]) -> list[float | None]:
    """Rows, the beginning of the context at the top."""
    return sorted({result.cell.depth for result in cells}, key=lambda depth: -1.0 if depth is None else depth)


def matrix(
    cells: Sequence[CellResult], lengths: Sequence[int], depths: Sequence[float | None], choice: str
) -> np.ndarray:
    """[depths, lengths], nan where a cell is missing."""
    values = np.full((len(depths), len(lengths)), np.nan)
    for result in cells:
        values[depths.index(result.cell.depth), lengths.index(result.cell.length)] = value_of(result, choice)
    return values


def number(value: float) -> str:
    """Percent: "100", "97", "0"; never 100 for less than all."""
    return f"{min(99, round(100 * value)) if value < 1 else 100:d}"


def label(depth: float | None) -> str:
    """Of a row."""
    return NO_DEPTH if depth is None else f"{depth:g}"


def unit(task: str) -> str:
    """What a length counts."""
    if task not in MEDIA_TASKS:
        return "tokens of prompt and answer"
    return "frames" if task == "video" else "recordings"
