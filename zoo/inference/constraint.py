"""Which tokens may be drawn where the vocabulary holds more than words: images come out whole or not at all.

    state of a row: w = codes written in the open image, -1 outside of one
    w = -1        words, and image_begin where images are written     image_begin: w = 0
    0 <= w < n    codes                                               w + 1
    w = n         image_end                                           w = -1

All else is never drawn: placeholders of soft tokens, markers of what is only read, ids beyond the vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from zoo.data import MediaVocabulary
from zoo.errors import UserError

OUTSIDE = -1
"""State of a row that is in no image."""


@dataclass(frozen=True)
class ImageOutput:
    """What is drawn besides words. The grammar is not published; the codes share the vocabulary as in Gemini 1.0's
    "discrete image tokens" (arXiv 2312.11805, section 2)."""

    vocabulary: MediaVocabulary
    """Which ids are words, markers and codes."""
    codes_per_image: int = 0
    """n, the codes of every image; 0 = words only: neither markers nor codes are drawn."""

    def __post_init__(self):
        if self.codes_per_image < 0:
            raise UserError(f"codes per image must be at least 0, got {self.codes_per_image}")
        if self.codes_per_image and not self.vocabulary.image_codes:
            raise UserError("images are to be written, and the vocabulary has no image codes (data.media.image_codes)")

    @property
    def image_length(self) -> int:
        """Tokens of an image with its markers."""
        return self.codes_per_image + 2


def first_state(
    output: ImageOutput | None, tokens: Int[np.ndarray, "b t"], mask: Int[np.ndarray, "b t"], vocab_size: int
) -> Int[np.ndarray, "b"] | None:
    """The state after each prompt; None where none is needed, since no image can be open.

    Raises:
      UserError: the model has fewer ids than the vocabulary; a prompt that ends in an image that cannot be completed.
    """
    if output is None:
        return None
    words, n = output.vocabulary, output.codes_per_image
    if words.size > vocab_size:
        raise UserError(f"words, markers and image codes are {words.size} tokens, the model has {vocab_size}")
    state = np.full(len(tokens), OUTSIDE, np.int32)
    for row, ids in enumerate(tokens):
        ids = ids[mask[row] == 1]
        begins = np.flatnonzero(ids == words.image_begin)
        written = ids[begins[-1] + 1 :] if len(begins) else ids[:0]
        if not len(begins) or words.image_end in written:
            continue
        if not n:
            raise UserError(f"prompt {row + 1} ends in an open image, and no images are written here")
        if len(written) > n or not words.is_code(written).all():
            raise UserError(f"prompt {row + 1} ends in an open image with what is not at most {n} image codes")
        state[row] = len(written)
    return state if n else None


def allowed(output: ImageOutput, state: Int[Array, "b"] | None, vocab_size: int) -> Bool[Array, "#b v"]:
    """Which of the ids 0 .. vocab_size - 1 may come next."""
    words = output.vocabulary
    ids = jnp.arange(vocab_size, dtype=jnp.int32)[None]
    outside = ids < words.text_size
    if state is None:
        return outside
    written = state[:, None]
    codes = (ids >= words.first_code) & (ids < words.size)
    inside = jnp.where(written < output.codes_per_image, codes, ids == words.image_end)
    return jnp.where(written < 0, outside | (ids == words.image_begin), inside)


def constrain(output: ImageOutput, state: Int[Array, "b"] | None, logits: Float[Array, "b v"]) -> Float[Array, "b v"]:
    """Logits with -inf for what may not come next: before top-k and top-p, which then choose among the others."""
    return jnp.where(allowed(output, state, logits.shape[-1]), logits, -jnp.inf)


def advance(output: ImageOutput, state: Int[Array, "b"] | None, drawn: Int[Array, "b"]) -> Int[Array, "b"] | None:
    """The state after the drawn tokens."""
    if state is None:
        return None
    begins, ends = drawn == output.vocabulary.image_begin, drawn == output.vocabulary.image_end
    written = jax.lax.select(ends, jnp.full_like(state, OUTSIDE), state + 1)
    return jnp.where(state < 0, jnp.where(begins, 0, OUTSIDE), written)
