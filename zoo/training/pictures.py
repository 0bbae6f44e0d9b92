"""Pictures of a run as PNGs: loss curve, where its time went, what its routers did, which classes it confuses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from zoo.training.goodput import CAUSES, readable_time
from zoo.training.metrics import read_metrics
from zoo.training.progress import short_count

TRAINING, VALIDATION, QUIET = "#2166ac", "#d6604d", "#666666"


def loss_curve(
    metrics: str | Path,
    png: str | Path,
    *,
    baselines: Mapping[str, float] | None = None,
    title: str = "",
    unit: str = "nats per token",
) -> bool:
    """Draws `metrics` (a metrics.jsonl): training loss, raw and smoothed, validation losses, the learning rate below.

    `baselines` are losses of something simpler, in the same `unit`, by name, drawn as labelled lines. Returns whether
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
    upper.set_ylabel(f"loss ({unit})")
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


COLOURS = {
    "step": "#2166ac",
    "redone": "#b2182b",
    "start": "#f4a582",
    "data": "#762a83",
    "checkpoint": "#1b7837",
    "evaluation": "#92c5de",
    "replay": "#c2a5cf",
    "other": "#bababa",
    "down": "#ffffff",
}
"""Of the causes of zoo.training.goodput: what is lost stands out from what is spent."""

UNITS = {"days": 86400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}


def goodput_picture(starts: Sequence[Mapping[str, Any]], png: str | Path, *, title: str = "") -> bool:
    """Draws the `starts` of a Goodput (zoo.training.goodput): above, the share of the run's time by cause; below,
    a bar over the run's time for each start, divided by cause. Returns whether there was anything to draw.
    """
    from matplotlib.figure import Figure

    if not starts or starts[-1]["ended"] <= starts[0]["began"]:
        return False
    seconds = {cause: sum(start["seconds"].get(cause, 0.0) for start in starts) for cause in CAUSES}
    seconds["down"] = sum(max(0.0, after["began"] - before["ended"]) for before, after in zip(starts, starts[1:]))
    wall = sum(seconds.values())
    shown = sorted((cause for cause in CAUSES if seconds[cause] >= 0.0005 * wall), key=lambda cause: -seconds[cause])

    figure = Figure(figsize=(9, 5.5), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(5, 3))
    shares = [100 * seconds[cause] / wall for cause in shown]
    bars = upper.barh(
        [CAUSES[cause] for cause in shown],
        shares,
        color=[COLOURS[cause] for cause in shown],
        edgecolor=QUIET,
        linewidth=0.6,
    )
    labels = [f"{share:.1f} %  ({readable_time(seconds[cause])})" for cause, share in zip(shown, shares)]
    upper.bar_label(bars, labels, padding=4, fontsize=9, color=QUIET)
    upper.invert_yaxis()
    upper.set_xlim(0, 1.25 * max(shares))
    upper.set_xlabel("share of the run's time (%)")
    heading = f"goodput {100 * seconds['step'] / wall:.1f} % of {readable_time(wall)}"
    upper.set_title(f"{title}: {heading}" if title else heading, fontsize=11, loc="left")

    unit = next((name for name, size in UNITS.items() if wall >= 2 * size), "seconds")
    zero, scale = starts[0]["began"], UNITS[unit]
    for row, start in enumerate(starts):
        left = start["began"] - zero
        for cause in sorted(CAUSES, key=lambda cause: cause != "start"):
            width = start["seconds"].get(cause, 0.0)
            if width > 0:
                lower.barh(row, width / scale, left=left / scale, color=COLOURS[cause], height=0.8)
                left += width
    lower.set_ylim(len(starts) - 0.4, -0.6)
    lower.set_yticks([0, len(starts) - 1] if len(starts) > 1 else [0])
    lower.set_yticklabels([f"start {row + 1:.0f}" for row in lower.get_yticks()])
    lower.set_xlim(0, (starts[-1]["ended"] - zero) / scale)
    lower.set_xlabel(f"{unit} since the run began (within a start the causes lie one after the other)")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2, linewidth=0.6, axis="x")
        axes.set_axisbelow(True)
    figure.savefig(png, format="png")
    return True


def router_picture(metrics: str | Path, png: str | Path, *, title: str = "") -> bool:
    """Draws what the routers of sparse layers did, from a metrics.jsonl. Returns whether there were sparse layers.

    Above: the load of every layer's experts at the end of the run (mean of its last twentieth) and over its steps, in
    multiples of a balanced load. Below: entropy, the largest load and, where any choice found no room, their share.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = [row for row in read_metrics(metrics) if row.get("router_load") is not None]
    if not rows:
        return False
    steps = np.array([row["step"] for row in rows])
    load = np.array([row["router_load"] for row in rows], float)  # [steps, layers, E]
    load *= load.shape[-1]
    _, layers, experts = load.shape

    figure = Figure(figsize=(10, 7), dpi=150, layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=(5, 1.3, 1.3), width_ratios=(2, 3))
    final, course = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    shown: dict[str, Any] = {"cmap": "RdBu_r", "vmin": 0.0, "vmax": 2.0, "aspect": "auto", "interpolation": "nearest"}
    image = final.imshow(load[-max(1, len(load) // 20) :].mean(0), **shown)
    final.set_xlabel("expert")
    final.set_ylabel("sparse layer")
    for axis in (final.xaxis, final.yaxis):
        axis.set_major_locator(MaxNLocator("auto", integer=True))
    final.set_title("load at the end", fontsize=10, loc="left")
    parts = np.array_split(load.reshape(len(load), -1), min(len(load), 300))
    course.imshow(
        np.stack([part.mean(0) for part in parts], axis=1),
        extent=(steps[0] - 0.5, steps[-1] + 0.5, layers * experts - 0.5, -0.5),
        **shown,
    )
    for layer in range(1, layers):
        course.axhline(layer * experts - 0.5, color="black", linewidth=0.6)
    named = range(0, layers, -(-layers // 16))
    course.set_yticks([(layer + 0.5) * experts - 0.5 for layer in named], [str(layer) for layer in named])
    course.set_ylabel("sparse layer (its experts from top to bottom)")
    course.set_xlabel("step")
    course.set_title("load over the run", fontsize=10, loc="left")
    figure.colorbar(image, ax=course, label="load (1 = balanced)", extend="max")

    entropy, bottom = figure.add_subplot(grid[1, :]), figure.add_subplot(grid[2, :])
    largest = bottom
    curves = [(entropy, "router_entropy", f"entropy (nats)\nlog {experts} = {np.log(experts):.2f}", 1, TRAINING)]
    if any(row["router_dropped"] for row in rows):
        largest = bottom.twinx()
        curves.append((bottom, "router_dropped", "dropped (%)", 100, VALIDATION))
    for axes, name, label, scale, color in curves:
        values = scale * np.array([row[name] for row in rows], float)
        axes.plot(steps, smoothed(values), color=color, linewidth=1.4)
        axes.set_ylabel(label, fontsize=8, color=color)
        axes.set_ylim(bottom=0)
    values = np.array([row["router_largest_load"] for row in rows], float)
    largest.plot(steps, smoothed(values), color=QUIET, linewidth=1.2)
    largest.set_ylabel("largest load", fontsize=8, color=QUIET)
    largest.set_ylim(bottom=1)
    bottom.set_xlabel(_horizontal_label(rows[-1]))
    for axes in (largest, *(axes for axes, *_ in curves)):
        axes.spines[["top"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.margins(x=0.01)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
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


def confusion_picture(
    counts: Int[np.ndarray, "k k"], classes: Sequence[str], png: str | Path, *, title: str = ""
) -> None:
    """Draws how many examples of the class of each row were taken for that of each column: shaded by their share of the
    row, with the counts if the classes are few."""
    from matplotlib.figure import Figure

    size = len(classes)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = min(12.0, max(3.5, 0.45 * size + 2))
    figure = Figure(figsize=(side + 0.8, side), dpi=150, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if size <= 20:
        for (row, column), count in np.ndenumerate(counts):
            shade = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=shade, fontsize=8)
    shown = np.arange(size) if size <= 40 else np.linspace(0, size - 1, 20).round().astype(int)
    names = [classes[number] for number in shown]
    axes.set_xticks(shown, names, rotation=45 if size > 3 else 0, ha="right" if size > 3 else "center", fontsize=8)
    axes.set_yticks(shown, names, fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    axes.set_title(title, fontsize=11, loc="left")
    figure.colorbar(image, ax=axes, label="share of the row", fraction=0.046)
    figure.savefig(png, format="png")
