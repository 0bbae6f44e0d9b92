"""The loss curve of a run as a PNG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.training.metrics import read_metrics
from zoo.training.progress import short_count

TRAINING, VALIDATION, QUIET = "#2166ac", "#d6604d", "#666666"


def loss_curve(
    metrics: str | Path, png: str | Path, *, baselines: Mapping[str, float] | None = None, title: str = ""
) -> bool:
    """Draws `metrics` (a metrics.jsonl): training loss, raw and smoothed, validation losses, the learning rate below.

    `baselines` are losses in nats per token of something simpler, by name, drawn as labelled lines. Returns whether
    there was anything to draw.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state
    from matplotlib.ticker import MaxNLocator

    rows = read_metrics(metrics)
    if not rows:
        return False
    steps = np.array([row["step"] for row in rows])
    losses = np.array([row["loss"] for row in rows], float)
    validation = [(row["step"], row["validation_loss"]) for row in rows if row.get("validation_loss") is not None]

    figure = Figure(figsize=(9, 5.5), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1))
    upper.plot(steps, losses, color=TRAINING, alpha=0.25, linewidth=0.8)
    upper.plot(steps, smoothed(losses), color=TRAINING, linewidth=1.8, label="training (smoothed)")
    if validation:
        upper.plot(*zip(*validation), "o-", color=VALIDATION, markersize=5, linewidth=1, label="validation", zorder=3)
        at, loss = validation[-1]
        upper.annotate(
            f"{loss:.3f}", (at, loss), xytext=(-4, 9), textcoords="offset points", ha="right", color=VALIDATION
        )
    for name, value in (baselines or {}).items():
        upper.axhline(value, color=QUIET, linestyle="--", linewidth=1)
        upper.annotate(
            f"{name}: {value:.2f}", (1, value), xycoords=("axes fraction", "data"), xytext=(-4, 4),
            textcoords="offset points", ha="right", fontsize=9, color=QUIET,
        )  # fmt: skip
    shown = np.concatenate(
        [losses[np.isfinite(losses)], [loss for _, loss in validation], list((baselines or {}).values())]
    )
    margin = 0.06 * max(shown.max() - shown.min(), 1e-3)
    upper.set_ylim(shown.min() - margin, shown.max() + margin)
    upper.set_ylabel("loss (nats per token)")
    upper.legend(frameon=False, loc="best")
    upper.set_title(title, fontsize=11, loc="left")

    lower.plot(steps, [row["learning_rate"] for row in rows], color=QUIET, linewidth=1.2)
    lower.set_ylim(bottom=0)
    lower.set_ylabel("learning\nrate", fontsize=8)
    lower.tick_params(labelsize=8)
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    lower.set_xlabel(_horizontal_label(rows[-1]))
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2, linewidth=0.6)
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    figure.savefig(png, format="png")
    return True


def smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over neighbours on both sides, which does not lag behind a falling curve: few at the beginning, where it
    falls fast, later about a thirtieth of all values. Skips nan and inf."""
    count = len(values)
    index = np.arange(count)
    half = np.minimum(index // 4, max(2, count // 60))
    low, high = index - half, np.minimum(index + half + 1, count)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    number = counts[high] - counts[low]
    return np.where(number, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def _horizontal_label(last: Mapping[str, Any]) -> str:
    tokens = last.get("tokens")
    return "step" if not tokens else f"step   ({last['step']:,} steps = {short_count(tokens)} tokens)"
