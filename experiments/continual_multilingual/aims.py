"""What the study was set to show, beside what was measured."""

from collections.abc import Sequence

from experiments.aim import Aim
from experiments.continual_multilingual.arms import ADAPTER, ARMS, FULL, LAFT, LAFT_RANDOM, LORA
from experiments.continual_multilingual.cost import bytes_of
from experiments.continual_multilingual.equal_loss import Comparison, compare
from experiments.continual_multilingual.findings import by_update, paired, seeds_of, summary
from experiments.continual_multilingual.study import Part
from experiments.interval import Interval

PAPER_IMPROVED, PAPER_LOSS = 25.0, -78.0
"""More languages improved, in points, and the change of the mean loss, in per cent (arXiv 2209.06767, abstract)."""
SEEMING = 2.5
"""Per cent of languages that seem clearly worse where no score changes."""
FASTER = 1.2
SEEDS, UPDATES, MINUTES = 3, 6, 90.0
TRAINED = {ADAPTER: "bottleneck", LORA: "lora"}
"""Arms whose steps must be fast -> what they train."""


def aims(parts: Sequence[Part]) -> list[Aim]:
    """Of all families together, then of each, as far as there is something to judge. A difference reaches its aim if
    all of its interval is on that side."""
    shown = {part.family.name: phenomenon(part) for part in parts if summary(part, FULL)}
    found = list[Aim]()
    if shown:
        names = [name for name, aim in shown.items() if aim.reached]
        told = f"{len(names)} of {len(shown)}" + (f": {', '.join(names)}" if names else "")
        found.append(Aim("families with the starting phenomenon", "at least 2", told, len(names) >= 2))
    for part in parts:
        own = [shown[part.family.name]] if part.family.name in shown else []
        others = [other for other in (FULL, LAFT_RANDOM) if seeds_of(part, other) & seeds_of(part, LAFT)]
        own += [at_equal_loss(part, other) for other in others]
        found += [*own, *headline(part), *cost_aims(part), *amounts(part)]
    return found


def signed(value: Interval, unit: str = "") -> str:
    """A change or a difference, with its sign; of a single update the mean alone."""
    return ("+" if value.mean >= 0 else "") + plain(value) + unit


def plain(value: Interval) -> str:
    """A mean and half of its interval; of a single update the mean alone."""
    return f"{value.mean:.1f}" + (f" ± {value.half:.1f}" if value.count > 1 else "")


def phenomenon(part: Part) -> Aim:
    """Full fine-tuning makes updated languages better and others worse."""
    own = summary(part, FULL)
    updated, worse = own["updated"], own["others clearly worse"]
    measured = (
        f"updated {signed(updated, ' %')}; clearly worse {plain(worse)} % of the others; "
        f"aggregate {signed(own['aggregate'], ' %')}"
    )
    return Aim(
        f"{part.family.name}: full fine-tuning",
        f"updated languages better, more than {SEEMING:g} % of the others clearly worse",
        measured,
        updated.low > 0 and worse.low > SEEMING,
    )


def at_equal_loss(part: Part, other: str) -> Aim:
    """LAFT improves more languages than another arm where it loses as much."""
    found = compare(part, LAFT, other)
    assert found is not None
    what = f"{part.family.name}: languages improved at equal mean loss, {LAFT} - {other}"
    reached = found.difference is not None and found.difference.low > 0
    return Aim(what, "more", told(found), reached)


def told(found: Comparison) -> str:
    """A comparison in words."""
    total = len(found.losses) + len(found.apart)
    if found.difference is None or found.improved is None:
        return f"no update of {total} has a common loss"
    ours, theirs = found.improved
    return (
        f"{signed(found.difference, ' points')} ({ours.mean:.1f} % against {theirs.mean:.1f} %), "
        f"{len(found.losses)} of {total} updates"
    )


def headline(part: Part) -> list[Aim]:
    """The paper's two figures: all of LAFT's change beside all of full fine-tuning's."""
    improved, loss = (paired(part, LAFT, FULL, name) for name in ("improved", "loss"))
    if improved is None or loss is None:
        return []
    seeds = seeds_of(part, LAFT) & seeds_of(part, FULL)
    whole = list(by_update(part, FULL, "loss", seeds).values())
    mean = sum(whole) / len(whole)
    relative = f"{100 * loss.mean / mean:+.0f} %" if mean else "nothing is lost by full"
    return [
        Aim(f"{part.family.name}: languages improved, {LAFT} - {FULL}", f"more (paper {PAPER_IMPROVED:+g} points)",
            signed(improved, " points"), improved.low > 0),
        Aim(f"{part.family.name}: mean loss, {LAFT} by {FULL}", f"less (paper {PAPER_LOSS:+g} %)",
            f"{relative}; {signed(loss, ' points')}", loss.high < 0),
    ]  # fmt: skip


def cost_aims(part: Part) -> list[Aim]:
    """Steps and optimizer states of an adapter and of LoRA."""
    found, name = list[Aim](), part.family.name
    for arm, kind in TRAINED.items():
        for cost in part.costs:
            if cost.kind == kind:
                bytes_ = bytes_of(cost.trained)
                found += [
                    Aim(f"{name}: step of {arm}", f"{FASTER:g} x faster than {FULL}", f"{cost.faster:.2f} x",
                        cost.faster >= FASTER),
                    Aim(f"{name}: optimizer state of {arm}", f"{bytes_:,} bytes, of what trains",
                        f"{cost.state_bytes:,} bytes", cost.state_bytes == bytes_),
                ]  # fmt: skip
    return found


def amounts(part: Part) -> list[Aim]:
    """Seeds, updates and time."""
    seeds = min(len(seeds_of(part, arm.name)) for arm in ARMS)
    updates = min((len(run.updates) for run in part.runs), default=0)
    minutes = part.seconds / 60
    return [
        Aim(f"{part.family.name}: seeds x updates of each arm", f"at least {SEEDS} x {UPDATES}", f"{seeds} x {updates}",
            seeds >= SEEDS and updates >= UPDATES),
        Aim(f"{part.family.name}: processor time of all runs", f"at most {MINUTES:g} minutes", f"{minutes:.0f} minutes",
            minutes <= MINUTES),
    ]  # fmt: skip
