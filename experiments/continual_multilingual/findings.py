"""The figures of the paper from the results of a family."""

import statistics
from collections.abc import Sequence

import numpy as np

from experiments.continual_multilingual.study import Part, RunResult
from experiments.continual_multilingual.updates import WHOLE, Update
from experiments.interval import Interval, interval

FIGURES = ("aggregate", "improved", "gain", "loss", "updated", "related", "other")


def changes(before: Sequence[float], after: Sequence[float]) -> np.ndarray:
    """Relative change of each language in per cent, 100 (after - before) / before."""
    first, second = np.array(before), np.array(after)
    return 100 * (second - first) / np.maximum(first, 1e-9)


def figures(change: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """aggregate: mean change. improved: per cent of languages with a change above 0. gain and loss: means of those that
    gain, and of those that lose (0 where none does). updated, related, other: mean change of the group, if there is."""
    found = {
        "aggregate": float(change.mean()),
        "improved": 100 * float((change > 0).mean()),
        "gain": float(change[change > 0].mean()) if (change > 0).any() else 0.0,
        "loss": float(-change[change < 0].mean()) if (change < 0).any() else 0.0,
    }
    for group in ("updated", "related", "other"):
        own = change[[name == group for name in groups]]
        if len(own):
            found[group] = float(own.mean())
    return found


def of_update(run: RunResult, update: Update, part: Part, strength: str = WHOLE) -> dict[str, float]:
    """Figures of one update."""
    before = list(run.before.values())
    return figures(changes(before, update.after[strength]), part.groups["+".join(update.updated)])


def summary(part: Part, arm: str) -> dict[str, Interval]:
    """Means over updates, each the mean over its seeds, with Student's 95 % interval over the updates."""
    found: dict[str, Interval] = {}
    for name in FIGURES:
        by_subset: dict[tuple[str, ...], list[float]] = {}
        for run in part.runs:
            for update in run.updates if run.run.arm == arm else ():
                own = of_update(run, update, part)
                if name in own:
                    by_subset.setdefault(update.updated, []).append(own[name])
        if by_subset:
            found[name] = interval([statistics.fmean(values) for values in by_subset.values()])
    return found
