"""Tables for the terminal and for the dated report, from the same results."""

import os
import statistics
from dataclasses import dataclass

from experiments.interval import interval
from experiments.sparse_vs_dense.arms import CAPACITY, DENSE, NO_BALANCING, NO_Z_LOSS, SPARSE, Workload
from experiments.sparse_vs_dense.findings import (
    Aim,
    aims,
    best_rates,
    by_arm,
    final_loss,
    idle_experts,
    paired,
    steps_to_reach,
    unevenness,
)
from experiments.sparse_vs_dense.worker import Result
from experiments.speed import machine
from experiments.speed.report import Rows, as_markdown, as_text

__all__ = ["Results", "as_text", "describe", "tables", "write_report"]


@dataclass
class Results:
    """Everything that the runs found out."""

    date: str
    """Day of the report, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit."""
    source: str
    """What the text is."""
    workload: Workload
    """Sizes."""
    sweep: list[Result]
    """Runs that chose the learning rates."""
    runs: list[Result]
    """Runs that are compared."""


def describe() -> dict[str, str]:
    """What the figures were taken on."""
    return machine.describe(sorted(os.sched_getaffinity(0)))


def tables(results: Results) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table."""
    found = [("Held-out loss after equal steps", _loss_rows(results)), ("Load of the experts", _load_rows(results))]
    if results.sweep:
        found.append((f"Learning rates, {results.workload.sweep_steps} steps, seed 0", _sweep_rows(results)))
    return [*found, ("Aims", [["", "aim", "measured", ""], *(_aim_row(aim) for aim in aims(results.runs))])]


def _loss_rows(results: Results) -> Rows:
    arms = by_arm(results.runs)
    target = interval([final_loss(result) for result in arms[DENSE]]).mean
    rows = [["arm", "seeds", "nats per token", "minus dense, paired", "bits per byte", "steps to dense's last loss",
             "parameters", "active", "FLOPs per token", "tokens/s"]]  # fmt: skip
    for arm, runs in arms.items():
        difference = paired(results.runs, arm, DENSE)
        reached = [steps_to_reach(run, target) for run in runs]
        known = [step for step in reached if step is not None]
        rows.append(
            [
                arm,
                str(len(runs)),
                str(interval([final_loss(run) for run in runs])),
                "" if arm == DENSE or difference is None else f"{difference}",
                f"{statistics.fmean(run.bits_per_byte for run in runs):.4f}",
                f"{statistics.fmean(known):.0f}" if len(known) == len(reached) else "not reached",
                f"{runs[0].parameters / 1e6:.2f}M",
                f"{runs[0].active_parameters / 1e6:.2f}M",
                f"{runs[0].training_flops_per_token / 1e6:.2f}M",
                f"{statistics.median(run.tokens_per_second for run in runs):.0f}",
            ]
        )
    return rows


def _load_rows(results: Results) -> Rows:
    rows = [["arm", "largest load x", "experts below 0.1 x", "entropy, nats", "rms logsumexp", "dropped"]]
    for arm, runs in by_arm(results.runs).items():
        if not runs[0].load:
            continue
        experts = len(runs[0].load) * len(runs[0].load[0])
        rows.append(
            [
                arm,
                ", ".join(f"{unevenness(run):.2f}" for run in runs),
                ", ".join(f"{idle_experts(run)} of {experts}" for run in runs),
                f"{statistics.fmean(run.entropy[-1][1] for run in runs):.3f}",
                f"{statistics.fmean(run.router_logsumexp for run in runs):.2f}" if runs[0].router_logsumexp else "-",
                f"{statistics.fmean(run.dropped for run in runs):.2%}",
            ]
        )
    return rows


def _sweep_rows(results: Results) -> Rows:
    best = best_rates(results.sweep)
    rows = [["arm", "learning rate", "nats per token", ""]]
    for result in results.sweep:
        chosen = "chosen" if best[result.run.arm] == result.run.learning_rate else ""
        rows.append([result.run.arm, f"{result.run.learning_rate:g}", f"{final_loss(result):.4f}", chosen])
    return rows


def _aim_row(aim: Aim) -> list[str]:
    return [aim.what, aim.aim, aim.measured, "reached" if aim.reached else "short"]


def write_report(results: Results, pictures: list[str]) -> str:
    """The dated report, Markdown. What falls short is said in so many words."""
    w, short = results.workload, [aim for aim in aims(results.runs) if not aim.reached]
    tokens = w.steps * w.batch_size * w.sequence_length
    parts = [
        f"# Sparse against dense at equal active FLOPs, {results.date}",
        f"`{results.command}`; the protocol is in [experiments/sparse_vs_dense]"
        "(../../experiments/sparse_vs_dense/README.md). "
        f"Text: {results.source}. Every run has {w.steps} steps of {w.batch_size} x {w.sequence_length} tokens, "
        f"{tokens / 1e6:.2f}M in all. Means over seeds with Student's 95 % interval.",
        *_sentences(results),
    ]
    for title, rows in tables(results):
        parts += [f"## {title}", as_markdown(rows)]
    parts.append("## What falls short")
    parts.append("\n".join(f"* {aim.what}: {aim.measured}, aim {aim.aim}." for aim in short) or "Nothing of the aims.")
    parts += [f"![{name}]({name})" for name in pictures]
    parts += ["## Machine", as_markdown([["", ""], *([key, value] for key, value in results.machine.items())])]
    return "\n\n".join(parts) + "\n"


def _sentences(results: Results) -> list[str]:
    """What the differences between arms are, seed by seed, and whether they can be told from none."""
    lines = []
    for arm, against in ((SPARSE, DENSE), (NO_BALANCING, SPARSE), (NO_Z_LOSS, SPARSE), (CAPACITY, SPARSE)):
        difference = paired(results.runs, arm, against)
        if difference is None:
            continue
        verdict = "cannot be told from none"
        if difference.count == 1:
            verdict = "is that of one seed"
        elif difference.high < 0 or difference.low > 0:
            verdict = "is larger than its interval"
        lines.append(f"* {arm} minus {against}, seed by seed: {difference} nats per token, which {verdict}.")
    return ["\n".join(lines)] if lines else []
