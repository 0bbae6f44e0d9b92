"""Arms compared where they lose as much: languages improved at the same mean loss of the languages that lose.

Some arms are measured at parts of their change (`Size.strengths`) besides all of it. Of one update these are points
(mean loss, languages improved), means over seeds; between neighbouring parts both follow a line. Two arms are compared
at the largest mean loss that both have: one of them is there with all of its change as a rule, the other with less. A
mean loss that only one of them has, between its least and its largest, is never compared at: lines do not go on, and
the update is told as one without a common loss.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.continual_multilingual.arms import ADAPTER, FULL, LAFT, LAFT_RANDOM, WIDTH, WIDTH_RANDOM
from experiments.continual_multilingual.findings import of_update, seeds_of
from experiments.continual_multilingual.study import Part
from experiments.interval import Interval, interval

PAIRS = (
    (LAFT, FULL),
    (LAFT, LAFT_RANDOM),
    (LAFT, ADAPTER),
    (ADAPTER, FULL),
    (LAFT_RANDOM, FULL),
    (WIDTH, FULL),
    (WIDTH, WIDTH_RANDOM),
)
"""Arms that are compared, the first with the second."""


@dataclass(frozen=True)
class Point:
    """What a part of an arm's change does in one update, mean over seeds."""

    part: float
    """Of the change; 1 is all of it."""
    loss: float
    """Mean loss of the languages that lose, per cent; 0 where none does."""
    improved: float
    """Languages improved, per cent."""


@dataclass(frozen=True)
class Comparison:
    """Two arms at equal mean loss."""

    ours: str
    """Name of the first arm."""
    theirs: str
    """Name of the second."""
    losses: dict[str, float]
    """Update -> the mean loss that they are compared at, of updates with a common one."""
    improved: tuple[Interval, Interval] | None
    """Languages improved there by each, per cent, over these updates; None where there are none."""
    difference: Interval | None
    """Of both, update by update."""
    apart: dict[str, tuple[tuple[float, float], tuple[float, float]]]
    """Update -> (least, largest) mean loss of each, of updates without a common one."""


def curve(part: Part, arm: str, update: str, seeds: set[int]) -> list[Point]:
    """The points of one update (languages with + between), smallest part first; of seeds that have a run of the arm."""
    found: dict[float, list[dict[str, float]]] = {}
    for run in part.runs:
        if run.run.arm == arm and run.run.seed in seeds:
            for one in run.updates:
                for strength in one.after if "+".join(one.updated) == update else ():
                    found.setdefault(float(strength), []).append(of_update(run, one, part, strength))
    return [
        Point(strength, *(statistics.fmean(one[name] for one in found[strength]) for name in ("loss", "improved")))
        for strength in sorted(found)
    ]


def reach(points: Sequence[Point]) -> tuple[float, float]:
    """The least and the largest mean loss that an arm has."""
    return min(point.loss for point in points), max(point.loss for point in points)


def common_loss(ours: Sequence[Point], theirs: Sequence[Point]) -> float | None:
    """The largest mean loss that both have; None where there is none."""
    (low, high), (least, largest) = reach(ours), reach(theirs)
    found = min(high, largest)
    return found if found >= max(low, least) else None


def improved_at(points: Sequence[Point], loss: float) -> float:
    """Languages improved where the mean loss is `loss`. Where several parts have it: with the largest of them.

    ValueError if no part has it.
    """
    for first, second in reversed(list(zip(points, points[1:], strict=False))):
        if second.loss == loss:
            return second.improved
        if min(first.loss, second.loss) <= loss <= max(first.loss, second.loss):
            way = (loss - first.loss) / (second.loss - first.loss)
            return first.improved + way * (second.improved - first.improved)
    if points[0].loss == loss:
        return points[0].improved
    raise ValueError(f"a mean loss of {loss} is not between {reach(points)}")


def compare(part: Part, ours: str, theirs: str) -> Comparison | None:
    """Both arms by the seeds that both have; None where there are none."""
    seeds = seeds_of(part, ours) & seeds_of(part, theirs)
    if not seeds:
        return None
    losses: dict[str, float] = {}
    apart: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {}
    reached: list[tuple[float, float]] = []
    for update in part.groups:
        first, second = (curve(part, arm, update, seeds) for arm in (ours, theirs))
        loss = common_loss(first, second)
        if loss is None:
            apart[update] = reach(first), reach(second)
        else:
            losses[update] = loss
            reached.append((improved_at(first, loss), improved_at(second, loss)))
    if not reached:
        return Comparison(ours, theirs, losses, None, None, apart)
    both = interval([one for one, _ in reached]), interval([other for _, other in reached])
    return Comparison(ours, theirs, losses, both, interval([one - other for one, other in reached]), apart)


def comparisons(part: Part) -> list[Comparison]:
    """All pairs of which there is something."""
    found = (compare(part, ours, theirs) for ours, theirs in PAIRS)
    return [one for one in found if one is not None]
