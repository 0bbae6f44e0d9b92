"""Tables for the terminal and for the dated report, from the same results."""

import json
import os
import statistics
from dataclasses import asdict, dataclass

from experiments.multimodal.arms import JOINT, SINGLES, TEXT_ONLY, Workload
from experiments.multimodal.documents import WORDS
from experiments.multimodal.findings import METRICS, aims, by_arm, drawn_of_each, paired, shown, value
from experiments.multimodal.prepare import Prepared
from experiments.multimodal.tasks import BLANK, SHUFFLED
from experiments.multimodal.worker import Result
from experiments.speed import machine
from experiments.speed.report import Rows, as_markdown, as_text

__all__ = ["Results", "as_json", "as_text", "describe", "tables", "write_report"]


@dataclass
class Results:
    """Everything that the runs found out."""

    date: str
    """Day of the report, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit."""
    workload: Workload
    """Sizes."""
    prepared: Prepared
    """What all runs share."""
    majority: dict[str, float]
    """Accuracy of the most frequent answer, by "speech/test" and so on."""
    runs: list[Result]
    """All runs."""


def describe() -> dict[str, str]:
    """What the figures were taken on."""
    return machine.describe(sorted(os.sched_getaffinity(0)))


def tables(results: Results) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table."""
    found = [
        ("Held-out documents", _main_rows(results)),
        ("The joint model with the wrong media", _wrong_rows(results)),
        ("Order of two media", _order_rows(results)),
    ]
    if any(r.drawn for r in results.runs):
        found.append(("Drawn digits, as the classifier sees them", _drawing_rows(results)))
    found.append(("Runs", _run_rows(results)))
    listed = aims(results.runs, results.majority)
    rows = [[a.what, a.aim, a.measured, "reached" if a.reached else "short"] for a in listed]
    return [*found, ("Aims", [["", "aim", "measured", ""], *rows])]


def _main_rows(results: Results) -> Rows:
    rows = [["", JOINT, "one modality", "joint - one, paired", TEXT_ONLY, "most frequent answer or chance"]]
    for metric in METRICS:
        usual = results.majority.get(metric.name.rpartition("/")[0], metric.chance)
        if metric.lower or (usual is None and metric.chance is None):
            usual = None
        cells = [value(results.runs, arm, metric.name) for arm in (JOINT, metric.single)]
        cells += [paired(results.runs, metric), value(results.runs, TEXT_ONLY, metric.name)]
        rows.append(
            [
                metric.label,
                *(shown(cell, metric.lower) for cell in cells),
                "-" if usual is None else f"{100 * usual:.1f} %",
            ]
        )
    return rows


def _wrong_rows(results: Results) -> Rows:
    rows = [["", "right", "another document's", "grey or silence"]]
    for metric in METRICS:
        cells = [value(results.runs, JOINT, metric.name + condition) for condition in ("", SHUFFLED, BLANK)]
        if cells[1] is not None:
            rows.append([metric.label, *(shown(cell, metric.lower) for cell in cells)])
    return rows


def _order_rows(results: Results) -> Rows:
    rows = [["", "model", "right", "right when swapped", "both (the answer follows)", "the same answer twice"]]
    for split, label in (("test", "two images"), ("mixed", "speech and image, never seen together")):
        for arm in (JOINT, "video"):
            names = [f"pair/{split}/{what}" for what in ("accuracy", "accuracy/swapped", "follows", "same answer")]
            cells = [value(results.runs, arm, name) for name in names]
            if arm == "video" and split == "mixed":
                continue  # it has never heard anything
            rows.append([label, arm, *(shown(cell, False) for cell in cells)])
    return rows


def _drawing_rows(results: Results) -> Rows:
    prepared = results.prepared
    rows = [["", *WORDS, "all"]]
    for arm in (JOINT, "draw"):
        runs = [r for r in by_arm(results.runs).get(arm, []) if r.drawn]
        if runs:
            each = [f"{100 * part:.0f} %" for part in drawn_of_each(runs)]
            rows.append([arm, *each, shown(value(results.runs, arm, "draw/accuracy"), False)])
    rows.append(["real digits", *[""] * 10, f"{100 * prepared.classifier_real:.1f} %"])
    rows.append(["real digits through the codes", *[""] * 10, f"{100 * prepared.classifier_reconstructed:.1f} %"])
    return rows


def _run_rows(results: Results) -> Rows:
    rows = [["model", "seeds", "documents per step", "tokens per step", "parameters", "minutes of training"]]
    for arm, runs in by_arm(results.runs).items():
        rows.append(
            [
                arm,
                str(len(runs)),
                f"{statistics.fmean(r.documents_per_step for r in runs):.1f}",
                f"{statistics.fmean(r.tokens_per_step for r in runs):.0f}",
                f"{runs[0].parameters / 1e6:.2f}M",
                f"{statistics.fmean(r.seconds for r in runs) / 60:.1f}",
            ]
        )
    found = by_arm(results.runs)
    if all(arm in found for arm in SINGLES):
        together = sum(statistics.fmean(r.documents_per_step for r in found[arm]) for arm in SINGLES)
        minutes = sum(statistics.fmean(r.seconds for r in found[arm]) for arm in SINGLES) / 60
        rows.append(["all of one modality", "", f"{together:.1f}", "", "", f"{minutes:.1f}"])
    return rows


def as_json(results: Results) -> str:
    """All results, every run's."""
    return json.dumps(asdict(results))


def write_report(results: Results, pictures: list[str]) -> str:
    """The dated report, Markdown. What falls short is said in so many words."""
    w, prepared = results.workload, results.prepared
    short = [aim for aim in aims(results.runs, results.majority) if not aim.reached]
    documents = ", ".join(f"{name} {count:,}" for name, count in prepared.documents.items())
    data = "real data" if prepared.real else "drawn and sounded data"
    parts = [
        f"# One model of text, images, speech and video, {results.date}",
        f"`{results.command}`; the protocol is in [experiments/multimodal](../../experiments/multimodal/README.md). "
        f"{data.capitalize()}; held out is the speaker {prepared.speaker!r}. Every run has {w.steps} steps; means over "
        "seeds with Student's 95 % interval. A step of a model of one modality has about as many of its documents as a "
        "step of the joint model.",
    ]
    for title, rows in tables(results):
        parts += [f"## {title}", as_markdown(rows)]
    parts.append("## What falls short")
    parts.append("\n".join(f"* {aim.what}: {aim.measured}, aim {aim.aim}." for aim in short) or "Nothing of the aims.")
    parts += [f"![{name}]({name})" for name in pictures]
    parts += ["## Documents", f"{documents}. The image tokenizer uses {prepared.codes_used} of {prepared.image_codes} "
              f"codes, {prepared.codes_per_image} for an image."]  # fmt: skip
    parts += ["## Machine", as_markdown([["", ""], *([key, value] for key, value in results.machine.items())])]
    return "\n\n".join(parts) + "\n"
