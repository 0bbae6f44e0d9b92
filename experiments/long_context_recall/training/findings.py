"""What the runs say: recall by arm, task and length over seeds, the language model's loss, and the aims."""

import statistics
from collections.abc import Sequence

from experiments.aim import Aim
from experiments.interval import Interval, interval
from experiments.long_context_recall.findings import Recall, wilson
from experiments.long_context_recall.training.arms import MAIN, NO_NEEDLES
from experiments.long_context_recall.training.worker import Result

GOAL = 0.99
SEVERAL = "needle-1-of-10"
"""The task in which keys must be told apart."""


def by_arm(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of each arm, in order."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.run.arm, []).append(result)
    return found


def tasks_of(results: Sequence[Result]) -> list[str]:
    """That any of the runs was asked, in order."""
    return list(dict.fromkeys(cell.task for result in results for cell in result.examined))


def lengths_of(results: Sequence[Result], task: str) -> list[int]:
    """That a task was asked at."""
    return sorted({cell.length for result in results for cell in result.examined if cell.task == task})


def scores(result: Result, task: str, lengths: Sequence[int]) -> list[float]:
    """Of all depths and samples."""
    chosen = [cell for cell in result.examined if cell.task == task and cell.length in lengths]
    return [score for cell in chosen for score in cell.scores]


def recall_of(runs: Sequence[Result], task: str, lengths: Sequence[int]) -> Interval | None:
    """Mean over seeds of the mean over depths and samples, with Student's interval; None where nothing was asked."""
    means = [statistics.fmean(found) for run in runs if (found := scores(run, task, lengths))]
    return interval(means) if means else None


def pooled_recall(runs: Sequence[Result], task: str, lengths: Sequence[int]) -> Recall | None:
    """All samples of all seeds together, with Wilson's interval: of what the samples leave open, not of seeds."""
    found = [score for run in runs for score in scores(run, task, lengths)]
    return wilson(found) if found else None


def worst_cell(runs: Sequence[Result], lengths: Sequence[int]) -> tuple[str, float]:
    """(name, mean over seeds) of the cell of the lowest recall, over all tasks."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for cell in run.examined:
            if cell.length in lengths:
                name = f"{cell.task}, {cell.length:,} tokens" + ("" if cell.depth is None else f", {cell.depth:g} %")
                found.setdefault(name, []).extend(cell.scores)
    means = {name: statistics.fmean(values) for name, values in found.items()}
    return min(means.items(), key=lambda item: item[1])


def cost_of_needles(results: Sequence[Result]) -> Interval | None:
    """Loss on held-out novels of the recipe minus that of the same run without needles, paired by seed."""
    losses = {name: {run.run.seed: run.text_loss for run in runs} for name, runs in by_arm(results).items()}
    both = sorted(set(losses.get(MAIN, {})) & set(losses.get(NO_NEEDLES, {})))
    return interval([losses[MAIN][seed] - losses[NO_NEEDLES][seed] for seed in both]) if both else None


def aims(results: Sequence[Result]) -> list[Aim]:
    """The goals of the recipe, as far as it was run."""
    runs = by_arm(results).get(MAIN, [])
    if not runs:
        return []
    trained, found = runs[0].trained_length, list[Aim]()
    for task in tasks_of(runs):
        lengths = lengths_of(runs, task)
        within = [length for length in lengths if length <= trained]
        if (recall := recall_of(runs, task, within)) is not None:
            found.append(
                Aim(f"{task}, up to {trained:,} tokens", f"recall of at least {GOAL:.0%}", percent(recall),
                    recall.mean >= GOAL)
            )  # fmt: skip
    cell, value = worst_cell(runs, [length for task in tasks_of(runs) for length in lengths_of(runs, task)
                                    if length <= trained])  # fmt: skip
    found.append(Aim("every depth and kind of key up to there", f"at least {GOAL:.0%}", f"{value:.1%}, {cell}",
                     value >= GOAL))  # fmt: skip
    found.append(Aim("trained length", "at least 8,192 tokens", f"{trained:,}", trained >= 8192))
    found.append(Aim("seeds", "at least 3", str(len(runs)), len(runs) >= 3))
    return found


def percent(value: Interval) -> str:
    """ "98.2 ± 1.1 %"."""
    if value.count == 1:
        return f"{100 * value.mean:.1f} % (one seed)"
    return f"{100 * value.mean:.1f} ± {100 * value.half:.1f} %"
