"""Learning curves, the load of every expert as a heat map, and histograms of it, as PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.interval import interval
from experiments.plotting import pyplot
from experiments.sparse_vs_dense.arms import CAPACITY, DENSE, NO_BALANCING, NO_Z_LOSS, SPARSE
from experiments.sparse_vs_dense.findings import by_arm
from experiments.sparse_vs_dense.worker import Result

COLOURS = {
    DENSE: "tab:gray",
    SPARSE: "tab:blue",
    NO_BALANCING: "tab:red",
    NO_Z_LOSS: "tab:purple",
    CAPACITY: "tab:orange",
}


def draw_curves(runs: Sequence[Result], path: Path) -> None:
    """Held-out loss against steps and against training FLOPs: means over seeds, the 95 % interval as a band."""
    figure, panels = pyplot().subplots(1, 3, figsize=(13, 3.8))
    for arm, results in by_arm(runs).items():
        steps = np.array([step for step, _ in results[0].validation])
        points = [interval([result.validation[i][1] for result in results]) for i in range(len(steps))]
        means, bands = (np.array([getattr(point, name) for point in points]) for name in ("mean", "half"))
        flops = steps * results[0].tokens_per_step * results[0].training_flops_per_token
        style = {"color": COLOURS[arm], "label": f"{arm} ({len(results)})", "marker": ".", "lw": 1.2}
        for panel, x in zip(panels[:2], (steps, flops), strict=True):
            panel.plot(x, means, **style)
            if len(results) > 2:  # the interval of two seeds is wider than the picture
                panel.fill_between(x, means - bands, means + bands, color=COLOURS[arm], alpha=0.2, lw=0)
        for result in results:
            x, y = zip(*result.training, strict=True)
            panels[2].plot(x, y, color=COLOURS[arm], lw=0.7, alpha=0.8)
    panels[0].set_xlabel("step")
    panels[1].set_xlabel("training FLOPs, router included")
    panels[2].set_xlabel("step")
    for panel, title in zip(panels, ("held-out text", "held-out text", "training, every run"), strict=True):
        panel.set_title(title, fontsize=9)
        panel.set_ylabel("nats per token")
    panels[0].legend(fontsize=7, title="arm (seeds)", title_fontsize=7)
    _save(figure, path)


def draw_load(runs: Sequence[Result], path: Path) -> None:
    """Layer x expert: the part of the choices times the number of experts, seed 0 of every sparse arm."""
    sparse = {arm: results[0] for arm, results in by_arm(runs).items() if results[0].load}
    figure, panels = pyplot().subplots(1, len(sparse), figsize=(3 * len(sparse) + 0.8, 3), squeeze=False)
    for panel, (arm, result) in zip(panels[0], sparse.items(), strict=True):
        load = np.array(result.load)
        # Experts have no order: sorted by load, the evenness of a layer can be seen.
        load = -np.sort(-load * load.shape[1], axis=1)
        image = panel.imshow(load, vmin=0, vmax=3, cmap="RdYlBu_r", aspect="auto")
        for (layer, expert), value in np.ndenumerate(load):
            panel.text(expert, layer, f"{value:.1f}", ha="center", va="center", fontsize=6)
        panel.set_title(arm, fontsize=9)
        panel.set_xlabel("expert, by load")
        panel.set_yticks(range(len(load)))
    panels[0, 0].set_ylabel("layer")
    figure.colorbar(image, ax=list(panels[0]), label="load, 1 = balanced", shrink=0.9)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot().close(figure)


def draw_histogram(runs: Sequence[Result], path: Path) -> None:
    """How often an expert (of any layer and seed) has which load; and how load and entropy change during training."""
    sparse = {arm: results for arm, results in by_arm(runs).items() if results[0].load}
    figure, panels = pyplot().subplots(1, 3, figsize=(13, 3.6))
    edges = np.linspace(0, 4, 33)
    for arm, results in sparse.items():
        loads = np.concatenate([np.ravel(np.array(r.load) * len(r.load[0])) for r in results])
        weights = np.full(len(loads), 1 / len(loads))
        style = {"color": COLOURS[arm], "label": arm, "histtype": "step", "lw": 1.5}
        panels[0].hist(np.minimum(loads, edges[-1]), edges, weights=weights, **style)
        for result in results:
            for panel, curve in zip(panels[1:], (result.largest_load, result.entropy), strict=True):
                panel.plot(*zip(*curve, strict=True), color=COLOURS[arm], lw=0.9)
    panels[0].axvline(1, color="black", lw=0.7, ls=":")
    panels[0].set_xlabel("load of an expert, 1 = balanced")
    panels[0].set_ylabel("part of the experts")
    panels[0].legend(fontsize=7)
    panels[1].set_ylabel("largest load in any layer")
    panels[2].set_ylabel("entropy of the routers, nats")
    for panel in panels[1:]:
        panel.set_xlabel("step")
    _save(figure, path)


NAMES = {"curves": draw_curves, "load": draw_load, "histogram": draw_histogram}
"""The pictures, by the end of their file names."""


def _save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot().close(figure)
