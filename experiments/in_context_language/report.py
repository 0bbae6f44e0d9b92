"""Tables for the terminal and for the dated report, from the same results."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from experiments.in_context_language.evaluation import FACTS, RULES, Setting
from experiments.in_context_language.findings import (
    Baseline,
    aims,
    complete,
    curve,
    find,
    paired,
    settings,
    shown,
    value,
)
from experiments.in_context_language.prompts import DIRECTIONS, Direction
from experiments.in_context_language.stages import Workload
from experiments.in_context_language.worker import Result
from experiments.pages import aim_table, falls_short, write_page
from experiments.speed import machine
from experiments.speed.report import Rows, as_markdown


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
    baselines: list[Baseline]
    """Translations without a model."""
    runs: list[Result]
    """All that are there."""
    missing: list[str] = field(default_factory=list)
    """Names of runs that are not."""


def describe() -> dict[str, str]:
    """What the figures were taken on."""
    return machine.describe(sorted(os.sched_getaffinity(0)))


def tables(results: Results) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table."""
    found = []
    if complete(results.runs):
        for direction in DIRECTIONS:
            found.append((f"What is told, {direction}", _ablation_rows(results, direction)))
        found.append(("Sentences and nothing else, chrF", _curve_rows(results)))
    found.append(("Stages of the training", _stage_rows(results)))
    listed = aims(results.runs, results.baselines)
    return [*found, aim_table(listed)] if listed else found


def _ablation_rows(results: Results, direction: Direction) -> Rows:
    runs = results.runs
    rows = [["told", "tokens", "chrF", "above nothing, paired", "exact"]]
    nothing = find(runs, "none", direction)
    for setting in settings(runs):
        if setting.direction != direction or setting not in (find(runs, setting.context, direction), _wrong(setting)):
            continue
        sentences = f" ({setting.shots} sentences)" if setting.shots else ""
        other = "" if setting.book == "right" else ", of another language"
        told = "nothing" if setting.context == "none" else f"{setting.context}{sentences}{other}"
        above = "" if setting == nothing else shown(paired(runs, setting, nothing))
        exact = shown(value(runs, setting, "exact"), " %")
        rows.append([told, f"{_tokens(runs, setting):.0f}", shown(value(runs, setting)), above, exact])
    most = max((each.shots for each in results.baselines), default=0)
    for each in results.baselines:
        if (each.direction, each.shots) == (direction, min(most, results.workload.test_shots)):
            name = f"no model: {each.name}" + (f" of {each.shots}" if "nearest" in each.name else "")
            rows.append([name, "", str(each.score), "", f"{each.score.exact:.1f} %"])
    return rows


def _wrong(setting: Setting) -> Setting | None:
    return setting if setting.book != "right" else None


def _tokens(runs: Sequence[Result], setting: Setting) -> float:
    return statistics.fmean(each.tokens for run in complete(runs) for each in run.measured if each.setting == setting)


def _curve_rows(results: Results) -> Rows:
    nearest = {(each.direction, each.shots): each.score for each in results.baselines if each.name.endswith("n-grams")}
    head = ["sentences", *(f"{direction}{who}" for direction in DIRECTIONS for who in ("", ", nearest example"))]
    points = {direction: dict(curve(results.runs, direction)) for direction in DIRECTIONS}
    rows = []
    for shots in sorted({shots for found in points.values() for shots in found}):
        cells = []
        for direction in DIRECTIONS:
            score = nearest.get((direction, shots))
            cells += [shown(points[direction].get(shots)), "-" if score is None else f"{score.chrf:.1f}"]
        rows.append([str(shots), *cells])
    return [head, *rows]


def _stage_rows(results: Results) -> Rows:
    rows = [["seed", "stage", "attempt", "languages", "million tokens", "minutes", "loss",
             "tested with", *(f"exact, {of}" for of in (FACTS, RULES, *DIRECTIONS))]]  # fmt: skip
    tested = {stage.name: stage.tested for stage in results.workload.stages}
    for run in results.runs:
        for stage in run.stages:
            rows.append(
                [
                    str(run.run.seed),
                    stage.stage,
                    str(stage.attempt),
                    f"{stage.documents:,}",
                    f"{stage.tokens / 1e6:.2f}",
                    f"{stage.seconds / 60:.1f}",
                    f"{stage.training[-1][1]:.3f}",
                    tested[stage.stage],
                    *(
                        f"{100 * stage.found[of]:.0f} %" if of in stage.found else "-"
                        for of in (FACTS, RULES, *DIRECTIONS)
                    ),
                ]
            )
    return rows


def write_report(results: Results, pictures: list[str]) -> str:
    """The dated report, Markdown. What falls short is said in so many words."""
    w, done = results.workload, complete(results.runs)
    parameters = results.runs[0].parameters / 1e6
    glossed = "after a gloss of its own" if w.stages[-1].glosses else "at once, without a gloss"
    ending = falls_short(aims(results.runs, results.baselines))
    if done:
        ending += ["## Answers", as_markdown(_answer_rows(done[0]))]
    else:
        ending[-1] = "No run went to the end."
    return write_page(
        [
            f"# Learning a language from its grammar book, in context, {results.date}",
            f"`{results.command}`; the protocol is in [experiments/in_context_language]"
            "(../../experiments/in_context_language/README.md). A model of "
            f"{parameters:.2f}M parameters, trained on made-up languages alone, translates {w.test_questions} "
            f"sentences of each of {w.test_languages} languages that it has never seen, in both directions, {glossed}. "
            f"{len(done)} of {len(results.runs)} runs went to the end; means over these with Student's 95 % interval. "
            "Intervals of baselines are over sentences.",
        ],
        tables=tables(results),
        pictures=pictures,
        machine=results.machine,
        missing=results.missing,
        notes=[f"Seed {run.run.seed} was ended: {run.ended}." for run in results.runs if run.ended],
        ending=ending,
    )


def _answer_rows(run: Result) -> Rows:
    """The first of each setting, of one run."""
    rows = [["told", "sentence", "right", f"answer, seed {run.run.seed}"]]
    for each in run.measured:
        setting = each.setting
        other = "" if setting.book == "right" else ", of another language"
        told = setting.context + (f" ({setting.shots})" if setting.shots else "") + other
        rows += [[told, *(text.replace("|", "\\|") for text in shown)] for shown in each.examples[:1]]
    return rows
