"""What the runs say: means with intervals, differences seed by seed, and the goals beside what was measured."""

from collections.abc import Sequence

from experiments.aim import Aim
from experiments.interval import Interval, interval
from experiments.shared_workspace import cost
from experiments.shared_workspace.arms import MAIN, QUESTION_ONLY, SWEPT_SLOTS, SWEPT_WRITERS, swept_name
from experiments.shared_workspace.cost import Costs
from experiments.shared_workspace.result import Result
from experiments.shared_workspace.sort_of_clevr import KINDS

FROM = 1024
"""Specialists from which power laws are fitted: below, linear maps of a layer cost more than what grows faster."""
LINEAR, QUADRATIC = 1.2, 1.7
"""Exponents up to and from which growth is called so: 1 and 2 with room for caches, and for the linear maps."""
FASTER = 5.0


def by_arm(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of each arm, in order."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.run.arm, []).append(result)
    return found


def figure(results: Sequence[Result], arm: str, name: str) -> Interval | None:
    """Mean over seeds of an arm's figure; None where it has none."""
    found = [result.figures[name] for result in results if result.run.arm == arm and name in result.figures]
    return interval(found) if found else None


def paired(results: Sequence[Result], arm: str, against: str, name: str) -> Interval | None:
    """arm - against, seed by seed; None where no seed has both."""
    ours, theirs = (
        {r.run.seed: r.figures[name] for r in results if r.run.arm == which and name in r.figures}
        for which in (arm, against)
    )
    both = sorted(ours.keys() & theirs.keys())
    return interval([ours[seed] - theirs[seed] for seed in both]) if both else None


def bounded(value: Interval) -> str:
    """An interval's mean and half width; of one seed the mean alone, so named."""
    return f"{value.mean:.3f} (one seed)" if value.count == 1 else f"{value.mean:.3f} ± {value.half:.3f}"


def clears(results: Sequence[Result], arm: str, kind: str) -> bool | None:
    """Whether an arm is above the question-only baseline by more than the interval of their difference, seed by seed;
    of one seed, whether it is above. None where there is nothing to compare."""
    difference = paired(results, arm, QUESTION_ONLY, kind)
    if difference is None:
        return None
    return difference.mean > 0 if difference.count == 1 else difference.low > 0


def sweep(results: Sequence[Result], name: str) -> list[list[Interval | None]]:
    """A figure by slots (rows) and writers (columns)."""
    return [[figure(results, swept_name(slots, top_k), name) for top_k in SWEPT_WRITERS] for slots in SWEPT_SLOTS]


def aims(results: Sequence[Result], costs: Costs | None) -> list[Aim]:
    """The goals that were set, as far as they were measured."""
    found = list(cost_aims(costs)) if costs is not None else []
    arms = by_arm(results)
    variants = [arm.name for arm in MAIN if arm.trained and arm.name in arms]
    for kind in KINDS:
        told = {arm: clears(results, arm, kind) for arm in variants}
        known = {arm: above for arm, above in told.items() if above is not None}
        if known:
            below = [arm for arm, above in known.items() if not above]
            worst = min((interval_of(results, arm, kind).mean, arm) for arm in known)
            base = figure(results, QUESTION_ONLY, kind)
            assert base is not None
            measured = f"least: {worst[1]}, {worst[0]:.3f} against {base.mean:.3f}"
            measured += f"; not above: {', '.join(below)}" if below else ""
            found.append(Aim(f"Sort-of-CLEVR, {kind}", "all above the question alone", measured, not below))
    if variants:
        seeds = min(len(arms[arm]) for arm in variants)
        found.append(Aim("seeds of each variant", "at least 3", str(seeds), seeds >= 3))
    return found


def interval_of(results: Sequence[Result], arm: str, name: str) -> Interval:
    """`figure`, which must be there."""
    value = figure(results, arm, name)
    assert value is not None
    return value


def cost_aims(costs: Costs) -> Sequence[Aim]:
    """Growth of time and memory, and the ratio at the largest number of specialists."""
    found = []
    for part, measured in (("result", costs.forward), ("gradient", costs.training)):
        if sum(c.specialists >= FROM for c in measured if c.kind == "pairwise") < 2:
            continue
        for kind in cost.KINDS:
            p = cost.exponent(measured, kind, at_least=FROM)
            if kind == "pairwise":
                found.append(Aim(f"time of a layer's {part}, {kind}", f"grows as n^2 (at least n^{QUADRATIC:g})",
                                 f"n^{p:.2f}", p >= QUADRATIC))  # fmt: skip
                continue
            found.append(Aim(f"time of a layer's {part}, {kind}", f"grows as n (at most n^{LINEAR:g})", f"n^{p:.2f}",
                             p <= LINEAR))  # fmt: skip
            p = cost.exponent(measured, kind, field="temporary_bytes", at_least=FROM)
            found.append(Aim(f"memory of a layer's {part}, {kind}", f"grows as n (at most n^{LINEAR:g})", f"n^{p:.2f}",
                             p <= LINEAR))  # fmt: skip
            most, times = cost.ratio(measured, kind)
            found.append(Aim(f"a layer's {part} at {most:,} specialists, {kind}", f"{FASTER:g} x faster than pairwise",
                             f"{times:.1f} x", times >= FASTER))  # fmt: skip
    return found
