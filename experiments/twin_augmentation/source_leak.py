"""python -m experiments.twin_augmentation.source_leak [--shared FOLDER]: is the source written on the border?

A logistic regression that sees only the outermost pixels of an X-ray (no lung is there, or little) and is trained on
one set of patients says of other patients from which source the image comes. What it reaches is what a classifier
can reach without looking at the disease where class and source coincide. Beside it: the middle of the image, the mean
and deviation of the grey values alone, labels that were shuffled among patients (which must be at 1/2), and two classes
of one source.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from experiments.interval import Interval, interval
from experiments.shared_folder import default_shared
from experiments.twin_augmentation.logistic import balanced_weights, fit_logistic
from experiments.twin_augmentation.metrics import balanced_accuracy, roc_auc
from experiments.twin_augmentation.reader import Rays, read_nih_hannover, split_by_patient
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command

WIDTHS = (1, 2, 4, 8)
"""Pixels of the border, of 64."""
PENALTIES = (1e-2, 1e-1, 1.0)
"""Those that the held-out patients choose from."""
STEPS = 100
"""Most iterations of a regression: one that is not at its optimum yet shows less of the leak, not more."""
SHARES = (0.6, 0.2, 0.2)
"""Of the patients: to train, to choose the penalty, to test."""

Look = Callable[[np.ndarray], np.ndarray]
"""Images [n, side, side] -> rows [n, d]."""


@dataclass(frozen=True)
class Leak:
    """What one regression reaches on patients it has not seen, over the seeds of the split."""

    question: str
    seen: str
    """What it sees."""
    numbers: int
    """How many numbers that is."""
    accuracy: Interval
    """Balanced accuracy; 1/2 is chance."""
    auc: Interval


def border(images: np.ndarray, width: int) -> Float[np.ndarray, "n d"]:
    """The pixels that are at most `width` from an edge, in 0..1."""
    side = images.shape[1]
    if not 0 < width < side / 2:
        raise ValueError(f"a border of {width} pixels of {side}")
    inside = np.zeros((side, side), bool)
    inside[width:-width, width:-width] = True
    return images[:, ~inside] / 255


def middle(images: np.ndarray, side: int) -> Float[np.ndarray, "n d"]:
    """The square of `side` pixels in the middle, in 0..1."""
    start = (images.shape[1] - side) // 2
    return images[:, start : start + side, start : start + side].reshape(len(images), -1) / 255


def brightness(images: np.ndarray) -> Float[np.ndarray, "n 2"]:
    """Mean and standard deviation of the grey values: no place at all."""
    return np.stack([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1) / 255


def measured(
    question: str,
    seen: str,
    rays: Rays,
    positive: Bool[np.ndarray, " n"],
    look: Look,
    seeds: int,
    shuffled: bool = False,
) -> Leak:
    """The regression's test figures over `seeds` splits by patient; with `shuffled`, on labels dealt to patients at
    random."""
    rows, accuracies, aucs = look(rays.images), [], []
    for seed in range(seeds):
        truth = _dealt(positive, rays.patients, seed) if shuffled else positive
        labels = truth.astype(int)
        train, held_out, test = split_by_patient(rays.patients, labels.astype(str), SHARES, seed)
        weights = balanced_weights(labels[train])
        fits = [
            fit_logistic(rows[train], labels[train], penalty=penalty, weights=weights, max_steps=STEPS)
            for penalty in PENALTIES
        ]
        scores = [_score(fit.logits(rows[held_out])) for fit in fits]
        best = int(np.argmax([roc_auc(truth[held_out], score) for score in scores]))
        score = _score(fits[best].logits(rows[test]))
        accuracies.append(balanced_accuracy(labels[test], (score > 0).astype(int)))
        aucs.append(roc_auc(truth[test], score))
    return Leak(question, seen, rows.shape[1], interval(accuracies), interval(aucs))


def leaks(rays: Rays, seeds: int) -> list[Leak]:
    """The whole table."""
    source = "NIH or Hannover?"
    hannover = rays.sources == "Hannover-MHH"
    found = []
    for width in WIDTHS:
        look = _border_of(width)
        found.append(measured(source, f"border of {width}", rays, hannover, look, seeds))
    found.append(measured(source, "middle 32 x 32", rays, hannover, lambda images: middle(images, 32), seeds))
    found.append(measured(source, "mean and deviation", rays, hannover, brightness, seeds))
    found.append(measured("shuffled", "border of 4", rays, hannover, _border_of(4), seeds, shuffled=True))
    nih = rays.where(~hannover)
    ill = nih.labels == "Pneumonia"
    within = "NIH: pneumonia or not?"
    found.append(measured(within, "border of 4", nih, ill, _border_of(4), seeds))
    found.append(measured(within, "middle 32 x 32", nih, ill, lambda images: middle(images, 32), seeds))
    return found


def table(found: list[Leak]) -> str:
    """As Markdown."""
    lines = ["| question | what is seen | numbers | balanced accuracy | ROC-AUC |", "|---|---|---|---|---|"]
    lines += [f"| {x.question} | {x.seen} | {x.numbers} | {x.accuracy} | {x.auc} |" for x in found]
    return "\n".join(lines)


def _border_of(width: int) -> Look:
    return lambda images: border(images, width)


def _score(logits: np.ndarray) -> np.ndarray:
    return logits[:, 1] - logits[:, 0]


def _dealt(positive: np.ndarray, patients: np.ndarray, seed: int) -> np.ndarray:
    """Each patient's images get one label; so many patients are positive as had a positive image."""
    names, patient = np.unique(patients, return_inverse=True)
    flags = np.bincount(patient, weights=positive) > 0
    return np.random.default_rng([seed, 1]).permutation(flags)[patient]


@dataclass(frozen=True)
class SourceLeak:
    """Is the source of an X-ray written on its border?"""

    shared: Path | None = None
    """The folder of optional data; default: $ZOO_SHARED, or `shared` beside the repository."""
    seeds: int = 5
    """Splits by patient, 2 or more."""


def main() -> None:
    """Prints the table."""
    settings = parse_command(SourceLeak, "experiments.twin_augmentation.source_leak")
    folder = settings.shared or default_shared()
    if folder is None:
        raise UserError("there is no folder `shared`: set ZOO_SHARED, or give --shared")
    if settings.seeds < 2:
        raise UserError(f"--seeds {settings.seeds}: an interval needs 2 or more")
    print(table(leaks(read_nih_hannover(folder), settings.seeds)))


if __name__ == "__main__":
    run_command(main)
