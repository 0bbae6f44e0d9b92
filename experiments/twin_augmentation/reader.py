"""Chest X-rays: the collections of the optional folder `shared`, folders of image files, and a split by patient."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from zoo.data.images import FORMATS, read_image
from zoo.data.images import square as middle_square
from zoo.data.media_config import MediaConfig
from zoo.errors import UserError

NIH_HANNOVER = "data/cxr_nih_hannover_64/images_64.npz"
"""1,243 X-rays of two sources, 64 x 64."""
HANNOVER = "data/hannover_covid_128_ccby3/images_128.npz"
"""243 X-rays of one of them, 128 x 128."""
PNEUMONIA = "data/pneumoniamnist/pneumoniamnist.npz"
"""PneumoniaMNIST, with as many of both classes, 28 x 28; in three parts, no patients known."""
MOST_ELONGATED = 2.0
"""A longer side of more times the shorter one is no frontal chest X-ray: the square in the middle would miss a lung."""
FEWEST_LEVELS = 32
"""Grey values between the darkest and the brightest pixel, at least. 12-bit values in a 16-bit file have fewer."""


@dataclass(frozen=True)
class Rays:
    """Grey images and what is known of each."""

    images: UInt8[np.ndarray, "n side side"]
    labels: np.ndarray
    """Names, such as COVID-19."""
    sources: np.ndarray
    """Names of the hospitals or collections."""
    patients: np.ndarray
    """Names; images of one patient may be several."""
    files: np.ndarray
    """Names of the image files."""

    def __len__(self) -> int:
        return len(self.images)

    def where(self, chosen: np.ndarray) -> "Rays":
        """Those at the positions, or where the mask is true."""
        return Rays(*(getattr(self, field.name)[chosen] for field in fields(self)))


def read_nih_hannover(shared: Path) -> Rays:
    """No finding and Pneumonia of NIH ChestX-ray8, COVID-19 of Hannover: class and source coincide for the last."""
    return _read_collection(shared / NIH_HANNOVER)


def read_hannover(shared: Path) -> Rays:
    """COVID-19 of Hannover at 128 x 128."""
    return _read_collection(shared / HANNOVER)


def read_pneumonia(shared: Path) -> dict[str, Rays]:
    """The parts train, val and test of PneumoniaMNIST, as they were published: it does not say which images are of one
    patient, so that each counts as a patient of its own and no other split should be made."""
    path = shared / PNEUMONIA
    arrays = _load(path, [f"{part}_{what}" for part in ("train", "val", "test") for what in ("images", "labels")])
    parts = {}
    for part in ("train", "val", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"].ravel()
        names = np.array([f"{part}-{i}" for i in range(len(images))])
        named = np.where(labels == 1, "Pneumonia", "No finding")
        parts[part] = Rays(images, named, np.full(len(images), "Kermany"), names, names)
        _check(path, parts[part])
    return parts


def read_folder(folder: Path, side: int) -> Rays:
    """The image files that `folder`/metadata.csv lists, each as `read_ray` gives it.

    The table has the columns file, label, source and patient. Raises UserError that names the file: for a table that is
    missing or lacks a column, a file outside of the folder, and whatever `read_ray` refuses.
    """
    table = folder / "metadata.csv"
    try:
        with open(table, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{table}: no such file; it lists the images: file,label,source,patient") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: not a table in UTF-8: {error}") from None
    columns = ("label", "source", "patient", "file")
    if not rows:
        raise UserError(f"{table}: lists no image")
    for number, row in enumerate(rows, start=2):
        lacking = [name for name in columns if not row.get(name)]
        if lacking:
            raise UserError(f"{table}, line {number}: no {', '.join(lacking)}; columns are file,label,source,patient")
        if not (folder / row["file"]).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{table}, line {number}: {row['file']} lies outside of {folder}")
    images = np.stack([read_ray(folder / row["file"], side) for row in rows])
    return Rays(images, *(np.array([row[name] for row in rows]) for name in columns))


def read_ray(path: Path, side: int) -> UInt8[np.ndarray, "side side"]:
    """An image file as grey: the square in the middle, resized to `side` by antialiased bicubic interpolation.

    Colour becomes luma (Rec. 601), transparency white, 16 bits 8 (values / 257). Raises UserError that names the file
    if it is missing, of an unknown extension, damaged or truncated, smaller than `side`, too elongated, or has so few
    grey levels that it is blank or its values do not use their 16 bits.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: {', '.join(sorted(FORMATS))} files are read")
    pixels = read_image(path, MediaConfig(min_image_side=side))
    height, width, _ = pixels.shape
    if max(height, width) > MOST_ELONGATED * min(height, width):
        limit = f"a chest X-ray's longer side is at most {MOST_ELONGATED:g} times the other"
        raise UserError(f"{path}: {width} x {height} pixels; {limit}")
    grey = np.rint(pixels @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    levels = int(grey.max()) - int(grey.min()) + 1
    if levels < FEWEST_LEVELS:
        raise UserError(
            f"{path}: {levels} grey levels of 256, at least {FEWEST_LEVELS} are needed; 12-bit values in a 16-bit file "
            "must be scaled to 0..65535"
        )
    return middle_square(np.repeat(grey[..., None], 3, axis=-1), side)[..., 0]


def split_by_patient(
    patients: np.ndarray, labels: np.ndarray, shares: Sequence[float], seed: int
) -> list[Int[np.ndarray, " part"]]:
    """Positions of the images of each part, in rising order; all images of a patient are in one part.

    Patients who have the same set of labels are shuffled and dealt to the parts by `shares` (which sum to 1), so that
    every part has its share of the patients of each class, rounded, and about that share of the images.
    """
    if any(share <= 0 for share in shares) or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"shares {list(shares)}: above 0, with the sum 1")
    labels_of: dict[str, set[str]] = {}
    for patient, label in zip(patients.tolist(), labels.tolist()):
        labels_of.setdefault(patient, set()).add(label)
    alike: dict[tuple[str, ...], list[str]] = {}
    for patient in sorted(labels_of):
        alike.setdefault(tuple(sorted(labels_of[patient])), []).append(patient)
    rng, part_of = np.random.default_rng(seed), {}
    for group in sorted(alike):
        order = rng.permutation(np.array(alike[group]))
        ends = np.rint(np.cumsum(shares) * len(order)).astype(int)
        for place, patient in enumerate(order.tolist()):
            part_of[patient] = int(np.searchsorted(ends, place, side="right"))
    parts = np.array([part_of[patient] for patient in patients.tolist()])
    return [np.flatnonzero(parts == part) for part in range(len(shares))]


def _read_collection(path: Path) -> Rays:
    arrays = _load(path, ["x", "y", "source", "patient", "fname"])
    rays = Rays(*arrays.values())
    _check(path, rays)
    return rays


def _load(path: Path, names: list[str]) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; set ZOO_SHARED to the folder of optional data") from None
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]}; arrays {', '.join(names)} are needed") from None
    except Exception as error:  # what is raised for damaged archives is of many types
        raise UserError(f"{path}: a damaged .npz file: {error}") from None


def _check(path: Path, rays: Rays) -> None:
    shape = rays.images.shape
    if rays.images.dtype != np.uint8 or len(shape) != 3 or shape[1] != shape[2]:
        raise UserError(f"{path}: images {rays.images.dtype} {list(shape)}; uint8 [n, side, side] are needed")
    for field in fields(rays)[1:]:
        if getattr(rays, field.name).shape != shape[:1]:
            raise UserError(f"{path}: {len(rays)} images, {field.name} {list(getattr(rays, field.name).shape)}")
