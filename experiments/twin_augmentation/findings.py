"""What the runs say: figures over seeds, differences paired by seed, what of an accuracy is the source, the aims."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.aim import Aim
from experiments.interval import Interval, interval
from experiments.twin_augmentation.arms import COLLECTIONS, COVID, Arm, arm_named
from experiments.twin_augmentation.heads import HEADS, LOGISTIC, PRIOR, SOFTMAX, THRESHOLD, TWIN, TWIN_CHOSEN
from experiments.twin_augmentation.worker import Result

BALANCED, AUC = "balanced accuracy", "ROC-AUC"
GAINS = (
    (TWIN, SOFTMAX, BALANCED),
    (TWIN, PRIOR, BALANCED),
    (TWIN_CHOSEN, THRESHOLD, BALANCED),
    (TWIN_CHOSEN, LOGISTIC, BALANCED),
    (TWIN, SOFTMAX, AUC),
    (TWIN_CHOSEN, LOGISTIC, AUC),
)
"""Differences that are shown. twin and the prior-corrected softmax choose nothing; the others choose on the same
held-out patients. The shifted softmax has the plain one's ROC-AUC."""


@dataclass(frozen=True)
class Cell:
    """One arm at one ratio."""

    arm: Arm
    """Collection, backbone and view."""
    ratio: int
    """Negatives for each positive."""
    runs: list[Result]
    """One for each seed, in their order."""

    @property
    def heads(self) -> list[str]:
        """Those that took part, in the order of `HEADS`."""
        return [head for head in HEADS if all(head in run.figures for run in self.runs)]


def cells(results: Sequence[Result], collection: str | None = None) -> list[Cell]:
    """Arms and ratios in the order of their first run."""
    found: dict[tuple[str, int], list[Result]] = {}
    for result in sorted(results, key=lambda result: result.run.seed):
        found.setdefault((result.run.arm, result.run.ratio), []).append(result)
    made = [Cell(arm_named(arm), ratio, runs) for (arm, ratio), runs in found.items()]
    return [cell for cell in made if collection in (None, cell.arm.collection)]


def collections_of(results: Sequence[Result]) -> list[str]:
    """Those that took part, in the order of `COLLECTIONS`."""
    there = {arm_named(result.run.arm).collection for result in results}
    return [name for name in COLLECTIONS if name in there]


def figure(cell: Cell, head: str, name: str, *, foreign: bool = False) -> Interval | None:
    """Mean over the seeds; None where it was not measured."""
    tables = [run.foreign if foreign else run.figures for run in cell.runs]
    values = [table[head][name] for table in tables if name in table.get(head, {})]
    return interval(values) if values else None


def gain(cell: Cell, first: str, second: str, name: str) -> Interval | None:
    """first - second of the same seeds. None where one of them did not take part."""
    pairs = [(run.figures.get(first, {}), run.figures.get(second, {})) for run in cell.runs]
    values = [one[name] - other[name] for one, other in pairs if name in one and name in other]
    return interval(values) if values else None


def source_share(results: Sequence[Result], head: str = SOFTMAX) -> tuple[Interval, Interval, Interval] | None:
    """(ROC-AUC of COVID-19 against the rest from whole images, from the border alone, (border - 1/2) / (whole - 1/2)),
    paired by seed: the last is the part of what is above chance that needs no lung. None without both arms."""
    whole, border = (
        {run.run.seed: run for cell in cells(results, COVID) if cell.arm.view == view for run in cell.runs}
        for view in ("whole", "border")
    )
    seeds = sorted(set(whole) & set(border))
    if not seeds:
        return None
    one, other = ([runs[seed].figures[head][AUC] for seed in seeds] for runs in (whole, border))
    return interval(one), interval(other), interval([(b - 0.5) / (a - 0.5) for a, b in zip(one, other)])


def border_saliency(run: Result) -> float | None:
    """The part of the mean saliency that lies on the outer eighth on each side, which is 7/16 of the image."""
    if not run.saliency:
        return None
    side = len(run.saliency)
    width = side // 8
    inner = sum(sum(row[width : side - width]) for row in run.saliency[width : side - width])
    return 1 - inner / sum(map(sum, run.saliency))


def aims(results: Sequence[Result]) -> list[Aim]:
    """The claim, for each network of both collections with two classes within a source, and the control."""
    found = []
    for cell in cells(results):
        if cell.arm.collection == COVID or cell.arm.backbone == "pixels":
            continue
        for first, second in ((TWIN, SOFTMAX), (TWIN, PRIOR), (TWIN_CHOSEN, THRESHOLD)):
            difference = gain(cell, first, second, BALANCED)
            if difference is not None and difference.count > 1:
                what = f"{cell.arm.name}, 1:{cell.ratio}: {first} minus {second}, {BALANCED}"
                found.append(Aim(what, "interval above 0", str(difference), difference.low > 0))
    return found
