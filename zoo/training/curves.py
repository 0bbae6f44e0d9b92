"""Curves of any metrics of a run, in panels one above the other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zoo.training.metrics import read_metrics
from zoo.training.pictures import QUIET, TRAINING, VALIDATION, smoothed

COLOURS = (TRAINING, "#762a83", "#1b7837")


def draw_curves(metrics: str | Path, png: str | Path, panels: Mapping[str, Sequence[str]], *, title: str = "") -> bool:
    """Draws `metrics` (a metrics.jsonl): for each panel, by the label of its axis, the named numbers of every step, raw
    and smoothed, and as dots those of validations (`validation_NAME`). A panel none of whose numbers a run has is left
    out. Returns whether there was anything to draw.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state
    from matplotlib.ticker import MaxNLocator

    rows = read_metrics(metrics)

    def series(name: str) -> tuple[list[int], np.ndarray]:
        found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        return [step for step, _ in found], np.array([value for _, value in found], float)

    drawn = {
        label: names
        for label, names in panels.items()
        if any(len(series(each)[0]) for name in names for each in (name, f"validation_{name}"))
    }
    if not drawn:
        return False
    figure = Figure(figsize=(9, 1.2 + 2.4 * len(drawn)), dpi=150, layout="constrained")
    stacked = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, names) in zip(stacked, drawn.items(), strict=True):
        for name, colour in zip(names, COLOURS):
            steps, values = series(name)
            words = name.replace("_", " ")
            if steps:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                axes.plot(steps, smoothed(values), color=colour, linewidth=1.8, label=f"{words}, training (smoothed)")
            steps, values = series(f"validation_{name}")
            if steps:
                dots = VALIDATION if colour == TRAINING else colour
                axes.plot(steps, values, "o-", color=dots, markersize=4, linewidth=1, label=f"{words}, validation")
        axes.set_ylabel(label, fontsize=8)
        axes.legend(frameon=False, loc="best", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2, linewidth=0.6)
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    stacked[0].set_title(title, fontsize=11, loc="left")
    stacked[-1].set_xlabel("step", color=QUIET)
    figure.savefig(png, format="png")
    return True
