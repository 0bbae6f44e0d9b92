"""Pictures of a study: answers by kind, the sweep, who writes to which slot, roll-outs, and the cost of a layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.interval import Interval
from experiments.plotting import pyplot, side_by_side
from experiments.shared_workspace import arms, cost
from experiments.shared_workspace.findings import by_arm, figure, sweep
from experiments.shared_workspace.report import Study
from experiments.shared_workspace.result import Result
from experiments.shared_workspace.rolling_out import TESTS
from experiments.shared_workspace.sort_of_clevr import KINDS
from experiments.shared_workspace.writers import ROLES


def draw_all(study: Study, folder: Path, stem: str) -> list[str]:
    """Draws what there is something of; the names of the files."""
    drawn: list[tuple[str, Any]] = [
        ("answers", answers(study.runs)),
        ("training", curves(study.runs)),
        ("slots", slots(study.runs)),
        ("writers", who_writes(study.runs)),
        ("balls", roll_outs(study.runs)),
        ("balls-writers", who_writes_over_time(study.runs)),
    ]
    names = []
    for name, figure_ in drawn:
        if figure_ is not None:
            names.append(f"{stem}-{name}.png")
            figure_.savefig(folder / names[-1], dpi=110)
            pyplot().close(figure_)
    for part in ("forward", "training"):
        if study.costs is not None:
            names.append(f"{stem}-cost-{part}.png")
            cost.plot(getattr(study.costs, part), folder / names[-1])
    return names


def answers(runs: Sequence[Result]) -> Any:
    """Bars of right answers: a panel for each kind of question, and two for triangles. A line is the baseline."""
    panels: list[tuple[str, Sequence[arms.Arm], str]] = [(kind, arms.MAIN, kind) for kind in KINDS]
    panels += [(f"triangles, {name}", arms.TRIANGLES, name) for name in ("anywhere", "hard negatives")]
    panels = [panel for panel in panels if any(_of(runs, panel[1], panel[2]))]
    if not panels:
        return None
    drawn, axes = side_by_side(len(panels), 3.2, 4.2)
    for axis, (title, chosen, name) in zip(axes, panels):
        found = {arm.label: figure(runs, arm.name, name) for arm in chosen if arm.trained}
        found = {label: value for label, value in found.items() if value is not None}
        axis.bar(list(found), [value.mean for value in found.values()], yerr=_errors(list(found.values())), capsize=3)
        base = figure(runs, arms.QUESTION_ONLY, name)
        level = base.mean if base is not None else 0.5
        axis.axhline(level, color="black", linestyle=":", label="question only" if base is not None else "chance")
        axis.set(title=title, ylim=(0, 1.02))
        axis.tick_params("x", rotation=60)
        axis.legend(fontsize=7, loc="lower right")
    axes[0].set_ylabel("part of right answers")
    return drawn


def curves(runs: Sequence[Result]) -> Any:
    """Training losses, means over seeds: a panel for each task."""
    groups = [("Sort-of-CLEVR", arms.MAIN), ("triangles", arms.TRIANGLES), ("balls", arms.BALLS)]
    known = by_arm(runs)
    groups = [(title, [arm for arm in group if arm.trained and arm.name in known]) for title, group in groups]  # type: ignore[misc]
    groups = [(title, group) for title, group in groups if group]
    if not groups:
        return None
    drawn, axes = side_by_side(len(groups), 4.2, 3.6)
    for axis, (title, group) in zip(axes, groups):
        for arm in group:
            own = known[arm.name]
            steps = [step for step, _ in own[0].curve]
            axis.plot(steps, np.mean([[loss for _, loss in run.curve] for run in own], axis=0), label=arm.label)
        axis.set(title=title, xlabel="step", yscale="log" if title == "balls" else "linear")
        axis.legend(fontsize=7)
    axes[0].set_ylabel("training loss")
    return drawn


def slots(runs: Sequence[Result]) -> Any:
    """Right answers against slots, a line for each number of writers, a panel for each kind of question."""
    if not any(run.run.arm in {arm.name for arm in arms.SWEEP} for run in runs):
        return None
    drawn, axes = side_by_side(len(KINDS), 3.6, 3.4)
    for axis, kind in zip(axes, KINDS):
        for column, top_k in enumerate(arms.SWEPT_WRITERS):
            values = [(n, row[column]) for n, row in zip(arms.SWEPT_SLOTS, sweep(runs, kind))]
            there = [(n, value) for n, value in values if value is not None]
            if there:
                numbers, found = zip(*there)
                label = "all write (soft)" if top_k is None else f"k = {top_k}"
                axis.errorbar(numbers, [v.mean for v in found], _errors(found), marker="o", capsize=3, label=label)
        base = figure(runs, arms.QUESTION_ONLY, kind)
        if base is not None:
            axis.axhline(base.mean, color="black", linestyle=":", label="question only")
        axis.set(title=kind, xlabel="slots", xscale="log", xticks=arms.SWEPT_SLOTS, ylim=(0, 1.02))
        axis.set_xticklabels(map(str, arms.SWEPT_SLOTS))
        axis.minorticks_off()
    axes[0].set_ylabel("part of right answers")
    axes[-1].legend(fontsize=7)
    return drawn


def who_writes(runs: Sequence[Result]) -> Any:
    """Weights of tokens by role: rows are slots, layer by layer; a panel for each variant and kind of question; of the
    first seed."""
    found = [run for run in runs if run.run.arm in ("TR+SSW", "TR+HSW") and "who writes" in run.pictures]
    first = {run.run.arm: run for run in reversed(found)}
    if not first:
        return None
    drawn, grid = pyplot().subplots(
        len(first), len(KINDS), figsize=(3.1 * len(KINDS) + 1, 4.4 * len(first)), squeeze=False, layout="constrained"
    )
    for row, (name, run) in zip(grid, sorted(first.items(), reverse=True)):
        for axis, kind, weights in zip(row, KINDS, np.array(run.pictures["who writes"])):
            layers, number = weights.shape[:2]
            shown = axis.imshow(weights.reshape(layers * number, -1), aspect="auto", vmin=0, vmax=0.6, cmap="viridis")
            for layer in range(1, layers):
                axis.axhline(layer * number - 0.5, color="white")
            axis.set(title=f"{name}, {kind}, seed {run.run.seed}", xticks=range(len(ROLES)))
            axis.set_yticks([layer * number + (number - 1) / 2 for layer in range(layers)],
                            [f"layer {layer + 1}" for layer in range(layers)])  # fmt: skip
            axis.set_xticklabels(ROLES, rotation=60, ha="right", fontsize=7)
    drawn.colorbar(shown, ax=grid, shrink=0.5, label="weight of a token in a slot")
    return drawn


def roll_outs(runs: Sequence[Result]) -> Any:
    """Squared distance by step, a panel for each number of balls."""
    chosen = [arm for arm in arms.BALLS if figure(runs, arm.name, "4: step 1") is not None]
    if not chosen:
        return None
    drawn, axes = side_by_side(len(TESTS), 4.4, 3.8)
    for axis, kind in zip(axes, TESTS):
        for arm in chosen:
            values, step = list[Interval](), 1
            while (value := figure(runs, arm.name, f"{kind}: step {step}")) is not None:
                values.append(value)
                step += 1
            style = "-" if arm.trained else ":"
            axis.plot(range(1, step), [v.mean for v in values], style, label=arm.name.removeprefix("balls: "))
        title = "4 balls, as in training" if kind == "4" else "6 to 8 balls"
        axis.set(title=title, xlabel="steps after the last frame given", yscale="log")
    axes[0].set_ylabel("mean squared distance from the true place")
    axes[0].legend(fontsize=8)
    return drawn


def who_writes_over_time(runs: Sequence[Result]) -> Any:
    """Of each test sequence that was kept, of the first seed: for each slot, units x frames; lines are collisions."""
    found = [run for run in runs if run.run.arm == "balls: workspace" and "weights" in run.pictures]
    if not found:
        return None
    shown = found[0].pictures
    weights = np.array(shown["weights"])  # [sequences, t, m, k]
    sequences, _, number, _ = weights.shape
    drawn, grid = pyplot().subplots(
        number, sequences, figsize=(4 * sequences, 2 * number), squeeze=False, layout="constrained"
    )
    for sequence in range(sequences):
        for slot in range(number):
            axis = grid[slot, sequence]
            image = axis.imshow(weights[sequence, :, slot].T, aspect="auto", vmin=0, vmax=1, cmap="viridis")
            for frame in np.flatnonzero(shown["collisions"][sequence]):
                axis.axvline(frame - 0.5, color="red", linewidth=0.8)
            axis.set(title=f"sequence {sequence + 1}, slot {slot + 1}", xlabel="frame", ylabel="unit")
    drawn.colorbar(image, ax=grid, shrink=0.6, label="weight (red: a collision)")
    return drawn


def _of(runs: Sequence[Result], chosen: Sequence[arms.Arm], name: str) -> list[Interval]:
    return [value for arm in chosen if arm.trained and (value := figure(runs, arm.name, name)) is not None]


def _errors(values: Sequence[Interval]) -> list[float]:
    """Half widths; none of a single seed."""
    return [value.half if value.count > 1 else 0.0 for value in values]
