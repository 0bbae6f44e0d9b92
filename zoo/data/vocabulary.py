"""Ids of the tokens that are no words: where media begin and end, where soft tokens stand, the codes of images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int32

from zoo.errors import UserError

NUM_MARKERS = 6


@dataclass(frozen=True)
class MediaVocabulary:
    """The tokenizer's ids 0 .. text_size - 1, then six markers, then the codes of a VQ image tokenizer."""

    text_size: int
    """Tokens of the text tokenizer."""
    image_codes: int = 0
    """Codes of the VQ image tokenizer; 0 = the model writes no images."""

    def __post_init__(self):
        if self.text_size < 1 or self.image_codes < 0:
            raise ValueError(
                f"text_size {self.text_size} must be at least 1, image_codes {self.image_codes} at least 0"
            )

    @property
    def image_begin(self) -> int:
        """Stands before an image."""
        return self.text_size

    @property
    def image_end(self) -> int:
        """Stands after an image."""
        return self.text_size + 1

    @property
    def image_soft(self) -> int:
        """Placeholder of a soft token of an image."""
        return self.text_size + 2

    @property
    def audio_begin(self) -> int:
        """Stands before a recording."""
        return self.text_size + 3

    @property
    def audio_end(self) -> int:
        """Stands after a recording."""
        return self.text_size + 4

    @property
    def audio_soft(self) -> int:
        """Placeholder of a soft token of a recording."""
        return self.text_size + 5

    @property
    def first_code(self) -> int:
        """Id of image code 0."""
        return self.text_size + NUM_MARKERS

    @property
    def size(self) -> int:
        """Number of ids: what a model's `vocab_size` must be at least."""
        return self.text_size + NUM_MARKERS + self.image_codes

    def ids_of_codes(self, codes: Sequence[int] | Int[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """Token ids of image codes. Raises `UserError` for a code that is none of 0 .. image_codes - 1."""
        codes = np.asarray(codes, np.int64)
        if codes.size and not 0 <= codes.min() <= codes.max() < self.image_codes:
            raise UserError(
                f"image codes must lie in 0 .. {self.image_codes - 1}, found {codes.min()} .. {codes.max()}"
            )
        return (codes + self.first_code).astype(np.int32)

    def codes_of_ids(self, ids: Int[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """Image codes of token ids; ValueError if one is no code (`is_code`)."""
        ids = np.asarray(ids)
        if not self.is_code(ids).all():
            raise ValueError("not all ids are image codes")
        return (ids - self.first_code).astype(np.int32)

    def is_code(self, ids: Int[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
        """Which ids are image codes."""
        ids = np.asarray(ids)
        return (ids >= self.first_code) & (ids < self.size)
