"""python -m experiments.twin_augmentation.image_files OUT: a collection as files for `zoo.train image-classes`.

OUT/images/*.png, OUT/train.jsonl and OUT/test.jsonl, lines {"image": ..., "label": ..., "patient": ...}. Patients are
on one side: of PneumoniaMNIST the published parts (train and val together), else four fifths and one fifth.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from experiments.shared_folder import default_shared
from experiments.twin_augmentation.reader import Rays, read_nih_hannover, read_pneumonia, split_by_patient
from experiments.twin_augmentation.tasks import made_up_rays
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command


@dataclass(frozen=True)
class ImageFiles:
    """Writes the images of a collection and two lists of them, with their classes."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder, which must not be there yet."""
    collection: Literal["children", "nih", "made-up"] = "children"
    """children: PneumoniaMNIST. nih: NIH's, pneumonia or no finding. made-up: noise, half of it with a
    spot, for trying things out."""


def main() -> None:
    settings = parse_command(ImageFiles, "experiments.twin_augmentation.image_files")
    write_files(settings.out, settings.collection)


def write_files(out: Path, collection: str) -> None:
    """Raises UserError if the folder exists or the collection is not there."""
    from PIL import Image

    if out.exists():
        raise UserError(f"{out} exists already: name a new folder")
    parts = _parts(collection)
    (out / "images").mkdir(parents=True)
    for name, rays in parts.items():
        lines = []
        for number, image in enumerate(rays.images):
            file = f"images/{name}-{number}.png"
            Image.fromarray(image).save(out / file)
            lines.append(
                json.dumps({"image": file, "label": str(rays.labels[number]), "patient": str(rays.patients[number])})
            )
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{out}: " + ", ".join(f"{name}.jsonl {len(rays):,} images" for name, rays in parts.items()))


def _parts(collection: str) -> dict[str, Rays]:
    """(train, test)."""
    if collection == "made-up":
        return _split(made_up_rays())
    shared = default_shared()
    if shared is None:
        raise UserError("the optional data are not here (ZOO_SHARED): --collection made-up needs none")
    if collection == "children":
        published = read_pneumonia(shared)
        return {"train": _joined(published["train"], published["val"]), "test": published["test"]}
    rays = read_nih_hannover(shared)
    return _split(rays.where(rays.labels != "COVID-19"))


def _split(rays: Rays) -> dict[str, Rays]:
    train, test = split_by_patient(rays.patients, rays.labels, (0.8, 0.2), seed=0)
    return {"train": rays.where(train), "test": rays.where(test)}


def _joined(first: Rays, second: Rays) -> Rays:
    return Rays(*(np.concatenate([getattr(rays, name) for rays in (first, second)]) for name in Rays.__annotations__))


if __name__ == "__main__":
    run_command(main)
