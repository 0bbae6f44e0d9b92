"""Tables for the terminal and for the dated report, from the same results."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.long_context_recall.cells import CellResult
from experiments.long_context_recall.findings import (
    by_chance,
    by_length,
    by_task,
    failures,
    ranked,
    value_of,
    worst,
    written,
)
from experiments.long_context_recall.heat_map import label
from experiments.long_context_recall.prediction import Memory, Timing
from experiments.speed.report import Rows, as_markdown, as_text

__all__ = ["Results", "as_text", "duration", "tables", "write_report"]


@dataclass
class Results:
    """Everything that a run found out."""

    date: str
    """Day of the report, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit."""
    setting: dict[str, Any]
    """Checkpoint, haystack, seed, samples."""
    trained_context: int
    """Of the model; a length beyond it is one that it was not made for."""
    memory: list[Memory]
    """Predicted, of each length."""
    timing: Timing | None
    """Measured before the run; None where all was done or only media are asked about."""
    predicted_seconds: float
    """Of the cells that were missing."""
    measured_seconds: float
    """Of the same cells."""
    peak_bytes: int
    """Most memory that the process held."""
    cells: list[CellResult]
    """All that are done."""
    only_shows_that_it_works: bool = False
    """A model that has learnt nothing."""


def duration(seconds: float) -> str:
    """ "1 h 02 min", "3 min 20 s", "12.5 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def tables(results: Results) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table."""
    found = [("Recall", recall_rows(results.cells))]
    if results.memory:
        found.append(("Memory, predicted", memory_rows(results.memory)))
    return [*found, ("Time", time_rows(results))]


def recall_rows(cells: Sequence[CellResult]) -> Rows:
    """One row for each task and length, and one for the whole grid of a task."""
    rows = [["task", "length", "cells", "samples", "written (95 %)", "worst depth", "ranked first (95 %)", "by chance",
             "s per sample, median"]]  # fmt: skip
    for task, own in by_task(cells).items():
        groups = [(f"{length:,}", part) for length, part in by_length(own).items()]
        for length, part in [*groups, ("all", own)] if len(groups) > 1 else groups:
            recall, rank, chance = written(part), ranked(part), by_chance(part)
            low = worst(part)
            seconds = [s.prefill_seconds + s.answer_seconds for result in part for s in result.samples]
            rows.append(
                [
                    task,
                    length,
                    str(len(part)),
                    str(recall.samples),
                    str(recall),
                    f"{label(low.cell.depth)}: {value_of(low, 'written'):.0%}",
                    "-" if rank is None else str(rank),
                    "-" if chance is None else f"{chance:.1%}",
                    f"{statistics.median(seconds):.2f}",
                ]
            )
    return rows


def memory_rows(memory: Sequence[Memory]) -> Rows:
    """In MiB."""
    rows = [["length", "weights", "local caches", "global caches", "a chunk, about", "process besides", "sum, MiB"]]
    for need in memory:
        parts = (need.weights, need.local_cache, need.global_cache, need.chunk, need.process, need.total)
        rows.append([f"{need.length:,}", *(f"{part / 2**20:,.1f}" for part in parts)])
    return rows


def time_rows(results: Results) -> Rows:
    """What was predicted and what it took."""
    rows = [["", "value"]]
    if timing := results.timing:
        rows += [
            [f"a chunk of {timing.chunk} tokens at the beginning", f"{timing.first_chunk:.3f} s"],
            [f"a chunk before token {timing.length:,}", f"{timing.last_chunk:.3f} s"],
            [f"reading {timing.length:,} tokens, predicted", duration(timing.prefill(timing.length))],
            ["ranking and writing an answer there", f"{timing.answer:.2f} s"],
            ["the missing cells, predicted", duration(results.predicted_seconds)],
        ]
    if results.measured_seconds:
        rows.append(["the missing cells, measured", duration(results.measured_seconds)])
    return [*rows, ["most memory of the process", f"{results.peak_bytes / 2**20:,.0f} MiB"]]


def write_report(results: Results, pictures: Sequence[str]) -> str:
    """The dated report, Markdown."""
    setting = results.setting
    parts = [
        f"# Recall from long contexts, {results.date}",
        f"`{results.command}`; tasks and protocol are in [experiments/long_context_recall]"
        f"(../../experiments/long_context_recall/README.md). Checkpoint: {setting['checkpoint']}, trained on contexts "
        f"of {results.trained_context:,} tokens; haystack: {setting['haystack']}; {setting['samples']} samples a cell, "
        f"seed {setting['seed']}; caches in {setting['cache dtype']}. Intervals are Wilson's, 95 %.",
    ]
    if results.only_shows_that_it_works:
        parts.append(WORKS)
    for title, rows in tables(results):
        parts += [f"## {title}", as_markdown(rows)]
    missed = failures(results.cells)
    if missed:
        rows = [["cell", "sample", "score", "right", "written"]]
        for result, sample in missed:
            texts = (short(text) for text in (sample.answer, sample.output))
            rows.append([result.cell.name, str(sample.number), f"{sample.score:.2f}", *texts])
        parts += ["## The first answers that fall short", as_markdown(rows)]
    parts += [f"![{name}]({name})" for name in pictures]
    parts += ["## Machine", as_markdown([["", ""], *([key, value] for key, value in results.machine.items())])]
    return "\n\n".join(parts) + "\n"


WORKS = (
    "This model has learnt nothing: its recall is that of guessing. The run shows that the tasks, the chunks, the "
    "resumable cells and the picture work, and nothing else."
)


def short(text: str, most: int = 60) -> str:
    """For a table cell."""
    plain = " ".join(text.split()).replace("|", "\\|")
    return f"`{plain[:most]}`" if plain else "nothing"
