"""Tables and the dated report of a study."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from experiments.distillation.arms import (
    DISTILLED,
    HALF_LABELS,
    KEPT,
    ON_POLICY,
    RATES,
    SCRATCH,
    TEACHER,
    arm_named,
    at_rate,
    top,
)
from experiments.distillation.findings import (
    aims,
    budgets_of,
    losses,
    minus,
    perplexity,
    runs_of_arm,
    teacher_of,
    widths_of,
)
from experiments.distillation.sizes import Size
from experiments.distillation.speed import speed_rows
from experiments.distillation.texts import NOVELS, WIKITEXT
from experiments.distillation.worker import Result
from experiments.interval import Interval
from experiments.pages import aim_table, falls_short, write_page
from experiments.speed.report import Rows, as_markdown, as_text

__all__ = ["WORKS", "Study", "as_json", "as_text", "tables", "write_report"]

WORKS = "These are a few steps of tiny models: they show that training and measuring work, and nothing else."


@dataclass(frozen=True)
class Study:
    """Everything that is known so far."""

    date: str
    """Day of the report, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit."""
    size: Size
    """Sizes."""
    runs: list[Result]
    """All that are done, of the arms and seeds that were asked for."""
    missing: list[str]
    """Names of those that are not."""
    checks: dict[str, Any] = field(default_factory=dict)
    """What `speed` and `resume` found, where they were run."""
    only_shows_that_it_works: bool = False
    """A few steps of tiny models."""


def tables(study: Study) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table; those without rows are left out."""
    runs = study.runs
    found = [
        aim_table(aims(runs, study.checks)),
        ("Distilled against scratch at equal tokens, by size", size_rows(runs)),
        ("By token budget", budget_rows(runs)),
        ("Ways to learn from the teacher, one size", ways_rows(runs)),
        ("The baseline's learning rate", rate_rows(runs, study.size)),
    ]  # fmt: skip
    if "speed" in study.checks:
        found.append(("Time of a step", speed_rows(study.checks["speed"])))
    return [(title, rows) for title, rows in found if len(rows) > 1]


def said(value: Interval | None) -> str:
    """A mean with its interval; a dash for nothing."""
    return "-" if value is None else str(value)


def both(value: Interval | None) -> str:
    """Nats with the perplexity of the mean."""
    return "-" if value is None else f"{value} ({perplexity(value.mean):.2f})"


def size_rows(runs: Sequence[Result]) -> Rows:
    """A row for each student, and one for the teacher."""
    rows = [["width", "parameters", "seeds", "scratch, nats (perplexity)", "distilled", "distilled - scratch, paired",
             "95 % intervals", "WikiText-2: scratch", "distilled", "difference, paired"]]  # fmt: skip
    for width in widths_of(runs):
        scratch, distilled = losses(runs, SCRATCH, width), losses(runs, DISTILLED, width)
        apart = "-"
        if scratch is not None and distilled is not None and min(scratch.count, distilled.count) > 1:
            apart = "apart" if distilled.high < scratch.low or scratch.high < distilled.low else "overlap"
        one = next(iter(runs_of_arm(runs, SCRATCH, width).values()))
        counts = [str(value.count) for value in (scratch, distilled) if value is not None]
        rows.append([
            str(width), f"{one.parameters:,}", " / ".join(counts), both(scratch), both(distilled),
            said(minus(runs, DISTILLED, SCRATCH, width)), apart, said(losses(runs, SCRATCH, width, WIKITEXT)),
            said(losses(runs, DISTILLED, width, WIKITEXT)), said(minus(runs, DISTILLED, SCRATCH, width, WIKITEXT)),
        ])  # fmt: skip
    teacher = teacher_of(runs)
    if teacher is not None:
        nats, other = losses(runs, TEACHER, teacher.run.width), losses(runs, TEACHER, teacher.run.width, WIKITEXT)
        name = f"{teacher.run.width}: teacher, {teacher.tokens / 1e6:.2f}M tokens"
        rows.append([name, f"{teacher.parameters:,}", "1", both(nats), "-", "-", "-", said(other), "-", "-"])
    return rows


def budget_rows(runs: Sequence[Result]) -> Rows:
    """A row for each number of tokens, of the student that has more than one."""
    rows = [["width", "tokens", "scratch, nats (perplexity)", "distilled", "distilled - scratch, paired"]]
    for width in widths_of(runs):
        budgets = budgets_of(runs, width)
        for tokens, scratch, distilled in budgets if len(budgets) > 1 else ():
            values = (losses(runs, arm, width) for arm in (scratch, distilled))
            gap = said(minus(runs, distilled, scratch, width))
            rows.append([str(width), f"{tokens / 1e6:.2f}M", *map(both, values), gap])
    return rows


def ways_rows(runs: Sequence[Result]) -> Rows:
    """Every arm of the student that has them all. The part of the gap: how much of what the whole distribution gains
    over scratch an arm gains, of means over the seeds that each difference has."""
    rows = [["arm", "width", "seeds", "nats (perplexity)", "minus scratch, paired", "minus distilled, paired",
             "part of the gap", "teacher's probability outside of K", "step, ms"]]  # fmt: skip
    others = [*map(top, KEPT), HALF_LABELS, ON_POLICY]
    for width in sorted({result.run.width for result in runs if result.run.arm in others}):
        gap = minus(runs, DISTILLED, SCRATCH, width)
        for arm in (SCRATCH, *others, DISTILLED):
            own = list(runs_of_arm(runs, arm, width).values())
            if not own:
                continue
            gain = minus(runs, arm, SCRATCH, width)
            part = "-" if gain is None or gap is None or arm == SCRATCH else f"{gain.mean / gap.mean:.0%}"
            tails = [result.tail for result in own if result.tail is not None]
            rows.append([
                arm, str(width), str(len(own)), both(losses(runs, arm, width)),
                "-" if arm == SCRATCH else said(gain),
                "-" if arm == DISTILLED else said(minus(runs, arm, DISTILLED, width)), part,
                f"{statistics.fmean(tails):.3f}" if tails else "-",
                f"{1e3 * statistics.median(result.step_seconds for result in own):.0f}",
            ])  # fmt: skip
    return rows


def rate_rows(runs: Sequence[Result], size: Size) -> Rows:
    """Scratch with other learning rates, the first seed."""
    rows = [["width", "learning rate", "seed", "nats of scratch", "distilled, with the first rate"]]
    factors = {SCRATCH: 1.0, **{at_rate(name): factor for name, factor in RATES.items()}}
    for student in size.students:
        arms = {arm: runs_of_arm(runs, arm, student.width) for arm in factors}
        tried = [arm for arm, found in arms.items() if found]
        for arm in tried if len(tried) > 1 else ():
            seed = next(iter(next(found for name, found in arms.items() if found and name != SCRATCH)))
            if seed not in arms[arm]:
                continue
            distilled = runs_of_arm(runs, DISTILLED, student.width).get(seed)
            other = f"{distilled.held_out[NOVELS].nats:.4f}" if arm == SCRATCH and distilled is not None else "-"
            rate = f"{factors[arm] * student.learning_rate:g}"
            rows.append([str(student.width), rate, str(seed), f"{arms[arm][seed].held_out[NOVELS].nats:.4f}", other])
    return rows


def write_report(study: Study, pictures: Sequence[str]) -> str:
    """The dated report, Markdown. What falls short is said in so many words."""
    size = study.size
    taken = dict.fromkeys(result.run.arm for result in study.runs if result.run.arm != TEACHER)
    parts = [
        f"# Distilled students against the same students from scratch, {study.date}",
        f"`{study.command}`; arms and protocol are in [experiments/distillation]"
        "(../../experiments/distillation/README.md). "
        f"A step has {size.batch_size} x {size.sequence_length} tokens; students take {size.steps:,}, the teacher "
        f"{size.teacher_steps:,}. Loss is in nats per token of held-out text with real labels. Means over seeds with "
        "Student's 95 % interval.",
        as_markdown([["arm", "how it learns"], *([name, arm_named(name).what] for name in taken)]),
    ]
    notes = [WORKS] if study.only_shows_that_it_works else []
    teachers = sorted({result.teacher[:12] for result in study.runs if result.teacher is not None})
    if len(teachers) > 1:
        notes.append(f"Students had {len(teachers)} teachers, trained from the same seed on different machines: "
                     f"SHA-256 {', '.join(teachers)}.")  # fmt: skip
    return write_page(
        parts,
        missing=study.missing,
        notes=notes,
        tables=tables(study),
        ending=falls_short(aims(study.runs, study.checks)),
        pictures=pictures,
        machine=study.machine,
    )


def as_json(study: Study) -> dict[str, Any]:
    """Everything but the runs, which are files of their own."""
    return {**asdict(study), "runs": [result.run.name for result in study.runs]}
