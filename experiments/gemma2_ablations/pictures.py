"""The largest logits over training, loss against learning rate, and loss against the window at inference, as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.gemma2_ablations.arms import BASE, NO_CAPS, PRE_NORMS, SWEPT
from experiments.gemma2_ablations.findings import cost_of_window, over_seeds, rates_of, select, windows_of
from experiments.gemma2_ablations.worker import Result
from experiments.plotting import pyplot

COLOURS = {BASE: "tab:blue", NO_CAPS: "tab:red", PRE_NORMS: "tab:green"}
CAPS = {"attention": 50.0, "final": 30.0}
PAPER_WINDOWS = {1.0: 1.63, 0.5: 1.63, 0.25: 1.64}
"""Perplexity by the part of the trained window (Gemma 2, table 10)."""


def draw_logits(runs: Sequence[Result], path: Path) -> None:
    """The largest logit over training, before the soft-cap: attention above, output below, a column for each rate."""
    rates = rates_of(runs)
    figure, panels = pyplot().subplots(2, len(rates), figsize=(3 * len(rates) + 1, 5.5), sharey="row", squeeze=False)
    for column, rate in enumerate(rates):
        for row, of in enumerate(CAPS):
            panel = panels[row, column]
            panel.axhline(CAPS[of], color="black", lw=0.7, ls=":")
            for arm in SWEPT:
                for number, run in enumerate(select(runs, arm, rate).values()):
                    probes = [each for each in run.probes if getattr(each, of) is not None]
                    values = [max(getattr(each, of), 1e-3) for each in probes]
                    label = arm if number == 0 else None
                    panel.plot([each.step for each in probes], values, color=COLOURS[arm], lw=0.9, label=label)
            panel.set_yscale("log")
        panels[0, column].set_title(f"learning rate {rate:g}", fontsize=9)
        panels[1, column].set_xlabel("step")
    panels[0, 0].set_ylabel("largest attention logit (dotted: cap)")
    panels[1, 0].set_ylabel("largest output logit (dotted: cap)")
    panels[0, 0].legend(fontsize=7)
    _save(figure, path)


def draw_rates(runs: Sequence[Result], path: Path) -> None:
    """Held-out loss against learning rate, means over seeds and every seed as a point."""
    figure, panel = pyplot().subplots(figsize=(5.5, 4))
    panel.axhline(runs[0].unigram_loss, color="black", lw=0.7, ls=":", label="frequencies of tokens alone")
    for arm in SWEPT:
        cells = {rate: list(select(runs, arm, rate).values()) for rate in rates_of(runs)}
        cells = {rate: own for rate, own in cells.items() if own}
        if cells:
            means = [over_seeds(own).mean for own in cells.values()]
            panel.plot(list(cells), means, color=COLOURS[arm], lw=1.3, label=arm)
            for rate, own in cells.items():
                panel.plot([rate] * len(own), [over_seeds([run]).mean for run in own], ".", color=COLOURS[arm])
    panel.set_xscale("log")
    panel.set_xlabel("peak learning rate")
    panel.set_ylabel("nats per held-out token")
    panel.legend(fontsize=7)
    _save(figure, path)


def draw_windows(runs: Sequence[Result], path: Path) -> None:
    """What another window at inference costs, with its interval, and what it cost in the report."""
    windows = windows_of(runs)
    figure, panel = pyplot().subplots(figsize=(5.5, 4))
    if windows:
        found = {window / windows[0]: cost_of_window(runs, window) for window in sorted(windows)}
        costs = {part: cost for part, cost in found.items() if cost is not None}
        halves = [cost.half if cost.count > 1 else 0 for cost in costs.values()]
        means = [cost.mean for cost in costs.values()]
        label = f"ours, W = {windows[0]}"
        panel.errorbar(list(costs), means, halves, color="tab:blue", marker=".", lw=1.3, capsize=3, label=label)
    paper = np.log(np.array(list(PAPER_WINDOWS.values())) / PAPER_WINDOWS[1.0])
    panel.plot(list(PAPER_WINDOWS), paper, "s", color="tab:gray", ms=5, label="Gemma 2 9B, W = 4,096 (rounded)")
    panel.axhline(0, color="black", lw=0.7, ls=":")
    panel.set_xscale("log", base=2)
    panel.set_xlabel("window at inference / window of training")
    panel.set_ylabel("nats per token more than with the window of training")
    panel.legend(fontsize=7)
    _save(figure, path)


NAMES = {"logits": draw_logits, "rates": draw_rates, "windows": draw_windows}
"""The pictures, by the end of their file names."""


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot().close(figure)


def draw_all(runs: Sequence[Result], folder: Path, stem: str) -> list[str]:
    """All of `NAMES`; gives the file names."""
    names = [f"{stem}-{name}.png" for name in NAMES]
    for name, draw in zip(names, NAMES.values(), strict=True):
        draw(runs, folder / name)
    return names
