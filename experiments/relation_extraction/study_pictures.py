"""Precision over recall, a line for each model; areas by number of sentences, a group of bars for each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.plotting import pyplot
from experiments.relation_extraction.findings import ALL, SENTENCES, by_arm, figure, groups_of
from experiments.relation_extraction.worker import RECALLS, Result


def draw_mean_curves(results: Sequence[Result], path: Path, title: str = "") -> None:
    """The mean over seeds of the precision at each recall; the legend gives the mean area."""
    canvas, axis = pyplot().subplots(figsize=(5.5, 4.2), layout="constrained")
    styles = ("-", "--", ":")
    for number, (arm, runs) in enumerate(by_arm(results).items()):
        found = figure(runs, ALL, "AUC")
        assert found is not None
        precision = np.mean([run.curve for run in runs], axis=0)
        axis.plot(RECALLS, precision, styles[number // 10 % len(styles)], lw=1.2, label=f"{arm}: {found.mean:.3f}")
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axis.legend(fontsize=7, title="area", title_fontsize=8)
    axis.grid(alpha=0.3)
    canvas.savefig(path, dpi=150)
    pyplot().close(canvas)


def draw_sizes(results: Sequence[Result], path: Path, title: str = "") -> None:
    """Mean areas with Student's intervals, by the number of a bag's sentences."""
    groups, arms = groups_of(results, SENTENCES), by_arm(results)
    canvas, axis = pyplot().subplots(figsize=(8, 3.8), layout="constrained")
    width = 0.8 / max(1, len(arms))
    for number, (arm, runs) in enumerate(arms.items()):
        found = [figure(runs, group, "AUC") for group in groups]
        means = [np.nan if one is None else one.mean for one in found]
        halves = [0.0 if one is None or one.count == 1 else one.half for one in found]
        axis.bar(np.arange(len(groups)) + number * width, means, width, yerr=halves, label=arm,
                 error_kw={"lw": 0.7})  # fmt: skip
    axis.set_xticks(np.arange(len(groups)) + 0.4 - width / 2, [group.removeprefix(SENTENCES) for group in groups])
    axis.set(xlabel="sentences of the bag", ylabel="AUC", title=title)
    # Below: bars reach the top wherever the arms are good.
    canvas.legend(fontsize=7, ncols=5, loc="outside lower center")
    canvas.savefig(path, dpi=150)
    pyplot().close(canvas)
