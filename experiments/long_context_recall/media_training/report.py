"""Tables, heat maps and the dated report of the study of media."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.aim import Aim
from experiments.interval import Interval, interval
from experiments.long_context_recall import heat_map
from experiments.long_context_recall.findings import wilson
from experiments.long_context_recall.media_training.worker import Result
from experiments.long_context_recall.report import duration
from experiments.long_context_recall.training.examination import pooled
from experiments.long_context_recall.training.findings import GOAL, percent
from experiments.pages import write_page
from experiments.speed.report import Rows, as_text

__all__ = ["WORKS", "MediaStudy", "as_json", "as_text", "draw_maps", "tables", "write_report"]

LENGTH = 8192
"""Tokens up to which the goal is asked for, at least."""


@dataclass(frozen=True)
class MediaStudy:
    """Everything that is known so far."""

    date: str
    """Day of the report, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit."""
    real: bool
    """Whether frames and recordings are those of the folder `shared`."""
    runs: list[Result]
    """All that are done, of the arms and seeds that were asked for."""
    missing: list[str]
    """Names of those that are not."""
    only_shows_that_it_works: bool = False
    """A few steps of a tiny model."""


def by_arm(runs: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of each arm, in order."""
    return {arm: [run for run in runs if run.run.arm == arm] for arm in dict.fromkeys(run.run.arm for run in runs)}


def lengths_of(run: Result) -> dict[int, int]:
    """Tokens of the longest prompt of each length, in frames or recordings, rising."""
    found: dict[int, int] = {}
    for each in run.examined:
        found[each.cell.length] = max(each.tokens, found.get(each.cell.length, 0))
    return dict(sorted(found.items()))


def within(run: Result) -> list[int]:
    """The lengths up to the trained one: whose longest prompt, a fiftieth aside, is no longer than the rows of
    training. Recordings of a stream are of unequal duration."""
    return [length for length, tokens in lengths_of(run).items() if tokens <= 1.02 * run.trained_length]


def scores(run: Result, lengths: Sequence[int], choice: str = "written") -> list[float]:
    """Of all depths and samples: what was "written", or whether the right answer was "ranked" first."""
    cells = [each.cell for each in run.examined if each.cell.length in lengths]
    if choice == "written":
        return [score for cell in cells for score in cell.scores]
    return [float(rank == 0) for cell in cells for rank in cell.ranks]


def recall_of(runs: Sequence[Result], lengths: Sequence[int], choice: str = "written") -> Interval:
    """Mean over seeds of the mean over depths and samples, with Student's interval."""
    return interval([statistics.fmean(scores(run, lengths, choice)) for run in runs])


def aims(runs: Sequence[Result]) -> list[Aim]:
    """The goals, as far as the arms were run."""
    found = []
    for arm, own in by_arm(runs).items():
        if lengths := within(own[0]):
            recall = recall_of(own, lengths)
            longest = max(lengths_of(own[0])[length] for length in lengths)
            found += [
                Aim(f"{arm}, the whole grid up to the trained length", f"recall of at least {GOAL:.0%}",
                    percent(recall), recall.mean >= GOAL),
                Aim(f"{arm}, trained length that is examined", f"at least {LENGTH:,} tokens", f"{longest:,}",
                    longest >= LENGTH),
            ]  # fmt: skip
        found.append(Aim(f"{arm}, seeds", "at least 3", str(len(own)), len(own) >= 3))
    return found


def tables(study: MediaStudy) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table."""
    aim_rows = [
        [aim.what, aim.aim, aim.measured, "reached" if aim.reached else "not reached"] for aim in aims(study.runs)
    ]
    return [
        ("Aims", [["", "aim", "measured", ""], *aim_rows]),
        ("Recall by length", recall_rows(study.runs)),
        ("Training, stage by stage", stage_rows(study.runs)),
    ]


def recall_rows(runs: Sequence[Result]) -> Rows:
    """One for each arm and length, and one for all lengths up to the trained one."""
    rows = [["arm", "frames or recordings", "tokens", "seeds", "written, Student 95 %", "samples", "Wilson 95 %",
             "ranked first", "worst depth", "s per sample"]]  # fmt: skip
    for arm, own in by_arm(runs).items():
        groups = [(f"{length:,}", [length]) for length in lengths_of(own[0])]
        trained = within(own[0])
        for name, lengths in [*groups, ("all up to the trained length", trained)] if trained else groups:
            found = [score for run in own for score in scores(run, lengths)]
            tokens = max(lengths_of(run)[length] for run in own for length in lengths)
            seconds = statistics.median(e.seconds for run in own for e in run.examined if e.cell.length in lengths)
            rows.append([arm, name, f"{tokens:,}", str(len(own)), percent(recall_of(own, lengths)), str(len(found)),
                         str(wilson(found)), percent(recall_of(own, lengths, "ranked")), worst_depth(own, lengths),
                         f"{seconds:.1f}"])  # fmt: skip
    return rows


def worst_depth(runs: Sequence[Result], lengths: Sequence[int]) -> str:
    """Of the lowest recall over all seeds."""
    found: dict[float, list[float]] = {}
    for run in runs:
        for each in run.examined:
            if each.cell.length in lengths and each.cell.depth is not None:
                found.setdefault(each.cell.depth, []).extend(each.cell.scores)
    means = {depth: statistics.fmean(values) for depth, values in found.items()}
    depth, value = min(means.items(), key=lambda item: item[1])
    return f"{depth:g}: {value:.0%}"


def stage_rows(runs: Sequence[Result]) -> Rows:
    """How each stage ended: recall in its own rows, of validation material, teacher-forced."""
    rows = [["arm", "seed", "stage", "tokens a row", "attempts", "recall of validation rows", "time of training"]]
    for run in runs:
        for name in dict.fromkeys(stage.stage for stage in run.stages):
            own = [stage for stage in run.stages if stage.stage == name]
            rows.append([run.run.arm, str(run.run.seed), name, f"{own[-1].row_length:,}", str(len(own)),
                         f"{own[-1].recall:.1%}", duration(sum(stage.seconds for stage in own))])  # fmt: skip
        total = duration(sum(stage.seconds for stage in run.stages))
        rows.append([run.run.arm, str(run.run.seed), f"all, {run.parameters:,} parameters", "", "", "", total])
    return rows


def draw_maps(study: MediaStudy, folder: Path, stem: str) -> list[str]:
    """A heat map for each arm, all seeds together; the names of the files."""
    names = []
    for arm, own in by_arm(study.runs).items():
        cells = pooled([each.cell for each in run.examined] for run in own)
        title = f"{arm}, {len(own)} seed{'s' * (len(own) > 1)}: answers written, percent"
        names.append(f"{stem}-{arm}.png")
        heat_map.draw(cells, title, folder / names[-1])
    return names


def write_report(study: MediaStudy, pictures: Sequence[str]) -> str:
    """The dated report, Markdown."""
    made = "those of the folder `shared`" if study.real else "drawn and sounded here"
    parts = [
        f"# Training for recall from video and speech, {study.date}",
        f"`{study.command}`; curriculum and protocol are in [experiments/long_context_recall]"
        f"(../../experiments/long_context_recall/README.md). Frames and recordings are {made}; those of the tests are "
        "in no training row. Means are over seeds with Student's 95 % intervals; all runs are asked the same samples.",
    ]
    return write_page(
        parts,
        missing=study.missing,
        notes=[WORKS] if study.only_shows_that_it_works else [],
        tables=tables(study),
        pictures=pictures,
        machine=study.machine,
    )


def as_json(study: MediaStudy) -> dict[str, Any]:
    """Everything but the runs, which are files of their own."""
    return {**asdict(study), "runs": [run.run.name for run in study.runs]}


WORKS = "These are a few steps of a tiny model: they show that training and examination work, and nothing else."
