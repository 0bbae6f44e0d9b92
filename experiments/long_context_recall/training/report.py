"""Tables and the dated report of a study."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from experiments.interval import interval
from experiments.long_context_recall.report import duration
from experiments.long_context_recall.training.arms import arm_named
from experiments.long_context_recall.training.findings import (
    aims,
    by_arm,
    cost_of_needles,
    lengths_of,
    percent,
    pooled_recall,
    recall_of,
    tasks_of,
)
from experiments.long_context_recall.training.worker import Result
from experiments.pages import aim_table, write_page
from experiments.speed.report import Rows, as_markdown, as_text

__all__ = ["WORKS", "Study", "as_json", "as_text", "tables", "write_report"]


@dataclass(frozen=True)
class Study:
    """Everything that is known so far."""

    date: str
    """Day of the report, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit."""
    text: str
    """What was trained on."""
    runs: list[Result]
    """All that are done, of the arms and seeds that were asked for."""
    missing: list[str]
    """Names of those that are not."""
    only_shows_that_it_works: bool = False
    """A few steps of a tiny model."""


def tables(study: Study) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table."""
    found = [(f"Recall: {task}, by length", recall_rows(study.runs, task)) for task in tasks_of(study.runs)]
    return [
        aim_table(aims(study.runs)),
        *found,
        ("The language model", text_rows(study.runs)),
        ("Training, stage by stage, last attempts", stage_rows(study.runs)),
    ]


def recall_rows(runs: Sequence[Result], task: str) -> Rows:
    """Arms x lengths, mean and Student's interval over seeds; the last column is Wilson's interval of all samples up to
    the trained length."""
    lengths = lengths_of(runs, task)
    rows = [["arm", "seeds", *(f"{length:,}" for length in lengths), "up to the trained length (Wilson, 95 %)"]]
    for arm, own in by_arm(runs).items():
        cells = [recall_of(own, task, [length]) for length in lengths]
        within = [length for length in lengths if length <= own[0].trained_length]
        if any(cells):
            total = pooled_recall(own, task, within)
            shown = ["-" if cell is None else percent(cell) for cell in cells]
            rows.append([arm, str(len(own)), *shown, "-" if total is None else str(total)])
    return rows


def text_rows(runs: Sequence[Result]) -> Rows:
    """Loss on held-out novels."""
    rows = [["arm", "nats per token of held-out novels", "parameters", "training steps", "tokens read"]]
    for arm, own in by_arm(runs).items():
        trained = [run for run in own if run.stages]
        steps = interval([float(sum(stage.steps for stage in run.stages)) for run in trained]) if trained else None
        tokens = interval([float(sum(stage.tokens for stage in run.stages)) for run in trained]) if trained else None
        rows.append(
            [
                arm,
                str(interval([run.text_loss for run in own])),
                f"{own[0].parameters:,}",
                f"weights of {arm_named(arm).weights_of}" if steps is None else f"{steps.mean:,.0f}",
                "-" if tokens is None else f"{tokens.mean:,.0f}",
            ]
        )
    if (cost := cost_of_needles(runs)) is not None:
        rows.append(["needles cost, paired by seed", str(cost), "", "", ""])
    return rows


def stage_rows(runs: Sequence[Result]) -> Rows:
    """How well each stage ended: recall of unseen keys in its own rows, teacher-forced."""
    rows = [["arm", "seed", "stage", "attempts", "recall of unseen keys", "seconds of training"]]
    for run in runs:
        for name in dict.fromkeys(stage.stage for stage in run.stages):
            own = [stage for stage in run.stages if stage.stage == name]
            recall = ", ".join(f"{kind.removeprefix('unseen ')} {part:.0%}" for kind, part in own[-1].recall.items())
            seconds = duration(sum(stage.seconds for stage in own))
            rows.append([run.run.arm, str(run.run.seed), name, str(len(own)), recall or "-", seconds])
    return rows


def write_report(study: Study, pictures: Sequence[str]) -> str:
    """The dated report, Markdown."""
    arms = [[arm, arm_named(arm).what] for arm in by_arm(study.runs)]
    parts = [
        f"# Training for recall, {study.date}",
        f"`{study.command}`; curriculum, arms and protocol are in [experiments/long_context_recall]"
        f"(../../experiments/long_context_recall/README.md). Text: {study.text}. Means are over seeds with Student's "
        "95 % intervals; all runs are asked the same samples.",
        as_markdown([["arm", "what is different"], *arms]),
    ]
    return write_page(
        parts,
        missing=study.missing,
        notes=[WORKS] if study.only_shows_that_it_works else [],
        tables=tables(study),
        pictures=pictures,
        machine=study.machine,
    )


def as_json(study: Study) -> dict[str, Any]:
    """Everything but the runs, which are files of their own."""
    return {**asdict(study), "runs": [run.run.name for run in study.runs]}


WORKS = "These are a few steps of a tiny model: they show that training and examination work, and nothing else."
