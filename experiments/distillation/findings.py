"""What the runs say: means with intervals, gaps seed by seed, and the goals beside what was measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.aim import Aim
from experiments.distillation.arms import BUDGETS, DISTILLED, RATES, SCRATCH, TEACHER, at_budget, at_rate
from experiments.distillation.texts import NOVELS
from experiments.distillation.worker import Result
from experiments.interval import Interval, interval

MOST_OVER = 1.1
"""A step with a teacher may take so many times what it is made of."""


def runs_of_arm(results: Sequence[Result], arm: str, width: int) -> dict[int, Result]:
    """By seed."""
    chosen = [result for result in results if (result.run.arm, result.run.width) == (arm, width)]
    return {result.run.seed: result for result in sorted(chosen, key=lambda result: result.run.seed)}


def teacher_of(results: Sequence[Result]) -> Result | None:
    """The teacher's run, None where it is not there."""
    return next((result for result in results if result.run.arm == TEACHER), None)


def widths_of(results: Sequence[Result], arm: str = SCRATCH) -> list[int]:
    """Students that an arm has, rising."""
    return sorted({result.run.width for result in results if result.run.arm == arm})


def losses(results: Sequence[Result], arm: str, width: int, text: str = NOVELS) -> Interval | None:
    """Nats per token of a text, over seeds; None where there is no run."""
    found = [result.held_out[text].nats for result in runs_of_arm(results, arm, width).values()]
    return interval(found) if found else None


def minus(results: Sequence[Result], arm: str, against: str, width: int, text: str = NOVELS) -> Interval | None:
    """The difference of two arms' losses, seed by seed: runs of a seed read the same tokens in the same order. Over the
    seeds that both have; None where there are none."""
    ours, theirs = (runs_of_arm(results, name, width) for name in (arm, against))
    differences = [ours[seed].held_out[text].nats - theirs[seed].held_out[text].nats for seed in ours if seed in theirs]
    return interval(differences) if differences else None


def budgets_of(results: Sequence[Result], width: int) -> list[tuple[int, str, str]]:
    """(tokens, scratch arm, distilled arm) of every budget that a student was trained with, rising."""
    pairs = [(at_budget(SCRATCH, name), at_budget(DISTILLED, name)) for name in BUDGETS] + [(SCRATCH, DISTILLED)]
    found = []
    for scratch, distilled in pairs:
        both = [*runs_of_arm(results, scratch, width).values(), *runs_of_arm(results, distilled, width).values()]
        if both:
            found.append((both[0].tokens, scratch, distilled))
    return sorted(found)


def best_rate(results: Sequence[Result], width: int) -> tuple[float, float] | None:
    """(factor, loss) of the best of the baseline's learning rates, of the seed that has all of them; None where none
    has."""
    factors = {SCRATCH: 1.0, **{at_rate(name): factor for name, factor in RATES.items()}}
    by_arm = {arm: runs_of_arm(results, arm, width) for arm in factors}
    for seed in by_arm[SCRATCH]:
        if all(seed in runs for runs in by_arm.values()):
            tried = {factor: by_arm[arm][seed].held_out[NOVELS].nats for arm, factor in factors.items()}
            return min(tried.items(), key=lambda pair: pair[1])
    return None


def aims(results: Sequence[Result], checks: Mapping[str, Any]) -> list[Aim]:
    """The goals that this experiment was set; what was not measured is left out. checks: by name, what `speed` and
    `resume` wrote."""
    found = quality_aims(results)
    if "speed" in checks:
        found += speed_aims(checks["speed"])
    if "resume" in checks:
        same = checks["resume"]["same"]
        said = f"{'the same' if same else 'different'}, {checks['resume']['arrays']} arrays of the state"
        found.append(Aim("a run with a teacher, killed and resumed", "the same bits", said, same))
    return found


def quality_aims(results: Sequence[Result]) -> list[Aim]:
    """Distilled students against those from scratch."""
    below, apart, controls = dict[int, bool](), dict[int, bool](), dict[int, bool]()
    gaps = []
    for width in widths_of(results):
        scratch, distilled = losses(results, SCRATCH, width), losses(results, DISTILLED, width)
        gap = minus(results, DISTILLED, SCRATCH, width)
        if scratch is None or distilled is None or gap is None:
            continue
        below[width], apart[width] = distilled.mean < scratch.mean, distilled.high < scratch.low
        gaps.append(f"{width}: {gap}")
        best = best_rate(results, width)
        if best is not None:
            seeds = runs_of_arm(results, DISTILLED, width)
            controls[width] = next(iter(seeds.values())).held_out[NOVELS].nats < best[1]
    if not below:
        return []
    count = len(below)
    listed = [
        Aim("distilled minus scratch at equal tokens, nats, by width", f"below 0 for all {count}", "; ".join(gaps),
            all(below.values())),
        Aim("95 % intervals of the two apart", f"for at least {min(2, count)} of {count} widths",
            _names(apart) or "for none", sum(apart.values()) >= min(2, count)),
    ]  # fmt: skip
    if controls:
        what = "distilled below the best of three learning rates of scratch, first seed"
        listed.append(Aim(what, f"for all {len(controls)}", _names(controls) or "for none", all(controls.values())))
    return listed


def _names(which: Mapping[int, bool]) -> str:
    return ", ".join(str(width) for width, value in which.items() if value)


def speed_aims(speed: Mapping[str, Any]) -> list[Aim]:
    """Of all students; the largest of the medians over rounds decides."""
    found = []
    for name, what in (
        ("online", "online step / (student's step + teacher's forward pass)"),
        ("cached", "step from a top-k cache / student's step"),
    ):
        medians = {width: each[name]["median"] for width, each in speed["ratios"].items()}
        said = ", ".join(f"{width}: {value:.2f}x" for width, value in medians.items())
        found.append(Aim(what, f"<= {MOST_OVER:g}x", said, max(medians.values()) <= MOST_OVER))
    return found


def perplexity(loss: float) -> float:
    """exp of nats per token."""
    return math.exp(loss)
