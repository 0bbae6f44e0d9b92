"""New tokens as text with images in it: pieces, PNG files, and the text that names them where they stand."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from zoo.data import MediaConfig, MediaVocabulary, Tokenizer
from zoo.errors import UserError
from zoo.inference.constraint import ImageOutput
from zoo.inference.image_tokens import codes_to_images, image_to_codes, load_image_tokenizer
from zoo.interop.new_folder import new_folder

Paint = Callable[[Int32[np.ndarray, " n"]], UInt8[np.ndarray, "s s 3"]]
"""The image of its codes."""


class Painter:
    """The image tokenizer of a model's codes; it is loaded when it is first needed."""

    def __init__(self, path: str | Path | None, checkpoint: str | Path):
        """path: its run; None if it is not known. checkpoint: whose codes they are, for messages."""
        self._path, self._checkpoint = path, checkpoint

    @functools.cached_property
    def model(self) -> Any:
        """The `zoo.models.VqImage`. Raises UserError if none lies there, or if it is not known where."""
        if not self._path:
            raise UserError(f"{self._checkpoint}: records no data.media.image_tokenizer: say --image-tokenizer RUN")
        return load_image_tokenizer(self._path)

    def encode(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, " n"]:
        """The codes of an image."""
        return image_to_codes(self.model, pixels)

    def paint(self, codes: Int32[np.ndarray, " n"]) -> UInt8[np.ndarray, "s s 3"]:
        """The image of its codes. One at a time, so that there is one program whatever their number."""
        return codes_to_images(self.model, codes[None])[0]


@contextlib.contextmanager
def images_folder(path: Path | None) -> Iterator[Path | None]:
    """A folder that becomes `path` when the block ends well; None for None. It is made before the work, so that a path
    that cannot be written is said first. Raises UserError if anything lies there already."""
    if path is None:
        yield None
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--images-out {path}: exists already; name a new folder, nothing is overwritten")
    with new_folder(path) as folder:
        yield folder


@dataclass(frozen=True)
class Image:
    """An image among new tokens."""

    codes: tuple[int, ...]
    """Its codes, row by row."""
    complete: bool
    """Whether they are all there."""


def image_output_of(config: Any, tokenizer: Tokenizer, media: MediaConfig) -> ImageOutput:
    """What a model draws whose data had this config, with the image tokenizer of this architecture
    (`zoo.models.vq_image`). Raises UserError if its codes are not those of the data."""
    if not media.image_codes:
        raise UserError("this model writes no images: data.media.image_codes of its run is 0")
    if config.num_codes != media.image_codes:
        raise UserError(
            f"the image tokenizer has {config.num_codes} codes, data.media.image_codes of the model's run is "
            f"{media.image_codes}: name the tokenizer that it was trained with"
        )
    return ImageOutput(MediaVocabulary(tokenizer.vocab_size, media.image_codes), config.codes_per_image)


def image_pieces(ids: Sequence[int], output: ImageOutput, *, inside: bool = False) -> list[list[int] | Image]:
    """New tokens (without what follows a stop token) as pieces: ids of words, and images, which are complete with their
    last code. inside: the tokens begin with codes, since the prompt ended in image_begin."""
    words = output.vocabulary
    pieces: list[list[int] | Image] = []
    text: list[int] = []
    codes: list[int] | None = [] if inside else None

    def close() -> None:
        if codes is not None:
            numbers = words.codes_of_ids(np.asarray(codes, np.int64)).tolist()
            pieces.append(Image(tuple(numbers), len(codes) == output.codes_per_image))

    for token in ids:
        if codes is None and token == words.image_begin:
            pieces += [text] if text else []
            text, codes = [], []
        elif codes is None:
            text.append(int(token))
        elif token == words.image_end:
            close()
            codes = None
        else:
            codes.append(int(token))
    close()
    return pieces + ([text] if text else [])


def write_answer(
    ids: Sequence[int],
    output: ImageOutput,
    decode: Callable[[list[int]], str],
    paint: Paint,
    prefix: Path,
    *,
    inside: bool = False,
) -> tuple[str, int]:
    """Writes the complete images as PREFIX-image-1.png, ...; (the text with [file name] where an image stands, how
    many images are incomplete and were not written). Arguments as of `image_pieces`."""
    parts, number, cut = [], 0, 0
    for piece in image_pieces(ids, output, inside=inside):
        if not isinstance(piece, Image):
            parts.append(decode(piece))
            continue
        number += 1
        file = prefix.with_name(f"{prefix.name}-image-{number}.png")
        if piece.complete:
            write_png(file, paint(np.array(piece.codes, np.int32)))
            parts.append(f"[{file.name}]")
        else:
            cut += 1
            parts.append(f"[image {number} cut off after {len(piece.codes)} of {output.codes_per_image} codes]")
    return "".join(parts), cut


def write_png(path: Path, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
    """`pixels` as a PNG file."""
    try:
        from PIL import Image as Pillow
    except ImportError:
        raise UserError(f"{path}: writing images needs Pillow: pip install '.[media]'") from None
    Pillow.fromarray(pixels).save(path, format="PNG")
