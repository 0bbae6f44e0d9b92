"""Tables for the terminal and for the dated report, from the same results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.gemma2_ablations.arms import ARMS, BASE, SWEPT, Workload
from experiments.gemma2_ablations.findings import (
    SAME,
    ablations,
    by_arm,
    cost_of_window,
    has_learnt,
    largest,
    over_seeds,
    paired,
    rates_of,
    select,
    sensitivities,
    windows_of,
)
from experiments.gemma2_ablations.worker import Result
from experiments.interval import interval
from experiments.pages import write_page
from experiments.speed.report import Rows, as_markdown, as_text

__all__ = ["WORKS", "Study", "as_json", "as_text", "tables", "write_report"]

WORKS = "These are a few steps of a tiny model: they show that training and measuring work, and nothing else."


@dataclass(frozen=True)
class Study:
    """Everything that is known so far."""

    date: str
    """Day of the report, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit."""
    workload: Workload
    """Sizes."""
    runs: list[Result]
    """All that are done, of the arms and seeds that were asked for."""
    missing: list[str]
    """Names of those that are not."""
    only_shows_that_it_works: bool = False
    """A few steps of a tiny model."""

    @property
    def rate(self) -> float:
        """The learning rate of all comparisons but that of learning rates."""
        return self.workload.learning_rates[0]


def tables(study: Study) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table."""
    found = [
        ("Ablations", _ablation_rows(study)),
        (f"All arms at the learning rate {study.rate:g}", _arm_rows(study)),
        ("Learning rates: held-out loss", _rate_rows(study.runs)),
        ("Learning rates: largest attention logit before the soft-cap", _logit_rows(study.runs, "attention")),
        ("Learning rates: largest output logit before the soft-cap", _logit_rows(study.runs, "final")),
        ("Window at inference", _window_rows(study.runs)),
    ]
    return [(title, rows) for title, rows in found if rows[1:]]


def _ablation_rows(study: Study) -> Rows:
    rows = [["difference", "unit", "Gemma 2's report", "ours, paired by seed", "seeds", "verdict"]]
    for each in ablations(study.runs, study.rate):
        own = "not measured" if each.measured is None else str(each.measured)
        count = "0" if each.measured is None else str(each.measured.count)
        rows.append([each.what, each.unit, each.paper, own, count, each.verdict])
    return rows


def _arm_rows(study: Study) -> Rows:
    rows = [["arm", "seeds", "nats per held-out token", f"minus {BASE}, paired", "parameters",
             "largest attention logit", "largest output logit", "ms a step"]]  # fmt: skip
    for arm, own in by_arm(study.runs, study.rate).items():
        difference = None if arm == BASE else paired(study.runs, arm, BASE, study.rate)
        rows.append(
            [
                arm,
                str(len(own)),
                str(over_seeds(own)),
                "" if difference is None else str(difference),
                f"{own[0].parameters:,}",
                _spread([largest(run, "attention") for run in own]),
                _spread([largest(run, "final") for run in own]),
                f"{over_seeds(own, lambda run: run.step_seconds).mean * 1e3:.0f}",
            ]
        )
    return rows


def _spread(values: Sequence[float]) -> str:
    """Smallest to largest: a maximum has no interval of Student's."""
    low, high = (f"{value:.1f}" if math.isfinite(value) else "not finite" for value in (min(values), max(values)))
    return low if low == high else f"{low} .. {high}"


def _rate_rows(runs: Sequence[Result]) -> Rows:
    rates = rates_of(runs)
    rows = [["arm", *(f"{rate:g}" for rate in rates), "LR sensitivity", "runs that learnt"]]
    for arm in SWEPT:
        cells = [list(select(runs, arm, rate).values()) for rate in rates]
        own = [run for cell in cells for run in cell]
        if own:
            found = list(sensitivities(runs, arm).values())
            shown = ["-" if not cell else str(over_seeds(cell)) for cell in cells]
            learnt = f"{sum(map(has_learnt, own))} of {len(own)}"
            rows.append([arm, *shown, str(interval(found)) if found else "-", learnt])
    return rows


def _logit_rows(runs: Sequence[Result], of: Any) -> Rows:
    rates = rates_of(runs)
    rows = [["arm", *(f"{rate:g}" for rate in rates)]]
    for arm in SWEPT:
        cells = [[largest(run, of) for run in select(runs, arm, rate).values()] for rate in rates]
        if any(cells):
            rows.append([arm, *(_spread(cell) if cell else "-" for cell in cells)])
    return rows


def _window_rows(runs: Sequence[Result]) -> Rows:
    rows = [["window", "seeds", "nats per held-out token", "minus that of training, paired", "relative perplexity"]]
    for window in windows_of(runs):
        losses = [dict(run.windows)[window] for run in runs if window in dict(run.windows)]
        cost = cost_of_window(runs, window)
        assert cost is not None
        rows.append([str(window), str(len(losses)), str(interval(losses)), str(cost), f"{math.exp(cost.mean):.4f}"])
    return rows


def write_report(study: Study, pictures: Sequence[str]) -> str:
    """The dated report, Markdown."""
    w = study.workload
    unigram = study.runs[0].unigram_loss
    parts = [
        f"# Gemma 2's choices of architecture, {study.date}",
        f"`{study.command}`; arms and protocol are in [experiments/gemma2_ablations]"
        f"(../../experiments/gemma2_ablations/README.md). Text: {'novels' if w.novels else 'made here'}. Every run has "
        f"{w.steps} steps of {w.batch_size} x {w.sequence_length} tokens. Measured on {w.test_rows} held-out rows, the "
        f"same for all runs; the frequencies of tokens alone give {unigram:.3f} nats per token. Means are over seeds "
        f"with Student's 95 % interval, and differences are taken seed by seed. Losses that differ by less than {SAME} "
        "nats are called the same.",
    ]
    present = [arm for arm in ARMS if any(run.run.arm == arm for run in study.runs)]
    return write_page(
        parts,
        missing=study.missing,
        notes=[WORKS] if study.only_shows_that_it_works else [],
        tables=tables(study),
        ending=["## Arms", as_markdown([["arm", "what it is"], *([arm, ARMS[arm]] for arm in present)])],
        pictures=pictures,
        machine=study.machine,
    )


def as_json(study: Study) -> dict[str, Any]:
    """The table of ablations; the runs are files of their own."""
    found = []
    for each in ablations(study.runs, study.rate):
        own = each.measured
        # An infinite interval (one seed) is no JSON.
        half = None if own is None or not math.isfinite(own.half) else own.half
        fields = {"what": each.what, "unit": each.unit, "paper": each.paper, "verdict": each.verdict}
        found.append(fields | {"mean": own and own.mean, "half": half, "seeds": own.count if own else 0})
    names = [run.run.name for run in study.runs]
    described = {"date": study.date, "command": study.command, "machine": study.machine}
    return described | {"ablations": found, "runs": names, "missing": study.missing}
