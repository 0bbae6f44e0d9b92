"""Tokenizers of images in recipes: what a run that trains one must look like, and how a run uses one."""

import hashlib

import jax
import numpy as np
from flax import nnx

from zoo.data import EncodeImage
from zoo.errors import UserError
from zoo.inference.image_tokens import image_to_codes, load_image_tokenizer
from zoo.interop import read_config
from zoo.models import VqImage, VqImageConfig
from zoo.recipes.recipe import Recipe


def check_image_run(recipe: Recipe) -> None:
    """Raises `UserError` if images do not come as the tokenizer that is trained takes them."""
    data, media, model = recipe.data, recipe.data.media, recipe.model
    assert isinstance(model, VqImageConfig)
    if data.format != "interleaved":
        raise UserError(f"data.format={data.format!r}: a tokenizer of images is trained on format 'interleaved'")
    for name, value, wanted, why in (
        ("data.media.image_side", media.image_side, model.image_size, "model.image_size"),
        ("data.media.patch_size", media.patch_size, model.patch_size, "model.patch_size"),
        ("data.media.merge", media.merge, 1, "1, one code for each patch"),
        ("z_loss", recipe.z_loss, 0, "0: there are no logits"),
        ("loss_chunk_tokens", recipe.loss_chunk_tokens, None, "left out: there are no logits"),
    ):
        if value != wanted:
            raise UserError(f"{name}={value} must be {f'{why}={wanted}' if why.startswith('model.') else why}")
    count = model.codes_per_image
    if media.patches_per_row == 0 or media.patches_per_row % count:
        nearest = max(1, round(media.patches_per_row / count)) * count
        raise UserError(
            f"data.media.patches_per_row={media.patches_per_row} must be a multiple of an image's {count} patches; "
            f"{nearest} would be"
        )
    for name in ("clips_per_row", "image_codes", "image_tokenizer"):
        if getattr(media, name):
            raise UserError(
                f"data.media.{name}={getattr(media, name)}: a tokenizer of images reads images only; leave it out"
            )


def check_image_tokenizer(recipe: Recipe) -> None:
    """Raises `UserError` if `data.media.image_tokenizer` is none, or not one for this run."""
    data, path = recipe.data, recipe.data.media.image_tokenizer
    if path is None:
        return
    config = read_config(path)
    if not isinstance(config, VqImageConfig):
        kind = type(config).__name__.removesuffix("Config")
        raise UserError(f"data.media.image_tokenizer={path} holds a {kind}, no tokenizer of images (recipe image-vq)")
    if data.format != "interleaved":
        raise UserError(f"data.media.image_tokenizer is for data.format 'interleaved', not {data.format!r}")
    if data.media.image_codes != config.num_codes:
        raise UserError(
            f"data.media.image_codes={data.media.image_codes} must be the {config.num_codes} codes of "
            f"data.media.image_tokenizer={path}"
        )
    if data.worker_processes:
        raise UserError(
            f"data.worker_processes={data.worker_processes} must be 0 with data.media.image_tokenizer: "
            "images are encoded in this process"
        )


def image_encoder(recipe: Recipe) -> EncodeImage | None:
    """What gives images to be generated their codes; None where `data.media.image_tokenizer` names no tokenizer.

    It computes on this process's default device, apart from the mesh, and computes the codes of equal pixels once: it
    keeps them, four bytes a code, under a hash of the pixels.
    """
    path = recipe.data.media.image_tokenizer
    return None if path is None else CachedCodes(path)


class CachedCodes:
    """`EncodeImage` with memory."""

    def __init__(self, path: str):
        self._model = load_image_tokenizer(path)
        self._codes: dict[bytes, np.ndarray] = {}
        self.fingerprint = _fingerprint(self._model)
        """Of its parameters: with others, a run that is resumed would go on with other codes (`zoo.data.iterator`)."""

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """The codes of an image. Several threads may ask at once; the worst of it is that they do the same work."""
        key = hashlib.blake2b(pixels.tobytes() + repr(pixels.shape).encode(), digest_size=16).digest()
        if key not in self._codes:
            self._codes[key] = image_to_codes(self._model, pixels)
        return self._codes[key]


def _fingerprint(model: VqImage) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()
