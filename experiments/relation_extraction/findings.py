"""What the runs say: figures over seeds, differences paired by seed, and the aims."""

from collections.abc import Sequence

from experiments.aim import Aim
from experiments.interval import Interval, interval
from experiments.relation_extraction.arms import ATTENTION, LINEAR, NO_FLOW, PARE, SCRATCH
from experiments.relation_extraction.worker import ALL, LANGUAGE, SENTENCES, Result

ONE, SEVERAL = SENTENCES + "1", SENTENCES + "2+"
PAIRS = (
    (PARE, LINEAR),
    (PARE, ATTENTION),
    (PARE, NO_FLOW),
    (PARE, "average"),
    ("MNRE", ATTENTION),
    (PARE, PARE + SCRATCH),
    (ATTENTION, ATTENTION + SCRATCH),
    ("average", "average" + SCRATCH),
    ("PARE, own NA", PARE),
    ("PARE, padding", PARE),
)
"""Differences that are shown, where both arms took part."""


def by_arm(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of each arm, in the order of their seeds."""
    found: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.run.seed):
        found.setdefault(result.run.arm, []).append(result)
    return found


def groups_of(results: Sequence[Result], kind: str) -> list[str]:
    """The groups of bags of one kind (`SENTENCES`, `LANGUAGE`), in order; of two that are the same bags the first ("2+"
    and "3+", where every bag has five sentences)."""
    names = sorted({group for result in results for group in result.figures if group.startswith(kind)})
    kept, seen = list[str](), list[list[dict[str, float] | None]]()
    for name in names:
        figures = [result.figures.get(name) for result in results]
        if figures not in seen:
            kept.append(name)
            seen.append(figures)
    return kept


def figure(results: Sequence[Result], group: str, name: str) -> Interval | None:
    """Mean over the seeds of one arm; None where it was not measured."""
    values = [result.figures[group][name] for result in results if name in result.figures.get(group, {})]
    return interval(values) if values else None


def paired(results: Sequence[Result], first: str, second: str, group: str = ALL, name: str = "AUC") -> Interval | None:
    """first - second of the same seeds; the linear model, which has none, is the same for all. None without both."""
    arms = by_arm(results)
    ones, others = ({run.run.seed: run for run in arms.get(arm, [])} for arm in (first, second))
    differences = []
    for seed, one in ones.items():
        other = next(iter(others.values()), None) if second == LINEAR else others.get(seed)
        if other is not None and name in one.figures.get(group, {}) and name in other.figures.get(group, {}):
            differences.append(one.figures[group][name] - other.figures[group][name])
    return interval(differences) if differences else None


def aims(results: Sequence[Result]) -> list[Aim]:
    """The claims and the bar of the linear model, as far as their arms took part."""
    wanted = [
        (f"{PARE} minus {LINEAR}, AUC", PARE, LINEAR, ALL),
        (f"{PARE} minus {ATTENTION}, AUC (PARE's claim)", PARE, ATTENTION, ALL),
        (f"{PARE} minus {NO_FLOW}, AUC, bags of several sentences (what flow between sentences adds)", PARE, NO_FLOW,
         SEVERAL),
        (f"{PARE} minus {PARE}{SCRATCH}, AUC (what pre-training adds)", PARE, PARE + SCRATCH, ALL),
        (f"MNRE minus {ATTENTION}, AUC (DiS-ReX's order)", "MNRE", ATTENTION, ALL),
    ]  # fmt: skip
    found = []
    for what, first, second, group in wanted:
        difference = paired(results, first, second, group)
        if difference is not None:
            found.append(Aim(what, "interval above 0", str(difference), difference.low > 0))
    nothing = paired(results, PARE, NO_FLOW, ONE)
    if nothing is not None:
        what = f"{PARE} minus {NO_FLOW}, AUC, bags of one sentence (the control: no flow to lose)"
        found.append(Aim(what, "0 in the interval", str(nothing), nothing.low <= 0 <= nothing.high))
    return found


__all__ = ["ALL", "LANGUAGE", "PAIRS", "SENTENCES", "aims", "by_arm", "figure", "groups_of", "paired"]
