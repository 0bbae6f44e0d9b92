"""Images with classes, for classifiers: JSON lines of an image file and the name of its class.

    {"image": "a.png", "label": "cat"}

Paths are relative to the .jsonl file; other fields are passed over. A row of the batch is one image: its token stands
for the image, its target is the number of its class (`LabelledImagesConfig.classes`), its pixels are in `Batch.media`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, UInt8

from zoo.data.batch import Batch
from zoo.data.config import DataConfig
from zoo.data.images import read_image
from zoo.data.interleaved import Interleaved, InterleavedDocuments, Part, check_file
from zoo.data.labelled_config import LabelledImagesConfig
from zoo.data.media import BadMedia, LeftOut, Media, Skipping
from zoo.data.media_config import MediaConfig
from zoo.data.packing import stack_rows
from zoo.data.readers import check_unicode
from zoo.data.sources import File
from zoo.errors import UserError, nearest_name

PIXELS, LABEL = "pixels", "label"
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def parse_labelled_image(value: Any, where: str, folder: Path, config: LabelledImagesConfig) -> Interleaved:
    """The document of one image, whose `kind` is its label. Raises `BadMedia` for its file and `UserError` for anything
    else, both naming `where`."""
    for name in ("image", "label"):
        if name not in value:
            raise UserError(f"{where}: no field {name!r}; {nearest_name(name, value)}")
        if not isinstance(value[name], str):
            raise UserError(f"{where}: {name!r} must be a string, not {value[name]!r}")
        check_unicode(value[name], where)
    if value["label"] not in config.classes:
        raise UserError(f"{where}: label {value['label']!r}; {nearest_name(value['label'], config.classes)}")
    path = folder / value["image"]
    check_file("image", path, where)
    return Interleaved((Part("image", path=path),), kind=value["label"], where=where)


class LabelledImages(InterleavedDocuments):
    """The images of a .jsonl file."""

    accepts = {dict: "object"}

    def __init__(self, file: File, images: LabelledImagesConfig, media: MediaConfig):
        self._images = images

        def check(document: Interleaved) -> None:
            if media.check == "contents":
                read_image(document.parts[0].path, media)

        super().__init__(file, media, "", check)

    def _parse_record(self, value: Any, where: str) -> Interleaved:
        return parse_labelled_image(value, where, self.file.path.parent, self._images)


class LabelledRows:
    """From the document of an image to the row of a batch; None for one that is left out. Called with a generator of
    random numbers it takes a part of the image and changes it."""

    def __init__(self, config: DataConfig, left_out: LeftOut, num_documents: int):
        self._images, self._media = config.images, config.media
        self._skipping = Skipping(left_out, num_documents)

    def __call__(self, document: Interleaved, rng: np.random.Generator | None = None) -> dict[str, np.ndarray] | None:
        try:
            pixels = read_image(document.parts[0].path, self._media)
        except BadMedia as error:
            located = BadMedia(f"{document.where}: {error}")
            if self._media.bad_media == "stop":
                raise located from None
            self._skipping.skip(document.where, located)
            return None
        self._skipping.used()
        label = np.int32(self._images.classes.index(document.kind))
        return {PIXELS: model_pixels(pixels, self._images, rng), LABEL: np.asarray(label)}


def model_pixels(
    pixels: UInt8[np.ndarray, "h w 3"], config: LabelledImagesConfig, rng: np.random.Generator | None = None
) -> Float32[np.ndarray, "c side side"]:
    """What a classifier reads of an image: ((x / 255 changed) - mean) / std, with antialiased bicubic interpolation.

    Without `rng` the square in the middle. With it a rectangle anywhere, of a share of the area between `crop` and 1
    (uniform) and sides whose ratio, relative to the image's, is between 1 / elongation and elongation (uniform in its
    logarithm; cut where it would be larger than the image), perhaps mirrored, then contrast and brightness.
    """
    from PIL import Image

    height, width, _ = pixels.shape
    if rng is None:
        short = min(height, width)
        left, top = (width - short) / 2, (height - short) / 2
        box = (left, top, left + short, top + short)
    else:
        area, ratio = rng.uniform(config.crop, 1), np.exp(rng.uniform(-1, 1) * np.log(config.elongation))
        wide, high = min(1.0, np.sqrt(area * ratio)) * width, min(1.0, np.sqrt(area / ratio)) * height
        left, top = rng.uniform(0, 1) * (width - wide), rng.uniform(0, 1) * (height - high)
        box = (left, top, left + wide, top + high)
    size = (config.side, config.side)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, box=box)
    values = np.asarray(image, np.float32) / np.float32(255)
    if config.channels == 1:
        values = (values @ LUMA)[..., None]
    if rng is not None:
        if config.mirror and rng.random() < 0.5:
            values = values[:, ::-1]
        contrast = np.float32(1 + rng.uniform(-1, 1) * config.contrast)
        values = values.mean() + (values - values.mean()) * contrast
        values = values + np.float32(rng.uniform(-1, 1) * config.brightness)
    scaled = (values - np.asarray(config.mean, np.float32)) / np.asarray(config.std, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32)


def make_labelled_batch(rows: Sequence[dict[str, np.ndarray]], batch_size: int, token: int, pad_id: int) -> Batch:
    """Stacks rows; fewer than `batch_size` are filled up with padding. `token` stands for an image."""
    real = np.arange(batch_size)[:, None] < len(rows)
    return Batch(
        tokens=np.where(real, token, pad_id).astype(np.int32),
        targets=stack_rows(rows, LABEL, batch_size)[:, None],
        positions=np.zeros((batch_size, 1), np.int32),
        segment_ids=real.astype(np.int32),
        loss_weights=real.astype(np.float32),
        media=Media(pixel_values=stack_rows(rows, PIXELS, batch_size)),
    )


def labelled_shapes(config: DataConfig) -> Media:
    """Shapes and dtypes (`jax.ShapeDtypeStruct`) of `Batch.media`."""
    images = config.images
    shape: Any = jax.ShapeDtypeStruct((config.batch_size, images.channels, images.side, images.side), np.float32)
    return Media(pixel_values=shape)
