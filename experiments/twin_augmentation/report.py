"""Tables for the terminal and the dated report, from the same results."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from experiments.interval import Interval, interval
from experiments.pages import aim_table, write_page
from experiments.speed.report import Rows, as_markdown
from experiments.twin_augmentation.arms import COLLECTIONS, COVID
from experiments.twin_augmentation.findings import (
    AUC,
    BALANCED,
    GAINS,
    aims,
    border_saliency,
    cells,
    collections_of,
    figure,
    gain,
    source_share,
)
from experiments.twin_augmentation.heads import HEADS, SOFTMAX, TWIN
from experiments.twin_augmentation.worker import FIGURES, Result

NO_DEVICE = (
    "This is no medical device. Nothing here has been tested for use on patients, and nothing here may be used to "
    "diagnose or to decide about anybody's treatment."
)
WORKS = "Made-up images and a few steps: this shows that the experiment works and nothing else."


@dataclass(frozen=True)
class Study:
    """Everything that is known so far."""

    date: str
    """Day of the report, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit."""
    runs: list[Result]
    """All that are done, of the arms and seeds that were asked for."""
    missing: list[str]
    """Names of those that are not."""
    leak: list[dict]
    """Rows of `source_leak.leaks`; none if it was not measured."""
    only_shows_that_it_works: bool = False
    """Of --quick."""


def tables(study: Study) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table."""
    found = []
    names = collections_of(study.runs)
    for name in names:
        if name != COVID:
            found.append((f"What the twin head adds: {name}", gain_rows(study.runs, name)))
    if study.leak or COVID in names:
        found.append(("What of it is the source", leak_rows(study)))
    found.append(("The other source", foreign_rows(study.runs)))
    found += [(f"All heads: {name}", head_rows(study.runs, name)) for name in names]
    found.append(("Runs", run_rows(study.runs)))
    listed = aims(study.runs)
    if listed:
        found.append(aim_table(listed))
    return found


def gain_rows(runs: Sequence[Result], collection: str) -> Rows:
    """Differences paired by seed, a backbone and ratio a row."""
    rows = [["backbone", "ratio", "seeds", *(f"{one} minus {other}, {name}" for one, other, name in GAINS)]]
    for cell in cells(runs, collection):
        shown_gains = [shown(gain(cell, *pair), signed=True) for pair in GAINS]
        rows.append([cell.arm.backbone, f"1:{cell.ratio}", str(len(cell.runs)), *shown_gains])
    return rows


def head_rows(runs: Sequence[Result], collection: str) -> Rows:
    """Every head's figures on the test."""
    rows = [["arm", "ratio", "head", *FIGURES, "sensitivity", "specificity"]]
    for cell in cells(runs, collection):
        for head in cell.heads:
            found = [shown(figure(cell, head, name)) for name in (*FIGURES, "sensitivity", "specificity")]
            rows.append([cell.arm.name, f"1:{cell.ratio}", head, *found])
    return rows


def foreign_rows(runs: Sequence[Result]) -> Rows:
    """Trained on one source and tested on the other: pneumonia in both; of children, none has COVID-19."""
    header = ["arm", "ratio", "head", f"{AUC}, own", f"{AUC}, other", f"{BALANCED}, own", f"{BALANCED}, other"]
    rows = [[*header, "called positive, other"]]
    for cell in cells(runs):
        for head in (SOFTMAX, TWIN):
            names = [(AUC, False), (AUC, True), (BALANCED, False), (BALANCED, True), ("called positive", True)]
            found = [shown(figure(cell, head, name, foreign=foreign)) for name, foreign in names]
            rows.append([cell.arm.name, f"1:{cell.ratio}", head, *found])
    return rows


def leak_rows(study: Study) -> Rows:
    """The source from parts of the image, and COVID-19 from the border alone by the same network."""
    rows = [["question", "what is seen", BALANCED, AUC]]
    for row in study.leak:
        rows.append([row["question"], row["seen"], *(shown(Interval(**row[name])) for name in ("accuracy", "auc"))])
    for cell in cells(study.runs, COVID):
        seen = "whole image" if cell.arm.view == "whole" else "border of 8"
        figures = [shown(figure(cell, SOFTMAX, name)) for name in (BALANCED, AUC)]
        rows.append([f"COVID-19 or NIH? ({cell.arm.backbone}, 1:{cell.ratio})", f"{seen}, 64 x 64", *figures])
    share = source_share(study.runs)
    if share is not None:
        rows.append(["of the ROC-AUC above 1/2, the border has", "", "", shown(share[2])])
    return rows


def run_rows(runs: Sequence[Result]) -> Rows:
    """Images, processor seconds, where the gradient is, and what was chosen."""
    rows = [["arm", "ratio", "train (rare)", "held out (rare)", "test (rare)", "s of training", "s of heads",
             "saliency on the border", "chosen, by seed"]]  # fmt: skip
    for cell in cells(runs):
        counts = cell.runs[0].counts
        parts = [f"{sum(counts[name])} ({counts[name][1]})" for name in ("train", "held out", "test")]
        seconds = [f"{interval([run.seconds[name] for run in cell.runs]).mean:.0f}" for name in ("training", "heads")]
        borders = [value for run in cell.runs if (value := border_saliency(run)) is not None]
        told = "; ".join(
            f"{head}: {', '.join(run.chosen[head] for run in cell.runs)}" for head in sorted(cell.runs[0].chosen)
        )
        border = shown(interval(borders)) if borders else "-"
        rows.append([cell.arm.name, f"1:{cell.ratio}", *parts, *seconds, border, told])
    return rows


def shown(value: Interval | None, *, signed: bool = False) -> str:
    """ "0.912 ± 0.004"; of one seed without an interval."""
    if value is None:
        return "-"
    mean = f"{value.mean:+.3f}" if signed else f"{value.mean:.3f}"
    return mean if value.count == 1 else f"{mean} ± {value.half:.3f}"


def write_report(study: Study, pictures: Sequence[str]) -> str:
    """The dated report, Markdown."""
    took_part = [[name, COLLECTIONS[name]] for name in collections_of(study.runs)]
    parts = [
        f"# A twin head on a trained network, {study.date}",
        f"**{NO_DEVICE}**",
        f"`{study.command}`; protocol and arms are in [experiments/twin_augmentation]"
        "(../../experiments/twin_augmentation/README.md). Means are over seeds with Student's 95 % intervals; "
        "differences are paired by seed. A seed is a split by patient (of children: a subset of the published one), "
        "initial weights and orders; the test parts of different seeds share patients, so that intervals are somewhat "
        "too narrow. Many differences are shown: of 20 that are nothing, one is outside of its interval.",
        as_markdown([["collection", "what"], *took_part]),
        as_markdown([["head", "what"], *([name, what] for name, what in HEADS.items())]),
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
