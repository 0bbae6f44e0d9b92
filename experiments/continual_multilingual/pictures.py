"""Pictures of a family: changes against distances, and languages improved against mean loss by part of the change."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.continual_multilingual.arms import ADAPTER, ARMS, FULL, LAFT, LAFT_RANDOM
from experiments.continual_multilingual.equal_loss import curve
from experiments.continual_multilingual.findings import changes, seeds_of
from experiments.continual_multilingual.study import Part
from experiments.continual_multilingual.updates import WHOLE
from experiments.plotting import pyplot, side_by_side

SCATTERED = (FULL, ADAPTER, LAFT, LAFT_RANDOM)
"""Arms of the scatter plots."""
TICKS = (-100, -30, -10, -5, 0, 5, 10, 30, 100)
LINEAR = 10.0
"""Changes in per cent up to which their axis is linear; beyond it is logarithmic."""


def draw_all(parts: Sequence[Part], folder: Path, stem: str) -> list[str]:
    """Draws what there is something of; the names of the files."""
    names = []
    for part in parts:
        for name, drawn in (("distance", distances(part)), ("parts", improved_by_loss(part))):
            if drawn is not None:
                names.append(f"{stem}-{part.family.name}-{name}.png")
                drawn.savefig(folder / names[-1], dpi=110)
                pyplot().close(drawn)
    return names


def points(part: Part, arm: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every language and update: (distance to the nearest updated language, change in per cent, mean over seeds,
    whether it was updated itself)."""
    found: dict[str, list[np.ndarray]] = {}
    for run in part.runs:
        for update in run.updates if run.run.arm == arm else ():
            change = changes(list(run.before.values()), update.after[WHOLE])
            found.setdefault("+".join(update.updated), []).append(change)
    x = [distance for update in found for distance in part.nearest[update]]
    y = [change for own in found.values() for change in np.mean(own, axis=0)]
    # Not by the distance: two languages may have the same features.
    updated = [group == "updated" for update in found for group in part.groups[update]]
    return np.array(x), np.array(y), np.array(updated)


def distances(part: Part) -> Any:
    """Scatter plots, one for each arm: changes against the distance to the nearest updated language. Lines are fitted
    to the languages that were not updated."""
    shown = [arm for arm in SCATTERED if seeds_of(part, arm)]
    if not shown:
        return None
    drawn, axes = side_by_side(len(shown), 3.6, 3.6)
    for axis, arm in zip(axes, shown, strict=True):
        x, y, updated = points(part, arm)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.scatter(x[updated], y[updated], s=18, marker="^", color="tab:orange", label="updated")
        axis.scatter(x[~updated], y[~updated], s=12, alpha=0.7, color="tab:blue", label="not updated")
        slope, height = np.polyfit(x[~updated], y[~updated], 1)
        along = np.linspace(x[~updated].min(), x[~updated].max())
        axis.plot(along, height + slope * along, color="tab:blue", linestyle=":", label=f"{slope / 10:+.1f} % in 0.1")
        axis.set(title=arm, xlabel="distance to the nearest updated language")
        axis.set_yscale("symlog", linthresh=LINEAR)
        axis.set_yticks(TICKS, [f"{tick:+g}" if tick else "0" for tick in TICKS])
        axis.minorticks_off()
        axis.legend(fontsize=7)
    low, high = (pick(one) for pick, one in zip((min, max), zip(*(axis.get_ylim() for axis in axes), strict=True)))
    for axis in axes:
        axis.set_ylim(low, high)
    axes[0].set_ylabel("change of the score, %")
    drawn.suptitle(part.family.name)
    return drawn


def improved_by_loss(part: Part) -> Any:
    """Languages improved against the mean loss of those that lose, a line for each arm, a point for each part of its
    change, means over updates and seeds."""
    shown = [arm.name for arm in ARMS if arm.curve and seeds_of(part, arm.name)]
    if not shown:
        return None
    drawn, (axis,) = side_by_side(1, 6.4, 4.6)
    for arm, marker in zip(shown, "osv^Dx", strict=False):
        each = [curve(part, arm, update, seeds_of(part, arm)) for update in part.groups]
        x, y = ([statistics.fmean(values) for values in zip(*rows, strict=True)] for rows in (
            [[point.loss for point in own] for own in each], [[point.improved for point in own] for own in each]
        ))  # fmt: skip
        (line,) = axis.plot(x, y, marker=marker, markersize=5, linestyle=":" if "random" in arm else "-", label=arm)
        for one, loss, improved in zip(each[0], x, y, strict=True):
            axis.annotate(f"{one.part:g}", (loss, improved), xytext=(3, 3), textcoords="offset points", fontsize=7,
                          color=line.get_color())  # fmt: skip
    axis.set(title=f"{part.family.name}: parts of the change", xlabel="mean loss of the languages that lose, %",
             ylabel="languages improved, %")  # fmt: skip
    axis.legend(fontsize=8)
    return drawn
