"""Tables for the terminal and for the dated report, from the same results."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from experiments.aim import Aim
from experiments.likelihood_vs_position.findings import Fit, aims, by_arm, fits, gain, in_bucket, octaves
from experiments.likelihood_vs_position.fit import spread
from experiments.likelihood_vs_position.worker import Result
from experiments.sparse_vs_dense.report import describe
from experiments.speed.report import Rows, as_markdown, as_text

__all__ = ["Results", "aim_rows", "as_json", "as_text", "describe", "tables", "write_report"]

WORKS = "A tiny model, hardly trained: this shows that the experiment works and nothing else."


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
    trained_length: int
    """Tokens of the longest rows in training; of a checkpoint its context length."""
    reach: int | None
    """Tokens that the control can see; None for a checkpoint."""
    draws: int
    """Resamples of the passages."""
    workload: dict[str, Any] | None
    """Sizes; None for a checkpoint."""
    runs: list[Result]
    """All of them."""
    only_shows_that_it_works: bool = False
    """Of --quick."""


def findings_of(results: Results) -> tuple[list[Fit], list[Aim]]:
    """The laws and the aims."""
    found = fits(results.runs, results.trained_length, results.draws)
    return found, aims(results.runs, found, results.reach, results.draws)


def tables(results: Results, found: Sequence[Fit], listed: Sequence[Aim]) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table."""
    shown = [("Power law a x^b + c of the negative log-likelihood", _fit_rows(found))]
    shown.append(("Negative log-likelihood by position, nats per token", _bucket_rows(results)))
    if any(result.step_seconds for result in results.runs):
        shown.append(("Training", _training_rows(results.runs)))
    return [*shown, ("Aims", aim_rows(listed))]


def aim_rows(listed: Sequence[Aim]) -> Rows:
    """One row for each aim."""
    words = {True: "reached", False: "short"}
    return [["", "aim", "measured", ""], *([aim.what, aim.aim, aim.measured, words[aim.reached]] for aim in listed)]


def _fit_rows(found: Sequence[Fit]) -> Rows:
    rows = [["model", "of", "up to", "a", "b (95 %)", "c (95 %)", "R2 (95 %)", "b over seeds"]]
    for fit in found:
        b = str(fit.spreads["b"]) + (", at the bound" if fit.law.at_bound else "")
        cells = [f"{fit.law.a:.3f}", b, str(fit.spreads["c"]), str(fit.spreads["r2"]), str(fit.exponent)]
        rows.append([fit.arm, fit.of, f"{fit.up_to:,}", *cells])
    return rows


def _bucket_rows(results: Results) -> Rows:
    arms, draws = by_arm(results.runs), results.draws
    with_gain = gain(results.runs, octaves(results.runs[0].positions)[0], draws) is not None
    rows = [["tokens", *arms, *(["gain, same tokens"] if with_gain else [])]]
    for bucket in octaves(results.runs[0].positions):
        beyond = ", beyond the trained length" if bucket[0] >= results.trained_length else ""
        cells = [str(spread(in_bucket(runs, bucket), draws)) for runs in arms.values()]
        rows.append([f"{bucket[0] + 1:,} to {bucket[1]:,}{beyond}", *cells])
        if with_gain:
            rows[-1].append(str(gain(results.runs, bucket, draws)))
    return rows


def _training_rows(runs: Sequence[Result]) -> Rows:
    rows = [["model", "seeds", "parameters", "last training loss", "ms per step, each stage"]]
    for arm, own in by_arm(runs).items():
        stages = np.median([result.step_seconds for result in own], axis=0) * 1e3
        losses = ", ".join(f"{result.training[-1][1]:.3f}" for result in own if result.training)
        parameters = f"{own[0].parameters / 1e6:.3f}M"
        rows.append([arm, str(len(own)), parameters, losses, ", ".join(f"{ms:.0f}" for ms in stages)])
    return rows


def as_json(results: Results, found: Sequence[Fit], listed: Sequence[Aim]) -> dict[str, Any]:
    """All numbers."""
    return {**asdict(results), "fits": list(map(asdict, found)), "aims": list(map(asdict, listed))}


def write_report(results: Results, found: Sequence[Fit], listed: Sequence[Aim], picture: str) -> str:
    """The dated report, Markdown. What falls short is said in so many words."""
    first, w = results.runs[0], results.workload
    short = [aim for aim in listed if not aim.reached]
    sizes = ""
    if w is not None:
        stages = ", ".join(f"{s['steps']} of {s['batch_size']} x {s['length']}" for s in w["stages"])
        sizes = (
            f"Models of {first.parameters / 1e6:.2f}M parameters, W = {w['sliding_window']}; steps: {stages} tokens. "
        )
    parts = [
        f"# Negative log-likelihood against position, {results.date}",
        f"`{results.command}`; the protocol is in [experiments/likelihood_vs_position]"
        f"(../../experiments/likelihood_vs_position/README.md). Text: {results.source}. {sizes}"
        f"{len(first.sums)} passages of {first.positions[-1]:,} tokens from {len(set(first.documents))} documents; "
        f"intervals are of {results.draws} resamples of the passages, seeds averaged; over seeds, Student's 95 %.",
    ]
    parts += [WORKS] if results.only_shows_that_it_works else []
    for title, rows in tables(results, found, listed):
        parts += [f"## {title}", as_markdown(rows)]
    parts.append("## What falls short")
    parts.append("\n".join(f"* {aim.what}: {aim.measured}, aim {aim.aim}." for aim in short) or "Nothing of the aims.")
    parts += [f"![{picture}]({picture})"]
    parts += ["## Machine", as_markdown([["", ""], *([key, value] for key, value in results.machine.items())])]
    return "\n\n".join(parts) + "\n"
