"""The cumulative mean with its power law, and the mean of each bucket, against position, as one PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.likelihood_vs_position.arms import LONG, WINDOW
from experiments.likelihood_vs_position.findings import (
    BY_POSITION,
    CUMULATIVE,
    FIRST_FITTED,
    Fit,
    by_arm,
    points,
)
from experiments.likelihood_vs_position.fit import resampled
from experiments.likelihood_vs_position.worker import Result
from experiments.plotting import pyplot

COLOURS = {LONG: "tab:blue", WINDOW: "tab:gray"}


def draw(
    results: Sequence[Result], found: Sequence[Fit], trained_length: int, reach: int | None, draws: int, path: Path
) -> None:
    """Left: cumulative, with the laws up to the end. Right: by position, with the 95 % interval as a band."""
    figure, panels = pyplot().subplots(1, 2, figsize=(12, 4.4))
    length = results[0].positions[-1]
    for arm, runs in by_arm(results).items():
        colour = COLOURS.get(arm, "tab:green")
        for panel, of in zip(panels, (CUMULATIVE, BY_POSITION), strict=True):
            x, curves = points(runs, of, length)
            panel.plot(x, curves.mean(0), ".", color=colour, ms=4, label=arm)
            means = curves[resampled(len(curves), draws)].mean(1)
            panel.fill_between(x, *np.quantile(means, (0.025, 0.975), axis=0), color=colour, alpha=0.15, lw=0)
            for fit in found:
                if (fit.arm, fit.of, fit.up_to) == (arm, of, length):
                    label = f"{fit.law.a:.2f} x^{fit.law.b:.2f} + {fit.law.c:.2f}, R2 {fit.law.r2:.3f}"
                    panel.plot(x, fit.law(x), color=colour, lw=1, label=label)
    for panel, title in zip(panels, ("mean of the first x tokens", "mean of the tokens around x"), strict=True):
        panel.set_xscale("log", base=2)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel(f"x, tokens from the beginning ({FIRST_FITTED} to {length:,})")
        panel.set_ylabel("nats per token")
        if trained_length < length:
            panel.axvline(trained_length, color="black", lw=0.8, ls=":", label="longest row in training")
        if reach is not None:
            panel.axvline(reach, color="tab:gray", lw=0.8, ls="--", label="reach of the control")
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot().close(figure)
