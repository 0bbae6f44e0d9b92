"""Tables for the terminal and for the dated report, and the numbers, from the same results."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from experiments import pages
from experiments.choosing import command_line
from experiments.continual_multilingual.aims import aims, plain, signed
from experiments.continual_multilingual.arms import ARMS, arm_named
from experiments.continual_multilingual.equal_loss import Comparison, comparisons
from experiments.continual_multilingual.findings import FIGURES, summary
from experiments.continual_multilingual.study import Part
from experiments.interval import Interval
from experiments.speed.report import Rows

WORKS = "Tiny models and a few steps: this shows that the experiment works and nothing else."


def write_report(parts: Sequence[Part], pictures: Sequence[str], machine: Mapping[str, str]) -> str:
    """The dated report, Markdown."""
    return pages.write_page(
        [
            f"# Continual multilingual learning, {datetime.date.today().isoformat()}",
            f"`{command_line('experiments.continual_multilingual')}`; claim, arms and protocol are in "
            "[experiments/continual_multilingual](../../experiments/continual_multilingual/README.md). Relative "
            "changes of scores on test rows in per cent, means over updates (each the mean of its seeds) with "
            "Student's 95 % intervals over updates.",
        ],
        missing=[f"{part.family.name} {name}" for part in parts for name in part.missing],
        tables=tables(parts),
        pictures=pictures,
        machine=machine,
        ending=pages.falls_short(aims(parts)),
    )


def tables(parts: Sequence[Part]) -> list[pages.Table]:
    """Title and rows of every table that has anything in it."""
    found: list[pages.Table] = [pages.aim_table(aims(parts))]
    for part in parts:
        name = part.family.name
        found += [
            (f"{name}: changes, %", change_rows(part)),
            (f"{name}: languages improved at equal mean loss, %", equal_loss_rows(comparisons(part))),
            (f"{name}: updates without a common mean loss", apart_rows(comparisons(part))),
            (f"{name}: steps", cost_rows(part)),
            (f"{name}: models before the updates", before_rows(part)),
            (f"{name}: rates and penalties", choice_rows(part)),
        ]
    return [(title, rows) for title, rows in found if len(rows) > 1]


def change_rows(part: Part) -> Rows:
    """Arms x figures."""
    rows = [["arm", "seeds", *FIGURES]]
    for arm in ARMS:
        found = summary(part, arm.name)
        if found:
            cells = [found.get(name) for name in FIGURES]
            seeds = sum(run.run.arm == arm.name for run in part.runs)
            rows.append([arm.name, str(seeds), *("-" if cell is None else plain(cell) for cell in cells)])
    return rows


def equal_loss_rows(found: Sequence[Comparison]) -> Rows:
    """Pairs of arms, over the updates with a common mean loss."""
    rows = [["arms", "updates", "mean loss there", "first", "second", "difference"]]
    for one in found:
        updates = f"{len(one.losses)} of {len(one.losses) + len(one.apart)}"
        cells = ["-"] * 4
        if one.improved is not None and one.difference is not None:
            mean = sum(one.losses.values()) / len(one.losses)
            cells = [f"{mean:.2f}", *map(plain, one.improved), signed(one.difference)]
        rows.append([f"{one.ours}, {one.theirs}", updates, *cells])
    return rows


def apart_rows(found: Sequence[Comparison]) -> Rows:
    """What is not compared: least and largest mean loss of both arms."""
    rows = [["arms", "update", "mean loss of the first, %", "of the second, %"]]
    for one in found:
        for update, reaches in one.apart.items():
            rows.append([f"{one.ours}, {one.theirs}", update, *(f"{a:.2f} to {b:.2f}" for a, b in reaches)])
    return rows


def cost_rows(part: Part) -> Rows:
    """By what trains."""
    rows = [["what trains", "numbers", "optimizer state, bytes", "milliseconds", "times faster than full"]]
    for one in part.costs:
        rows.append(
            [one.kind, f"{one.trained:,}", f"{one.state_bytes:,}", f"{one.milliseconds:.1f}", f"{one.faster:.2f}"]
        )
    return rows


def before_rows(part: Part) -> Rows:
    """Stage 0: score of each language, per cent, mean over seeds."""
    by_seed = {run.run.seed: run for run in part.runs}.values()
    rows = [["", "seeds", "all", *part.family.languages]]
    if by_seed:
        scores = [[100 * run.before[name] for run in by_seed] for name in part.family.languages]
        means = [sum(values) / len(values) for values in scores]
        rows.append(["score", str(len(by_seed)), f"{sum(means) / len(means):.1f}", *(f"{one:.1f}" for one in means)])
    return rows


def choice_rows(part: Part) -> Rows:
    """What was chosen, and what was tried."""
    rows = [["arm", "chosen", "tried: gain on development rows of the updated languages, points"]]
    if part.choice is not None:
        for name in dict.fromkeys(name for name, _, _ in part.choice.tried):
            arm, own = arm_named(name), [(value, gain) for one, value, gain in part.choice.tried if one == name]
            rate, pull = part.choice.of(arm)
            # L2-SP and EWC are tried by strength, at the rate of full fine-tuning.
            chosen = f"strength {pull:g}" if arm.penalty else f"rate {rate:g}"
            rows.append([name, chosen, ", ".join(f"{value:g}: {100 * gain:+.1f}" for value, gain in own)])
    return rows


def as_json(parts: Sequence[Part]) -> dict[str, Any]:
    """Runs, figures, comparisons and aims. Of a single update there is no interval: only its mean is told."""
    return {
        "aims": [asdict(aim) for aim in aims(parts)],
        "families": {part.family.name: _family(part) for part in parts},
    }


def _family(part: Part) -> dict[str, Any]:
    figures = {arm.name: summary(part, arm.name) for arm in ARMS}
    return {
        "runs": [run.run.name for run in part.runs],
        "missing": part.missing,
        "covered": part.covered,
        "rows": part.rows,
        "seconds": part.seconds,
        "figures": {arm: {name: _finite(one) for name, one in own.items()} for arm, own in figures.items() if own},
        "equal loss": [
            {
                "arms": [one.ours, one.theirs],
                "losses": one.losses,
                "apart": one.apart,
                "improved": None if one.improved is None else [_finite(each) for each in one.improved],
                "difference": None if one.difference is None else _finite(one.difference),
            }
            for one in comparisons(part)
        ],
        "costs": [asdict(one) for one in part.costs],
    }


def _finite(value: Interval) -> dict[str, float | None]:
    return {"mean": value.mean, "half": value.half if value.count > 1 else None, "updates": value.count}
