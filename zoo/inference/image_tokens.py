"""Images to the codes of an image tokenizer (`zoo.models.VqImage`) and back, as 8-bit pixels.

Programs are compiled once for each model's structure and number of images.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, UInt8

from zoo.data.images import scaled, square
from zoo.errors import UserError
from zoo.inference.model import Structure, take_apart
from zoo.interop import load
from zoo.models import VqImage


def load_image_tokenizer(path: str | Path) -> VqImage:
    """The image tokenizer of a run of the recipe image-vq, or of an export of it. Raises `UserError` if the folder
    holds another kind of model."""
    model = load(path).model
    if not isinstance(model, VqImage):
        raise UserError(
            f"{path} holds a {type(model).__name__}, no image tokenizer (VqImage: python -m zoo.train image-vq)"
        )
    return model


def image_to_codes(model: VqImage, pixels: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, " n"]:
    """The codes of the square in the middle of an image, resized to the model's size, row by row."""
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8 [height, width, 3], got {pixels.dtype} {pixels.shape}")
    structure, arrays = take_apart(model)
    return np.asarray(_encode(structure, arrays, scaled(square(pixels, model.config.image_size))[None])[0])


def codes_to_images(model: VqImage, codes: Int[np.ndarray, "b n"]) -> UInt8[np.ndarray, "b s s 3"]:
    """Images out of their codes. Raises `UserError` for a number of codes that is not the model's, or one that is none
    of 0 .. num_codes - 1."""
    codes, config = np.asarray(codes), model.config
    if codes.ndim != 2 or codes.shape[1] != config.codes_per_image:
        raise UserError(f"an image of this tokenizer has {config.codes_per_image} codes, got an array {codes.shape}")
    if codes.size and not 0 <= codes.min() <= codes.max() < config.num_codes:
        raise UserError(f"codes must lie in 0 .. {config.num_codes - 1}, found {codes.min()} .. {codes.max()}")
    structure, arrays = take_apart(model)
    return np.asarray(_decode(structure, arrays, codes.astype(np.int32)))


@functools.partial(jax.jit, static_argnums=0)
def _encode(structure: Structure, arrays: Sequence[Array], pixels: Any) -> Any:
    model: Any = structure.restore(arrays)
    return model.encode_codes(pixels)


@functools.partial(jax.jit, static_argnums=0)
def _decode(structure: Structure, arrays: Sequence[Array], codes: Any) -> Any:
    model: Any = structure.restore(arrays)
    return jnp.round((model.decode_codes(codes) + 1) * 127.5).astype(jnp.uint8)
