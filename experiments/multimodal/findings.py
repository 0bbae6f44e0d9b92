"""What the runs say: means with intervals over seeds, differences seed by seed, and the goals beside what was found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.aim import Aim
from experiments.interval import Interval, interval
from experiments.multimodal.arms import JOINT, SINGLES, TEXT_ONLY
from experiments.multimodal.worker import Result


@dataclass(frozen=True)
class Metric:
    """Something that is measured of several models."""

    name: str
    """As in `Result.measured`."""
    label: str
    """In words."""
    single: str
    """The model of one modality that it is also measured of."""
    lower: bool = False
    """Nats, of which fewer are better; else a part of one."""
    chance: float | None = None
    """What guessing gives, where no most frequent answer is counted."""


METRICS = (
    Metric("speech/test/accuracy", "spoken digits, official split", "speech"),
    Metric("speech/speaker/accuracy", "spoken digits, held-out speaker", "speech"),
    Metric("picture/test/nats", "captions of pictures, nats per token", "picture", lower=True),
    Metric("picture/test/choice", "the right caption of ten", "picture", chance=0.1),
    Metric("statement/test/accuracy", "statements about pictures", "picture"),
    Metric("digit/test/accuracy", "images of digits", "video"),
    Metric("video_order/test/accuracy", "video: which digit came first or last", "video"),
    Metric("video_motion/test/accuracy", "video: where a digit moves", "video"),
    Metric("pair/test/accuracy", "two images: which digit came first or last", "video"),
    Metric("draw/test/nats", "codes of real digits, nats per code", "draw", lower=True),
    Metric("draw/accuracy", "drawn digits that are what was asked for", "draw", chance=0.1),
    Metric("text/test/nats", "text, nats per token", "text", lower=True),
)
"""What is compared, in the order of the report."""
UNDECIDED = ("statement/test/accuracy", "text/test/nats", "draw/test/nats")
"""Left out of the goals: sentences that so small a model learns little of (it is reported), and what has no baseline
without media."""


def by_arm(runs: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of each arm, in the order of their seeds."""
    found: dict[str, list[Result]] = {}
    for result in sorted(runs, key=lambda result: result.run.seed):
        found.setdefault(result.run.arm, []).append(result)
    return {arm: found[arm] for arm in (JOINT, TEXT_ONLY, *SINGLES) if arm in found}


def value(runs: Sequence[Result], arm: str, name: str) -> Interval | None:
    """The mean and interval of a number over the seeds of an arm; None where it was not measured."""
    values = [r.measured[name] for r in by_arm(runs).get(arm, []) if name in r.measured]
    return interval(values) if values else None


def paired(runs: Sequence[Result], metric: Metric) -> Interval | None:
    """Joint minus single, seed by seed."""
    found = by_arm(runs)
    ours, theirs = (
        {r.run.seed: r.measured[metric.name] for r in found.get(arm, []) if metric.name in r.measured}
        for arm in (JOINT, metric.single)
    )
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    return interval(differences) if differences else None


def shown(found: Interval | None, lower: bool) -> str:
    """An interval as a table has it: parts in per cent, nats as they are."""
    if found is None:
        return "-"
    scale, unit, places = (1.0, "", 3) if lower else (100.0, " %", 1)
    half = "" if found.count == 1 else f" ± {scale * found.half:.{places}f}"
    return f"{scale * found.mean:.{places}f}{half}{unit}"


def baseline(runs: Sequence[Result], majority: Mapping[str, float], metric: Metric) -> list[Interval]:
    """What the joint model must beat: guessing, the most frequent answer, and the model that sees texts alone."""
    found = [value(runs, TEXT_ONLY, metric.name)]
    usual = majority.get(metric.name.rpartition("/")[0]) if metric.name.endswith("accuracy") else None
    for number in (usual, metric.chance):
        found.append(None if number is None else Interval(number, 0.0, 1))
    return [each for each in found if each is not None]


def aims(runs: Sequence[Result], majority: Mapping[str, float]) -> list[Aim]:
    """The goals that this experiment was set."""
    listed = []
    for metric in METRICS:
        ours, bars = value(runs, JOINT, metric.name), baseline(runs, majority, metric)
        if ours is None or metric.name in UNDECIDED or not bars:
            continue
        if metric.lower:
            bar = min(bars, key=lambda each: each.mean)
            reached = ours.high < bar.low
        else:
            bar = max(bars, key=lambda each: each.mean)
            reached = ours.low > bar.high
        side = "below" if metric.lower else "above"
        goal = f"{side} the best baseline, {shown(bar, metric.lower)}, intervals apart"
        listed.append(Aim(metric.label, goal, shown(ours, metric.lower), reached))
    follows = value(runs, JOINT, "pair/test/follows")
    if follows is not None:
        goal = "> 50 % of pairs right in both orders"
        listed.append(Aim("swapped images swap the answer", goal, shown(follows, False), follows.low > 0.5))
    return listed


def drawn_of_each(results: Sequence[Result]) -> list[float]:
    """For each digit the part of what was drawn in which the classifier sees it."""
    seen = np.array([r.drawn for r in results]).reshape(len(results), 10, -1)
    return [float(np.mean(seen[:, digit] == digit)) for digit in range(10)]
