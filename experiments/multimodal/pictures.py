"""Learning curves, accuracies against baselines, test documents with answers, and what was drawn, as PNG."""

import json
import textwrap
import wave
from pathlib import Path
from typing import Any

import numpy as np

from experiments.multimodal.arms import JOINT, TEXT_ONLY
from experiments.multimodal.documents import WORDS
from experiments.multimodal.findings import METRICS, by_arm, value
from experiments.multimodal.report import Results
from experiments.plotting import pyplot

COLOURS = {JOINT: "tab:blue", "single": "tab:orange", TEXT_ONLY: "tab:gray"}
MOST_DRAWN = 10
"""Images of each digit that are shown."""


def draw_curves(results: Results, out: Path, path: Path) -> None:
    """What is measured on the way (the last point on all test documents), joint against one modality, every seed."""
    names = [m for m in METRICS if any(m.name in numbers for r in results.runs for _, numbers in r.on_the_way[:-1])]
    figure, panels = pyplot().subplots(2, -(-(len(names) + 1) // 2), figsize=(16, 6.4), squeeze=False)
    found = by_arm(results.runs)
    for panel, metric in zip(panels.flat, names, strict=False):
        for arm, colour in ((JOINT, COLOURS[JOINT]), (metric.single, COLOURS["single"])):
            for result in found.get(arm, []):
                points = [(step, numbers[metric.name]) for step, numbers in result.on_the_way if metric.name in numbers]
                panel.plot(*zip(*points, strict=True), color=colour, marker=".", lw=1)
        usual = results.majority.get(metric.name.rpartition("/")[0])
        if usual is not None and not metric.lower:
            panel.axhline(usual, color="black", lw=0.8, ls=":")
        if not metric.lower:
            panel.set_ylim(0, 1)
        panel.set_title(metric.label, fontsize=8)
        panel.set_xlabel("step", fontsize=7)
    last = panels.flat[len(names)]
    for arm, runs in found.items():
        for number, result in enumerate(runs):
            last.plot(*zip(*result.training, strict=True), lw=0.8, label=arm if number == 0 else None)
    last.set_title("training loss, nats per token that counts", fontsize=8)
    last.legend(fontsize=6)
    for panel in panels.flat[len(names) + 1 :]:
        panel.set_axis_off()
    handles = [pyplot().Line2D([], [], color=COLOURS[key]) for key in (JOINT, "single")]
    panels.flat[0].legend(handles, ["joint", "one modality"], fontsize=7)
    _save(figure, path)


def draw_bars(results: Results, out: Path, path: Path) -> None:
    """Accuracies with their intervals: joint, one modality, text only; a line at the most frequent answer or chance."""
    metrics = [m for m in METRICS if not m.lower and value(results.runs, JOINT, m.name)]
    figure, panel = pyplot().subplots(figsize=(12, 4.2))
    for place, metric in enumerate(metrics):
        for number, (arm, label) in enumerate(((JOINT, JOINT), (metric.single, "single"), (TEXT_ONLY, TEXT_ONLY))):
            found = value(results.runs, arm, metric.name)
            if found is not None:
                x = place + 0.26 * (number - 1)
                half = found.half if np.isfinite(found.half) else 0.0
                panel.bar(x, 100 * found.mean, 0.24, yerr=100 * half, capsize=2, color=COLOURS[label])
        usual = results.majority.get(metric.name.rpartition("/")[0], metric.chance)
        if usual is not None:
            panel.plot([place - 0.4, place + 0.4], [100 * usual] * 2, color="black", lw=1, ls=":")
    panel.set_xticks(range(len(metrics)), [textwrap.fill(m.label, 18) for m in metrics], fontsize=7)
    panel.set_ylabel("right, %")
    panel.set_ylim(0, 105)
    handles = [pyplot().Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    handles.append(pyplot().Line2D([], [], color="black", ls=":"))
    names = ["joint", "one modality", "text only", "most frequent answer or chance"]
    panel.legend(handles, names, fontsize=7, ncol=4, loc="upper center", bbox_to_anchor=(0.5, 1.12))
    _save(figure, path)


def draw_examples(results: Results, out: Path, path: Path) -> None:
    """Test documents and what the joint model of the first seed answers, by greedy generation."""
    examples = next((r.examples for r in results.runs if r.examples), ())
    columns = 6
    lines = -(-len(examples) // columns)
    figure, panels = pyplot().subplots(lines, columns, figsize=(16, 2.7 * lines + 1), squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, example in zip(panels.flat, examples, strict=False):
        _show(panel, json.loads(example["media"]), out / "data" / example["folder"].split("/")[0])
        right = example["given"] == example["wanted"]
        question = textwrap.shorten(example["question"].replace("\n", " "), 60)
        lines = [textwrap.fill(question, 30), textwrap.fill(f"> {example['given']}", 30)]
        lines += [] if right else [textwrap.fill(f"({example['wanted']})", 30)]
        panel.set_title("\n".join(lines), fontsize=7, color="tab:green" if right else "tab:red")
    _save(figure, path)


def _show(panel: Any, media: list[dict[str, str]], folder: Path) -> None:
    """A waveform, or images side by side."""
    images = []
    for part in media:
        if "audio" in part:
            with wave.open(str(folder / part["audio"])) as file:
                panel.plot(np.frombuffer(file.readframes(file.getnframes()), "<i2"), lw=0.4)
        elif "image" in part:
            images.append(_pixels(folder / part["image"]))
        else:
            images += [_pixels(file) for file in sorted((folder / part["video"]).iterdir())]
    if images:
        gap = np.full((images[0].shape[0], 2, 3), 255, np.uint8)
        panel.imshow(np.concatenate([each for image in images for each in (image, gap)][:-1], axis=1))


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))


def draw_drawings(results: Results, out: Path, path: Path) -> None:
    """A column for each digit: what the joint model of the first seed drew; framed in red where the classifier sees
    another digit."""
    result = next((r for r in results.runs if r.run.arm == JOINT and r.drawn), None)
    copies = 1 if result is None else min(len(result.drawn) // 10, MOST_DRAWN)
    figure, panel = pyplot().subplots(figsize=(10, copies + 0.8))
    if result is not None:
        with np.load(out / "runs" / f"{result.run.name}.npz") as found:
            images = found["images"]
        side, each = images.shape[1], len(images) // 10
        grid = np.zeros((copies * (side + 4), 10 * (side + 4), 3), np.uint8)
        for number, image in enumerate(images):
            digit, copy = divmod(number, each)
            if copy < copies:
                colour = (40, 40, 40) if result.drawn[number] == digit else (220, 40, 40)
                framed = np.full((side + 4, side + 4, 3), colour, np.uint8)
                framed[2:-2, 2:-2] = image
                grid[copy * (side + 4) : (copy + 1) * (side + 4), digit * (side + 4) : (digit + 1) * (side + 4)] = (
                    framed
                )
        panel.imshow(grid)
        panel.set_xticks([(digit + 0.5) * (side + 4) for digit in range(10)], WORDS)
        panel.set_yticks([])
        panel.set_title('"Draw a ..." at temperature 1; red: the classifier sees another digit', fontsize=9)
    _save(figure, path)


NAMES = {"curves": draw_curves, "bars": draw_bars, "examples": draw_examples, "drawings": draw_drawings}
"""The pictures, by the end of their file names."""


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot().close(figure)
