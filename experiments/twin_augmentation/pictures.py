"""ROC curves, confusions, where the gradient is, and what the twin head adds. No picture shows a patient's image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.plotting import pyplot
from experiments.twin_augmentation.arms import SIDES
from experiments.twin_augmentation.findings import AUC, BALANCED, Cell, cells, collections_of, figure, gain
from experiments.twin_augmentation.heads import LOGISTIC, PRIOR, SOFTMAX, THRESHOLD, TWIN, TWIN_CHOSEN
from experiments.twin_augmentation.worker import RATES, Result, part_edges

CURVES = (SOFTMAX, LOGISTIC, TWIN, TWIN_CHOSEN)
MATRICES = (SOFTMAX, PRIOR, THRESHOLD, LOGISTIC, TWIN, TWIN_CHOSEN)
PAIRS = ((TWIN, SOFTMAX), (TWIN, PRIOR), (TWIN_CHOSEN, THRESHOLD))


def draw_all(results: Sequence[Result], stem: str, folder: Path) -> list[str]:
    """Names of the files that were written to `folder`."""
    found = []
    networks = [cell for cell in cells(results) if cell.runs[0].saliency]
    rarest = {cell.arm.name: cell for cell in sorted(networks, key=lambda cell: cell.ratio)}
    drawn = [
        ("roc", lambda path: draw_curves(list(rarest.values()), path)),
        ("confusion", lambda path: draw_confusions(list(rarest.values()), path)),
        ("saliency", lambda path: draw_saliency(list(rarest.values()), path)),
        ("gains", lambda path: draw_gains(results, path)),
    ]
    for what, draw in drawn if networks else drawn[3:]:
        found.append(f"{stem}-{what}.png")
        draw(folder / found[-1])
    return found


def draw_curves(shown: Sequence[Cell], path: Path) -> None:
    """Mean sensitivity over seeds at each false-positive rate, a panel for each arm at its rarest."""
    canvas, axes = _panels(len(shown), 3.0)
    for axis, cell in zip(axes, shown):
        for head in CURVES:
            if head in cell.heads:
                found = figure(cell, head, AUC)
                assert found is not None
                mean = np.mean([run.curves[head] for run in cell.runs], axis=0)
                axis.plot(RATES, mean, lw=1.2, label=f"{head}: {found.mean:.3f}")
        axis.plot((0, 1), (0, 1), "k:", lw=0.7)
        axis.set(title=_title(cell), xlabel="false-positive rate", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.02))
        axis.legend(fontsize=6, title=AUC, title_fontsize=6, loc="lower right")
    canvas.savefig(path, dpi=130)
    pyplot().close(canvas)


def draw_confusions(shown: Sequence[Cell], path: Path) -> None:
    """Of the test, over all seeds: the part of each class that is called each class. A row for each arm."""
    canvas, grid = pyplot().subplots(
        len(shown), len(MATRICES), figsize=(1.7 * len(MATRICES), 1.8 * len(shown)), squeeze=False, layout="constrained"
    )
    for row, cell in zip(grid, shown):
        for axis, head in zip(row, MATRICES):
            axis.set(xticks=(0, 1), yticks=(0, 1))
            axis.set_title(f"{_title(cell)}\n{head}", fontsize=6)
            axis.tick_params(labelsize=6)
            if head not in cell.heads:
                continue
            counts = np.sum([run.confusion[head] for run in cell.runs], axis=0).reshape(2, 2)
            parts = counts / counts.sum(axis=1, keepdims=True)
            axis.imshow(parts, cmap="Blues", vmin=0, vmax=1)
            for (i, j), part in np.ndenumerate(parts):
                axis.text(j, i, f"{part:.2f}", ha="center", va="center", fontsize=7,
                          color="white" if part > 0.6 else "black")  # fmt: skip
    canvas.supxlabel("called (1: the rare class)", fontsize=7)
    canvas.supylabel("is", fontsize=7)
    canvas.savefig(path, dpi=130)
    pyplot().close(canvas)


def draw_saliency(shown: Sequence[Cell], path: Path) -> None:
    """How large the gradient of the logits is at a pixel, by parts of the image, mean over test images and seeds; each
    map is scaled to its own maximum."""
    canvas, axes = _panels(len(shown), 2.4)
    for axis, cell in zip(axes, shown):
        mean = np.mean([run.saliency for run in cell.runs], axis=0)
        # Parts of 28 pixels are 1 or 2 wide.
        widths = np.diff(part_edges(SIDES[cell.arm.collection]))
        axis.imshow(mean / np.outer(widths, widths), cmap="magma", vmin=0)
        axis.set(xticks=(), yticks=())
        axis.set_title(_title(cell), fontsize=8)
    canvas.savefig(path, dpi=130)
    pyplot().close(canvas)


def draw_gains(results: Sequence[Result], path: Path) -> None:
    """Differences of balanced accuracy with their intervals, a panel for each collection."""
    names = collections_of(results)
    canvas, axes = _panels(len(names), 4.2, columns=1)
    for axis, name in zip(axes, names):
        own = cells(results, name)
        for number, pair in enumerate(PAIRS):
            found = [gain(cell, *pair, BALANCED) for cell in own]
            means = [np.nan if one is None else one.mean for one in found]
            halves = [0.0 if one is None or one.count == 1 else one.half for one in found]
            places = np.arange(len(own)) + (number - 1) * 0.2
            axis.errorbar(places, means, halves, fmt="o", ms=3, lw=1, label=f"{pair[0]} minus {pair[1]}")
        axis.axhline(0, color="k", lw=0.6)
        axis.set_xticks(np.arange(len(own)), [_title(cell) for cell in own], rotation=30, ha="right", fontsize=6)
        axis.set_ylabel(f"difference of {BALANCED}", fontsize=7)
        axis.legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(PAIRS), frameon=False)
    canvas.savefig(path, dpi=130)
    pyplot().close(canvas)


def _title(cell: Cell) -> str:
    return f"{cell.arm.name}, 1:{cell.ratio}"


def _panels(count: int, side: float, columns: int = 4) -> tuple[Any, list[Any]]:
    across = min(columns, count)
    down = -(-count // across)
    wide = side if columns > 1 else 2 * side
    canvas, grid = pyplot().subplots(down, across, figsize=(wide * across, side * down), squeeze=False,
                                   layout="constrained")  # fmt: skip
    axes = list(grid.ravel())
    for axis in axes[count:]:
        axis.set_visible(False)
    return canvas, axes
