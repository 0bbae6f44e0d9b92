"""The figures of the paper from the results of a family."""

import statistics
from collections.abc import Sequence

import numpy as np

from experiments.continual_multilingual.study import Part, RunResult
from experiments.continual_multilingual.updates import WHOLE, Update
from experiments.interval import Interval, interval

FIGURES = (
    "aggregate", "improved", "improved clearly", "gain", "loss", "updated", "related", "other", "others clearly worse"
)  # fmt: skip
ERRORS = 2.0
"""A change is clear if it is more than so many of its standard errors (of test rows, paired): of a score that does not
change, one language in forty seems to gain so much, and one in forty to lose it."""


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


def clear_figures(change: np.ndarray, errors: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """improved clearly: per cent of languages that gain more than ERRORS standard errors. others clearly worse: per
    cent of those that were not updated that lose more than as many. errors: in the unit of the changes."""
    others = np.array([name != "updated" for name in groups])
    return {
        "improved clearly": 100 * float((change > ERRORS * errors).mean()),
        "others clearly worse": 100 * float((change < -ERRORS * errors)[others].mean()),
    }


def of_update(run: RunResult, update: Update, part: Part, strength: str = WHOLE) -> dict[str, float]:
    """Figures of one update; of a part of its change those that need no standard errors."""
    before, groups = list(run.before.values()), part.groups["+".join(update.updated)]
    change = changes(before, update.after[strength])
    found = figures(change, groups)
    if strength == WHOLE:
        found |= clear_figures(change, 100 * np.array(update.errors) / np.maximum(before, 1e-9), groups)
    return found


def by_update(part: Part, arm: str, name: str, seeds: set[int] | None = None) -> dict[str, float]:
    """Update (languages with + between) -> a figure of an arm, mean over seeds; default: over all."""
    found: dict[str, list[float]] = {}
    for run in part.runs:
        if run.run.arm == arm and (seeds is None or run.run.seed in seeds):
            for update in run.updates:
                own = of_update(run, update, part)
                if name in own:
                    found.setdefault("+".join(update.updated), []).append(own[name])
    return {update: statistics.fmean(values) for update, values in found.items()}


def summary(part: Part, arm: str) -> dict[str, Interval]:
    """Means over updates, each the mean over its seeds, with Student's 95 % interval over the updates."""
    each = {name: list(by_update(part, arm, name).values()) for name in FIGURES}
    return {name: interval(values) for name, values in each.items() if values}


def seeds_of(part: Part, arm: str) -> set[int]:
    """Those with a run of the arm."""
    return {run.run.seed for run in part.runs if run.run.arm == arm}


def paired(part: Part, arm: str, against: str, name: str) -> Interval | None:
    """arm - against of a figure, update by update, of the seeds that both have; None where there are none."""
    seeds = seeds_of(part, arm) & seeds_of(part, against)
    ours, theirs = (by_update(part, which, name, seeds) for which in (arm, against))
    both = [ours[update] - theirs[update] for update in ours if update in theirs]
    return interval(both) if both else None
