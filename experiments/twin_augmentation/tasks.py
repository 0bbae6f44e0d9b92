"""The images of a run: which are trained on, which choose, which test, and those of another source."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int

from experiments.shared_folder import default_shared
from experiments.twin_augmentation.arms import CHILDREN, MADE_UP, NIH, Arm, Run
from experiments.twin_augmentation.imbalance import imbalanced
from experiments.twin_augmentation.reader import (
    NIH_HANNOVER,
    PNEUMONIA,
    Rays,
    read_nih_hannover,
    read_pneumonia,
    split_by_patient,
)
from experiments.twin_augmentation.source_leak import SHARES
from zoo.errors import UserError

BORDER = 1 / 8
"""Part of a side that the view "border" shows on each side: 8 of 64 pixels."""


@dataclass(frozen=True)
class Part:
    """Images with their labels."""

    images: Float32[np.ndarray, "n side side"]
    """Grey values in -1..1."""
    labels: Int[np.ndarray, " n"]
    """1: the class that is rare in training."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """What one run is given."""

    train: Part
    """Imbalanced, by patient."""
    held_out: Part
    """Other patients, all that there are of both classes: they choose thresholds, C and penalties, and calibrate."""
    test: Part
    """Other patients again, all of them; they choose nothing."""
    foreign: Part
    """Images of another source, resized to the same side: tested on as well."""


def read_collections() -> dict[str, dict[str, Rays]]:
    """What arms are made of, by name. Raises `UserError` where there is no folder `shared`, or a file is wrong."""
    shared = default_shared()
    if shared is None:
        raise UserError("there is no folder `shared` beside the repository: set ZOO_SHARED, or use --quick")
    return {NIH: {"all": read_nih_hannover(shared)}, CHILDREN: read_pneumonia(shared)}


def fingerprint(arm: Arm) -> str:
    """Of the files that an arm reads."""
    shared = default_shared()
    if arm.collection == MADE_UP:
        return MADE_UP
    if shared is None:
        raise UserError("there is no folder `shared` beside the repository: set ZOO_SHARED, or use --quick")
    hashed = hashlib.blake2b(digest_size=8)
    for name in (NIH_HANNOVER, PNEUMONIA):
        path = shared / Path(name)
        if not path.is_file():
            raise UserError(f"{path}: no such file; set ZOO_SHARED to the folder of optional data")
        hashed.update(path.read_bytes())
    return hashed.hexdigest()


def task_of(run: Run, arm: Arm, collections: dict[str, dict[str, Rays]]) -> Task:
    """The images of a run; `collections` is not looked at for made-up ones."""
    if arm.collection == MADE_UP:
        train, held_out, test, foreign = (
            _made_up(count, run.seed * 10 + i) for i, count in enumerate((90, 40, 40, 40))
        )
        chosen = imbalanced(train[1], np.arange(90).astype(str), run.ratio, run.seed)
        train = (train[0][chosen], train[1][chosen])
        return Task(*(_part(images, positive, images.shape[1], arm) for images, positive in (
            train, held_out, test, foreign)))  # fmt: skip
    whole, children = collections[NIH]["all"], collections[CHILDREN]
    if arm.collection == CHILDREN:
        parts = [children[name] for name in ("train", "val", "test")]
        nih = whole.where(whole.labels != "COVID-19")
        other = nih.where(split_by_patient(nih.patients, nih.labels, SHARES, run.seed)[2])
        is_rare = _is_pneumonia
    else:
        rays = whole.where(whole.labels != "COVID-19") if arm.collection == NIH else whole
        parts = [rays.where(places) for places in split_by_patient(rays.patients, rays.labels, SHARES, run.seed)]
        other = children["test"]
        is_rare = _is_pneumonia if arm.collection == NIH else _is_covid
    chosen = imbalanced(is_rare(parts[0]), parts[0].patients, run.ratio, run.seed)
    parts[0] = parts[0].where(chosen)
    side = parts[0].images.shape[1]
    return Task(*(_part(part.images, is_rare(part), side, arm) for part in (*parts, other)))


def _is_pneumonia(rays: Rays) -> Bool[np.ndarray, " n"]:
    return rays.labels == "Pneumonia"


def _is_covid(rays: Rays) -> Bool[np.ndarray, " n"]:
    return rays.labels == "COVID-19"


def _part(images: np.ndarray, positive: np.ndarray, side: int, arm: Arm) -> Part:
    values = resized(images.astype(np.float32) / 127.5 - 1, side)
    return Part(border_only(values) if arm.view == "border" else values, positive.astype(int))


def border_only(images: Float32[np.ndarray, "n side side"]) -> Float32[np.ndarray, "n side side"]:
    """Grey (0) inside of the border."""
    side = images.shape[1]
    width = round(side * BORDER)
    blank = images.copy()
    blank[:, width : side - width, width : side - width] = 0
    return blank


def resized(images: Float32[np.ndarray, "n s s"], side: int) -> Float32[np.ndarray, "n side side"]:
    """Bilinear, antialiased where it makes them smaller."""
    if images.shape[1] == side:
        return images
    import jax

    return np.asarray(jax.image.resize(images, (len(images), side, side), "linear", antialias=True))


def made_up_rays(count: int = 600) -> Rays:
    """Noise, of which half have a bright spot in the middle and are called pneumonia."""
    images, positive = _made_up(count, 0)
    names = np.arange(count).astype(str)
    labels = np.where(positive, "Pneumonia", "No finding")
    return Rays(images, labels, np.full(count, MADE_UP), names, names)


def _made_up(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise; half of the images have a bright spot in the middle."""
    rng = np.random.default_rng(seed)
    positive = np.arange(count) % 2 == 0
    images = rng.integers(0, 120, (count, 32, 32))
    images[positive, 12:20, 12:20] += 100
    return images.astype(np.uint8), positive
