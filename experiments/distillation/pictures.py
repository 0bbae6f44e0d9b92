"""The gap by size, by token budget and by K, and the curves, as one PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter

from experiments.distillation.arms import DISTILLED, KEPT, SCRATCH, TEACHER, top
from experiments.distillation.findings import budgets_of, losses, runs_of_arm, teacher_of, widths_of
from experiments.distillation.worker import Result
from experiments.plotting import pyplot

COLOURS = {SCRATCH: "tab:gray", DISTILLED: "tab:blue", TEACHER: "black"}


def draw_all(results: Sequence[Result], folder: Path, stem: str) -> list[str]:
    """The one picture; gives its file name."""
    draw(results, folder / f"{stem}.png")
    return [f"{stem}.png"]


def draw(results: Sequence[Result], path: Path) -> None:
    """Held-out novels; bars are Student's 95 % intervals over seeds, of two or more."""
    figure, panels = pyplot().subplots(1, 4, figsize=(17, 4), layout="constrained")
    widths = widths_of(results)
    for arm in (SCRATCH, DISTILLED):
        own = [width for width in widths if runs_of_arm(results, arm, width)]
        sizes = [next(iter(runs_of_arm(results, arm, width).values())).parameters for width in own]
        _line(panels[0], sizes, [losses(results, arm, width) for width in own], arm, COLOURS[arm])
    teacher = teacher_of(results)
    if teacher is not None:
        nats = losses(results, TEACHER, teacher.run.width)
        _line(panels[0], [teacher.parameters], [nats], f"teacher, {teacher.tokens / 1e6:.1f}M tokens", "black")
    panels[0].set(xlabel="parameters", title="by size, equal tokens")
    for width in widths:
        budgets = budgets_of(results, width)
        if len(budgets) > 1:
            tokens, scratch, distilled = zip(*budgets, strict=True)
            for arm, names in ((SCRATCH, scratch), (DISTILLED, distilled)):
                values = [losses(results, name, width) for name in names]
                _line(panels[1], tokens, values, f"{arm}, {width}", COLOURS[arm])
    panels[1].set(xlabel="tokens", title="by token budget, each with its own schedule")
    for width in sorted({result.run.width for result in results if result.run.arm == top(KEPT[-1])}):
        _line(panels[2], list(KEPT), [losses(results, top(k), width) for k in KEPT], f"K kept, {width}", "tab:orange")
        for arm in (SCRATCH, DISTILLED):
            value = losses(results, arm, width)
            if value is not None:
                panels[2].axhline(value.mean, color=COLOURS[arm], linestyle="--", label=f"{arm}, {width}")
    panels[2].set(xlabel="K", title="from a cache of K probabilities")
    for result in results:
        if result.run.arm in COLOURS and result.validation:
            steps, values = zip(*result.validation, strict=True)
            tokens = np.asarray(steps) * result.tokens / result.steps
            panels[3].plot(tokens, values, color=COLOURS[result.run.arm], lw=0.7, alpha=0.8)
    panels[3].set(xlabel="tokens", title="validation on the way, every run")
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
        panel.set_ylabel("nats per token")
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=7)
    figure.savefig(path, dpi=130)
    pyplot().close(figure)


def _line(panel: Any, x: Sequence[float], values: Sequence[Any], label: str, colour: str) -> None:
    points = [(at, value) for at, value in zip(x, values, strict=True) if value is not None]
    if points:
        means = [value.mean for _, value in points]
        bars = [value.half if value.count > 1 else 0.0 for _, value in points]
        panel.errorbar(
            [at for at, _ in points], means, yerr=bars, marker="o", ms=3, capsize=3, label=label, color=colour
        )
