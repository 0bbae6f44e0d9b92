"""Tables for the terminal and for the dated report, from the same results."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.likelihood_vs_position.report import WORKS, aim_rows
from experiments.local_global.arms import ALL_GLOBAL, Workload
from experiments.local_global.costs import Costs
from experiments.local_global.findings import (
    aims,
    by_arm,
    cache_part,
    over_seeds,
    paired,
    ratios,
    relative_perplexity,
)
from experiments.local_global.worker import Result
from experiments.sparse_vs_dense.report import describe
from experiments.speed.report import Rows, as_markdown, as_text

__all__ = ["WORKS", "Results", "as_text", "describe", "tables", "write_report"]


@dataclass(frozen=True)
class Results:
    """Everything that the runs found out."""

    date: str
    """Day of the report, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit."""
    source: str
    """What the texts are."""
    workload: Workload
    """Sizes."""
    runs: list[Result]
    """All of them."""
    costs: Costs
    """Caches and times."""
    only_shows_that_it_works: bool = False
    """Of --quick."""


def tables(results: Results) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table."""
    return [
        ("Text and copies, held out", _copying_rows(results.runs)),
        ("Window changed at inference", _window_rows(results.runs)),
        ("Cache of one sequence", _cache_rows(results.costs)),
        ("Time", _time_rows(results)),
        ("Aims", aim_rows(aims(results.runs, results.costs))),
    ]


def _copying_rows(runs: Sequence[Result]) -> Rows:
    rows = [["layers", "seeds", "text, nats per token", "minus all global, paired", "copies, nats", "originals, nats",
             "recall of copies", "guessed", "parameters", "MFLOPs per token"]]  # fmt: skip
    for arm, own in by_arm(runs).items():
        difference = paired(runs, arm, ALL_GLOBAL, lambda c: c.text)
        rows.append(
            [
                arm,
                str(len(own)),
                str(over_seeds(own, lambda c: c.text)),
                "" if arm == ALL_GLOBAL or difference is None else str(difference),
                str(over_seeds(own, lambda c: c.copies)),
                str(over_seeds(own, lambda c: c.originals)),
                str(over_seeds(own, lambda c: c.recall)),
                f"{over_seeds(own, lambda c: c.guessed).mean:.4f}",
                f"{own[0].parameters / 1e6:.3f}M",
                f"{own[0].flops_per_token / 1e6:.2f}",
            ]
        )
    return rows


def _window_rows(runs: Sequence[Result]) -> Rows:
    rows = [["layers", "window", "text, nats per token", "relative perplexity", "recall of copies"]]
    for arm, own in by_arm(runs).items():
        for window in own[0].windows if len(own[0].windows) > 1 else ():
            nats = statistics.fmean(result.windows[window].text for result in own)
            recall = statistics.fmean(result.windows[window].recall for result in own)
            rows.append([arm, window, f"{nats:.4f}", str(relative_perplexity(own, window)), f"{recall:.4f}"])
    return rows


def _cache_rows(costs: Costs) -> Rows:
    rows = [["layers", "tokens", "formula, kB", "keys and values, kB", "of all global", "positions, kB"]]
    for each in costs.caches:
        part = f"{cache_part(costs, each.arm, each.length):.3f}"
        kilobytes = [f"{size / 1e3:,.1f}" for size in (each.formula, each.arrays, each.positions)]
        rows.append([each.arm, f"{each.length:,}", *kilobytes[:2], part, kilobytes[2]])
    return rows


def _time_rows(results: Results) -> Rows:
    w, times = results.workload, results.costs.times
    batch, length = w.step_shape
    rows = [["layers", f"training step {batch} x {length}, ms", "of all global, by round",
             f"decode step after {w.decode_context}, ms", "of all global, by round"]]  # fmt: skip
    for arm in times.step:
        cells = [arm]
        for seconds in (times.step, times.decode):
            found = ratios(seconds, arm)
            spread = f"{statistics.median(found):.3f} ({min(found):.3f} .. {max(found):.3f})"
            cells += [f"{statistics.median(seconds[arm]) * 1e3:.2f}", "" if arm == ALL_GLOBAL else spread]
        rows.append(cells)
    return rows


def write_report(results: Results, picture: str) -> str:
    """The dated report, Markdown. What falls short is said in so many words."""
    w, first = results.workload, results.runs[0]
    short = [aim for aim in aims(results.runs, results.costs) if not aim.reached]
    stages = ", ".join(f"{stage.steps} of {stage.batch_size} x {stage.length}" for stage in w.stages)
    parts = [
        f"# Local and global layers, {results.date}",
        f"`{results.command}`; the protocol is in [experiments/local_global](../../experiments/local_global/README.md)."
        f" Text: {results.source}. {w.num_layers} layers, {first.parameters / 1e6:.2f}M parameters, W = "
        f"{w.sliding_window}; steps: {stages} tokens. {first.rows} held-out rows of {w.trained_length} tokens with "
        f"{w.copies.spans} copied spans of {w.copies.span}, at least {w.copies.gap} tokens after their originals. "
        "Means over seeds with Student's 95 % interval; caches in float32.",
    ]
    parts += [WORKS] if results.only_shows_that_it_works else []
    for title, rows in tables(results):
        parts += [f"## {title}", as_markdown(rows)]
        if title == "Time":
            parts.append(f"Medians of {w.rounds} interleaved rounds in one process; smallest and largest ratio.")
    parts.append("## What falls short")
    parts.append("\n".join(f"* {aim.what}: {aim.measured}, aim {aim.aim}." for aim in short) or "Nothing of the aims.")
    parts += [f"![{picture}]({picture})"]
    parts += ["## Machine", as_markdown([["", ""], *([key, value] for key, value in results.machine.items())])]
    return "\n\n".join(parts) + "\n"
