"""The ablation as bars, the many-shot curve, and the losses of all stages, as PNG."""

from pathlib import Path

import numpy as np

from experiments.in_context_language.evaluation import FACTS, RULES
from experiments.in_context_language.findings import curve, find, settings, value
from experiments.in_context_language.prompts import DIRECTIONS
from experiments.in_context_language.report import Results
from experiments.plotting import pyplot

COLOURS = {"copy the source": "tab:gray", "word by word": "tab:orange", "nearest example, n-grams": "tab:green"}
"""Of the baselines that are drawn."""


def draw_ablation(results: Results, path: Path) -> None:
    """chrF and exact matches of every context, the books of other languages hatched, baselines as lines."""
    runs = results.runs
    figure, panels = pyplot().subplots(1, 2, figsize=(12, 4.2), sharey=True)
    for panel, direction in zip(panels, DIRECTIONS, strict=True):
        shown = [s for s in settings(runs) if s.direction == direction]
        shown = [s for s in shown if s.book != "right" or s == find(runs, s.context, direction)]
        for place, setting in enumerate(shown):
            chrf, exact = value(runs, setting), value(runs, setting, "exact")
            assert chrf is not None and exact is not None
            hatch = None if setting.book == "right" else "//"
            half = chrf.half if np.isfinite(chrf.half) else 0
            panel.bar(place, chrf.mean, yerr=half, color="tab:blue", alpha=0.8, hatch=hatch, capsize=2)
            panel.plot(place, exact.mean, "k_", ms=14, mew=2, label="exact, %" if place == 0 else None)
        for each in results.baselines:
            if (each.direction, each.shots) == (direction, results.workload.test_shots) and each.name in COLOURS:
                panel.axhline(each.score.chrf, color=COLOURS[each.name], ls="--", lw=1, label=f"no model: {each.name}")
        names = [s.context if s.book == "right" else f"{s.context},\nanother language's" for s in shown]
        panel.set_xticks(range(len(shown)), names, rotation=40, ha="right", fontsize=7)
        panel.set_title(direction, fontsize=9)
        panel.set_ylim(0, 100)
    panels[0].set_ylabel("chrF")
    panels[0].legend(fontsize=7)
    _save(figure, path)


def draw_shots(results: Results, path: Path) -> None:
    """chrF against the number of sentences that are told, beside the most similar of them."""
    figure, panels = pyplot().subplots(1, 2, figsize=(10, 3.8), sharey=True)
    for panel, direction in zip(panels, DIRECTIONS, strict=True):
        points = curve(results.runs, direction)
        x, means = [shots for shots, _ in points], np.array([each.mean for _, each in points])
        bands = np.array([each.half if np.isfinite(each.half) else 0 for _, each in points])
        panel.plot(x, means, color="tab:blue", marker=".", label="model")
        panel.fill_between(x, means - bands, means + bands, color="tab:blue", alpha=0.2, lw=0)
        for name, colour in COLOURS.items():
            found = [b for b in results.baselines if (b.name, b.direction) == (name, direction)]
            panel.plot([b.shots for b in found], [b.score.chrf for b in found], color=colour, ls="--", lw=1, label=name)
        panel.axvline(results.workload.test_shots, color="black", lw=0.6, ls=":")
        panel.set_xscale("log", base=2)
        panel.set_xlabel("sentences (dotted: most in training)")
        panel.set_title(direction, fontsize=9)
    panels[0].set_ylabel("chrF")
    panels[0].legend(fontsize=7)
    _save(figure, path)


def draw_training(results: Results, path: Path) -> None:
    """Loss of what counts, stage after stage, and what of its test is exact at the end of each; a line for each run."""
    figure, panels = pyplot().subplots(1, 2, figsize=(12, 3.8))
    order = [stage.name for stage in results.workload.stages]
    ends = {(stage.stage, stage.attempt) for run in results.runs for stage in run.stages}
    places = {end: place for place, end in enumerate(sorted(ends, key=lambda end: (order.index(end[0]), end[1])))}
    for run in results.runs:
        begin = 0
        for stage in run.stages:
            x, y = zip(*stage.training, strict=True)
            panels[0].plot(np.array(x) + begin, y, color=f"C{run.run.seed}", lw=0.9)
            begin += x[-1]
        for what, style in zip((FACTS, RULES, *DIRECTIONS), (":^", ":v", "-o", "--s"), strict=True):
            stages = [stage for stage in run.stages if what in stage.found]
            x = [places[stage.stage, stage.attempt] for stage in stages]
            found = [100 * stage.found[what] for stage in stages]
            label = what if run is results.runs[0] else None
            panels[1].plot(x, found, style, color=f"C{run.run.seed}", ms=4, lw=0.9, label=label)
    panels[0].set_xlabel("step, all stages")
    panels[0].set_ylabel("nats per token that counts")
    names = [f"{stage}\nattempt {attempt}" for stage, attempt in places]
    panels[1].set_xticks(range(len(names)), names, fontsize=7)
    panels[1].set_ylabel("exact, of unseen facts, words, rules, sentences, %")
    panels[1].set_ylim(0, 100)
    panels[1].legend(fontsize=7)
    _save(figure, path)


NAMES = {"ablation": draw_ablation, "shots": draw_shots, "training": draw_training}
"""The pictures, by the end of their file names."""


def draw_all(results: Results, folder: Path, stem: str) -> list[str]:
    """All pictures; their file names."""
    for name, draw in NAMES.items():
        draw(results, folder / f"{stem}-{name}.png")
    return [f"{stem}-{name}.png" for name in NAMES]


def _save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot().close(figure)
