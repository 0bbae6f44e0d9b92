"""Tables for the terminal and the dated report, from the same results."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from experiments.interval import Interval
from experiments.relation_extraction.arms import Size, arm_named
from experiments.relation_extraction.findings import (
    ALL,
    LANGUAGE,
    PAIRS,
    SENTENCES,
    aims,
    by_arm,
    figure,
    groups_of,
    paired,
)
from experiments.relation_extraction.pretraining import Pretraining
from experiments.relation_extraction.worker import Result
from experiments.speed.report import Rows, as_markdown, as_text

__all__ = ["WORKS", "Part", "Study", "as_json", "as_text", "tables", "write_report"]

FIGURES = ("AUC", "micro F1", "macro F1", "P@M", "P@10%R", "P@30%R")
WORKS = "A made-up corpus and tiny models: this shows that the experiment works and nothing else."


@dataclass(frozen=True)
class Part:
    """One corpus."""

    name: str
    """What it is called."""
    bags: tuple[int, int, int]
    """Of train, val and test."""
    encoder: str
    """What the pre-trained encoder is."""
    size: Size
    """Sizes of models and training."""
    pretraining: Pretraining | None
    """Of our own encoder, where it was done for this study; None for a folder's or where results came without."""
    runs: list[Result]
    """All that are done, of the arms and seeds that were asked for."""
    missing: list[str]
    """Names of those that are not."""


@dataclass(frozen=True)
class Study:
    """Everything that is known so far."""

    date: str
    """Day of the report, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit."""
    parts: list[Part]
    """Corpora."""
    only_shows_that_it_works: bool = False
    """Of --quick."""


def tables(part: Part) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table of a corpus."""
    found = [(f"{part.name}: all test bags", figure_rows(part.runs))]
    for kind, title in ((SENTENCES, "AUC by number of sentences"), (LANGUAGE, "AUC by language")):
        if groups_of(part.runs, kind):
            found.append((f"{part.name}: {title}", group_rows(part.runs, kind)))
    differences = difference_rows(part.runs)
    if differences[1:]:
        found.append((f"{part.name}: differences of AUC, paired by seed", differences))
    if part.pretraining is not None:
        found.append((f"{part.name}: pre-training on masked tokens", pretraining_rows(part.pretraining)))
    listed = aims(part.runs)
    if listed:
        rows = [[aim.what, aim.aim, aim.measured, "reached" if aim.reached else "not reached"] for aim in listed]
        found.append((f"{part.name}: aims", [["", "aim", "measured", ""], *rows]))
    return found


def figure_rows(runs: Sequence[Result]) -> Rows:
    """An arm a row, the papers' figures."""
    rows = [["arm", "seeds", *FIGURES, "AUC on val", "epoch", "s of training"]]
    for arm, own in by_arm(runs).items():
        val = [run.epochs[run.best - 1][1] for run in own if run.epochs]
        kept = ", ".join(str(run.best) for run in own)
        more = [f"{sum(val) / len(val):.3f}", kept] if val else ["-", "-"]
        seconds = sum(run.seconds for run in own) / len(own)
        cells = [shown(figure(own, ALL, name)) for name in FIGURES]
        rows.append([arm, str(len(own)), *cells, *more, f"{seconds:.0f}"])
    return rows


def group_rows(runs: Sequence[Result], kind: str) -> Rows:
    """An arm a row, areas of every group."""
    groups = groups_of(runs, kind)
    counts = {group: max(int(run.figures.get(group, {}).get("bags", 0)) for run in runs) for group in groups}
    rows = [["arm", *(f"{group.removeprefix(kind)} ({counts[group]:,} bags)" for group in groups)]]
    for arm, own in by_arm(runs).items():
        rows.append([arm, *(shown(figure(own, group, "AUC")) for group in groups)])
    return rows


def difference_rows(runs: Sequence[Result]) -> Rows:
    """Pairs of arms, for all bags and by their size."""
    groups = groups_of(runs, SENTENCES)
    rows = [["difference", "all", *(group.removeprefix(SENTENCES) for group in groups)]]
    for first, second in PAIRS:
        whole = paired(runs, first, second)
        if whole is not None:
            cells = [shown(paired(runs, first, second, group)) for group in groups]
            rows.append([f"{first} minus {second}", shown(whole), *cells])
    return rows


def pretraining_rows(found: Pretraining) -> Rows:
    """Loss of documents that were held out of it."""
    rows = [["step", "nats per masked token", "right"]]
    return rows + [[f"{step:,}", f"{loss:.3f}", f"{right:.1%}"] for step, loss, right in found.validation]


def shown(value: Interval | None) -> str:
    """ "0.912 ± 0.004"; of one seed without an interval."""
    if value is None:
        return "-"
    return f"{value.mean:.3f}" if value.count == 1 else f"{value.mean:.3f} ± {value.half:.3f}"


def write_report(study: Study, pictures: Sequence[Sequence[str]]) -> str:
    """The dated report, Markdown. pictures: of each part."""
    parts = [
        f"# Relation extraction under distant supervision, {study.date}",
        f"`{study.command}`; protocol and arms are in [experiments/relation_extraction]"
        "(../../experiments/relation_extraction/README.md). Means are over seeds with Student's 95 % intervals; the "
        "linear model has no seed. The pre-trained encoder is one for all seeds: intervals do not contain its chance.",
    ]
    if study.only_shows_that_it_works:
        parts.append(WORKS)
    for part, names in zip(study.parts, pictures, strict=True):
        train, val, test = part.bags
        arms = [[arm, arm_named(arm).what] for arm in by_arm(part.runs)]
        parts.append(f"## {part.name}")
        parts.append(
            f"{train:,} bags to train on, {val:,} to choose by, {test:,} to test. Encoder: {part.encoder}. {told(part)}"
        )
        parts.append(as_markdown([["arm", "what"], *arms]))
        if part.missing:
            parts.append(f"Not done yet: {', '.join(part.missing)}.")
        for title, rows in tables(part):
            parts += [f"### {title}", as_markdown(rows)]
        parts.append(took(part))
        parts += [f"![{name}]({name})" for name in names]
    parts += ["## Machine", as_markdown([["", ""], *([key, value] for key, value in study.machine.items())])]
    return "\n\n".join(parts) + "\n"


def told(part: Part) -> str:
    """The sizes in one line."""
    size = part.size
    masked = f"; masked tokens: {size.mlm_steps:,} steps of {size.mlm_rows} x {size.mlm_tokens} tokens"
    if size.mlm_counted_batches:
        masked += f", begun with counts of {size.mlm_counted_batches:,} batches"
    if size.mlm_long_steps:
        masked += f", then {size.mlm_long_steps:,} of rows of {size.passage_tokens}"
    return (
        f"Up to {size.most_sentences} sentences and {size.passage_tokens} tokens of a bag, {size.sentence_tokens} of a "
        f"sentence; {size.epochs} epochs of {size.batch_bags} bags a step, rate {size.learning_rate:g}, dropout "
        f"{size.dropout:g}{masked if size.mlm_steps else ''}."
    )


def took(part: Part) -> str:
    """What all of it cost: processor time of the runs, and by the clock that of pre-training."""
    runs = sum(run.seconds for run in part.runs) / 60
    before = (
        "" if part.pretraining is None else f", pre-training {part.pretraining.seconds / 60:.0f} minutes by the clock"
    )
    return f"{len(part.runs)} runs of {runs:.0f} minutes of processor time together{before}."


def as_json(study: Study) -> dict[str, Any]:
    """Everything but the runs, which are files of their own."""
    parts = [asdict(replace(part, runs=[])) | {"runs": [run.run.name for run in part.runs]} for part in study.parts]
    return {**asdict(replace(study, parts=[])), "parts": parts}
