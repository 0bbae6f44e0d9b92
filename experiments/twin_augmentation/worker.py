"""python -m experiments.twin_augmentation.worker: the runs of one arm and seed, one ratio after another.

A run trains the backbone (by cross-entropy, class-weighted and focal), computes its features once, and fits and tests
every head on them.
"""

import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from experiments.kept import read_fields, write_signed
from experiments.runs import say
from experiments.twin_augmentation.arms import MADE_UP, SIZES, Arm, Run, Size, arm_named
from experiments.twin_augmentation.backbones import PIXELS_SIDE, features_of, saliency, trained
from experiments.twin_augmentation.controls import class_weights
from experiments.twin_augmentation.heads import FOCAL, WEIGHTED, Judge, Judged, feature_heads, softmax_heads
from experiments.twin_augmentation.logistic import fit_logistic
from experiments.twin_augmentation.metrics import (
    balanced_accuracy,
    expected_calibration_error,
    pr_auc,
    roc_auc,
    sensitivity_at_specificity,
)
from experiments.twin_augmentation.tasks import Part, Task, read_collections, resized, task_of
from zoo.errors import run_command

RATES = tuple(i / 20 for i in range(21))
"""False-positive rates at which ROC curves are kept."""
SALIENCY_SIDE = 16
"""Of the map that is kept."""
FIGURES = ("balanced accuracy", "sensitivity at 95 %", "ROC-AUC", "PR-AUC", "ECE")


@dataclass(frozen=True)
class Result:
    """What one run found."""

    run: Run
    """Which one."""
    counts: dict[str, list[int]]
    """Negatives and positives of train, held out, test and foreign."""
    figures: dict[str, dict[str, float]]
    """By head: `FIGURES` on the test, and sensitivity and specificity."""
    foreign: dict[str, dict[str, float]]
    """The same of images of the other source; of one class alone: the part that is called positive."""
    confusion: dict[str, list[int]]
    """By head, of the test: true negatives, false positives, false negatives, true positives."""
    curves: dict[str, list[float]]
    """By head: sensitivity at the false-positive rates `RATES`."""
    chosen: dict[str, str]
    """What held-out patients chose."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Processor time of training and of the heads."""
    saliency: list[list[float]] = field(default_factory=list)
    """Mean |d logit / d pixel| of the test images, by 16 x 16 parts, with the sum 1; none without a network."""


def carry_out(run: Run, size: Size, task: Task) -> Result:
    """One run on its images."""
    arm = arm_named(run.arm)
    began = time.process_time()
    judged: dict[str, Judge] = {}
    inputs: dict[str, dict[str, np.ndarray]] = {}
    parts = {"train": task.train, "held out": task.held_out, "test": task.test, "foreign": task.foreign}
    network = None
    if arm.backbone == "pixels":
        rows = {name: _pixels(part) for name, part in parts.items()}
        classifier = fit_logistic(rows["train"], task.train.labels, penalty=1e-2, max_steps=200)
        logits = {name: classifier.logits(found) for name, found in rows.items()}
    else:
        network = _trained(arm, run, size, task.train)
        rows = {name: features_of(network, part.images) for name, part in parts.items()}
        logits = {name: _logits(network, found) for name, found in rows.items()}
        for name, focal in ((WEIGHTED, False), (FOCAL, True)):
            other = _trained(arm, run, size, task.train, focal=focal, weighted=not focal)
            found = {part: _logits(other, features_of(other, parts[part].images)) for part in parts if part != "train"}
            judges = softmax_heads(found["held out"], task.held_out.labels, _shares(task.train))
            judged[name], inputs[name] = judges["softmax"], found
    trained_at = time.process_time()
    for name, judge in softmax_heads(logits["held out"], task.held_out.labels, _shares(task.train)).items():
        judged[name], inputs[name] = judge, logits
    fitted, chosen = feature_heads(
        rows["train"], task.train.labels, rows["held out"], task.held_out.labels, size, run.seed
    )
    for name, judge in fitted.items():
        judged[name], inputs[name] = judge, rows
    tested = {name: judge(inputs[name]["test"]) for name, judge in judged.items()}
    elsewhere = {name: judge(inputs[name]["foreign"]) for name, judge in judged.items()}
    seconds = {"training": trained_at - began, "heads": time.process_time() - trained_at}
    return Result(
        run=run,
        counts={name: np.bincount(part.labels, minlength=2).tolist() for name, part in parts.items()},
        figures={name: measured(task.test, said) for name, said in tested.items()},
        foreign={name: measured(task.foreign, said) for name, said in elsewhere.items()},
        confusion={name: confusion(task.test.labels, said.decisions) for name, said in tested.items()},
        curves={name: curve(task.test.labels == 1, said.scores) for name, said in tested.items()},
        chosen=chosen,
        seconds={name: round(value, 1) for name, value in seconds.items()},
        saliency=[] if network is None else coarse(saliency(network, task.test.images)).round(5).tolist(),
    )


def measured(part: Part, said: Judged) -> dict[str, float]:
    """Of images with both classes the `FIGURES`; of one class alone the part that is called positive."""
    positive = part.labels == 1
    called = float(np.mean(said.decisions == 1))
    if positive.all() or not positive.any():
        return {"called positive": called}
    return {
        "balanced accuracy": balanced_accuracy(part.labels, said.decisions),
        "sensitivity at 95 %": sensitivity_at_specificity(positive, said.scores),
        "ROC-AUC": roc_auc(positive, said.scores),
        "PR-AUC": pr_auc(positive, said.scores),
        "ECE": expected_calibration_error(part.labels, said.probabilities),
        "sensitivity": float(np.mean(said.decisions[positive] == 1)),
        "specificity": float(np.mean(said.decisions[~positive] == 0)),
    }


def confusion(labels: np.ndarray, decisions: np.ndarray) -> list[int]:
    """True negatives, false positives, false negatives, true positives."""
    return np.bincount(2 * labels + decisions, minlength=4).tolist()


def curve(positive: np.ndarray, scores: np.ndarray) -> list[float]:
    """The largest sensitivity with at most each of `RATES` false positives."""
    return [round(sensitivity_at_specificity(positive, scores, 1 - rate), 4) for rate in RATES]


def part_edges(side: int) -> np.ndarray:
    """Where the `SALIENCY_SIDE` parts of so many pixels begin, and the last one ends: rounded to whole pixels."""
    return np.linspace(0, side, SALIENCY_SIDE + 1).round().astype(int)


def coarse(shown: np.ndarray) -> np.ndarray:
    """Sums over parts of a map, `SALIENCY_SIDE` x `SALIENCY_SIDE` of them."""
    edges = part_edges(len(shown))[:-1]
    return np.add.reduceat(np.add.reduceat(shown, edges, axis=0), edges, axis=1)


def _trained(arm: Arm, run: Run, size: Size, train: Part, *, focal: bool = False, weighted: bool = False):
    weights = class_weights(train.labels) if weighted else None
    return trained(arm.backbone, train, size, size.steps_of(arm), run.seed, focal=focal, weights=weights)


def _logits(network, rows: np.ndarray) -> np.ndarray:
    return np.asarray(network.classify(rows))


def _pixels(part: Part) -> np.ndarray:
    return resized(part.images, PIXELS_SIDE).reshape(len(part), -1)


def _shares(train: Part) -> np.ndarray:
    return np.bincount(train.labels, minlength=2) / len(train)


def read_result(path: Path) -> Result:
    """The inverse of `write_json(asdict(result), path)`."""
    fields = read_fields(path)
    return Result(**fields | {"run": Run(**fields["run"])})


def main() -> None:
    """Arguments: the size, the arm, the seed, the digest, the folder of results, and the ratios."""
    name, arm_name, seed, made_with, results, *ratios = sys.argv[1:]
    arm = arm_named(arm_name)
    collections = {} if arm.collection == MADE_UP else read_collections()
    for ratio in map(int, ratios):
        fill(Run(arm_name, ratio, int(seed)), SIZES[name], collections, made_with, Path(results))


def fill(run: Run, size: Size, collections: dict, made_with: str, results: Path) -> None:
    """Carries a run out and writes its file."""
    began = time.time()
    result = carry_out(run, size, task_of(run, arm_named(run.arm), collections))
    write_signed(_rounded(asdict(result)), made_with, results / f"{run.name}.json")
    say(f"{run.name}: {time.time() - began:.0f} s")


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    run_command(main)
