"""Perplexity and bits per byte of text, of any length, each token scored exactly once."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zoo.data.tokenizer import Tokenizer
from zoo.errors import UserError
from zoo.inference.model import LanguageModel
from zoo.inference.scoring import token_log_probabilities

LENGTH_STEP = 64
"""Rows shorter than the context are padded to a multiple of this, so that texts of similar length share a program."""


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts a text. Scores of several texts add up with `+`."""

    tokens: int
    """Tokens that were predicted (all of the text's, the first one from the beginning-of-text token)."""
    bytes: int
    """UTF-8 bytes of the text."""
    log_probability: float
    """Sum of the tokens' log-probabilities, natural logarithm."""

    @property
    def mean_log_probability(self) -> float:
        """Per token, natural logarithm; nan without tokens."""
        return self.log_probability / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(-mean log-probability per token): depends on the tokenizer."""
        return perplexity(self.mean_log_probability)

    @property
    def bits_per_byte(self) -> float:
        """-log2 p(text) / bytes: comparable between tokenizers."""
        return -self.log_probability / math.log(2) / self.bytes if self.bytes else math.nan

    def __add__(self, other: "TextScore") -> "TextScore":
        return TextScore(
            self.tokens + other.tokens, self.bytes + other.bytes, self.log_probability + other.log_probability
        )


def perplexity(mean_log_probability: float) -> float:
    """exp(-x); inf where that exceeds a float."""
    try:
        return math.exp(-mean_log_probability)
    except OverflowError:
        return math.inf


def windows(length: int, size: int, overlap: int) -> list[tuple[int, int, int]]:
    """(start, stop, first token to score) of windows of `size` tokens over `length` tokens.

    A window begins `overlap` tokens before the first one it scores (the last one earlier, so that it is full too); the
    first window scores all of its tokens. Every token is scored in exactly one window.
    """
    spans = [(0, min(size, length), 0)]
    while spans[-1][1] < length:
        scored = spans[-1][1]
        stop = min(scored + size - overlap, length)
        spans.append((max(stop - size, 0), stop, scored))
    return spans


def score_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    text: str,
    *,
    context: int | None = None,
    overlap: int | None = None,
    batch_size: int = 8,
    on_part: Callable[[float], None] | None = None,
) -> TextScore:
    """The score of `text` under `model`, in windows of `context` tokens that each start with the bos token.

    A token is predicted from at least `overlap` tokens of text before it (from all of them at the text's beginning).
    `context` defaults to the model's trained context, `overlap` to half of it: less is faster and slightly pessimistic.
    `on_part` is called with the part of the text that was scored, the parts add up to 1. Raises UserError for a context
    below 2 or an overlap that leaves nothing to score.
    """
    context = model.config.max_position_embeddings if context is None else context
    overlap = context // 2 if overlap is None else overlap
    if context < 2:
        raise UserError(f"context must be at least 2 tokens, got {context}")
    if not 0 <= overlap < context - 1:
        raise UserError(f"overlap must lie in 0 .. context - 2 = {context - 2}, got {overlap}")
    ids = np.asarray(tokenizer.encode(text), np.int32)
    if len(ids) == 0:
        return TextScore(0, len(text.encode()), 0.0)
    spans = windows(len(ids), context - 1, overlap)
    width = min(context, -(-(len(ids) + 1) // LENGTH_STEP) * LENGTH_STEP)
    total = 0.0
    for first in range(0, len(spans), batch_size):
        batch = spans[first : first + batch_size]
        # Rows beyond the last window keep the shape: a bos token alone scores nothing.
        rows = np.full((min(batch_size, len(spans)), width), model.config.pad_token_id, np.int32)
        mask = np.zeros_like(rows)
        rows[:, 0], mask[:, 0] = tokenizer.bos_id, 1
        for row, (start, stop, _) in enumerate(batch):
            rows[row, 1 : 1 + stop - start] = ids[start:stop]
            mask[row, : 1 + stop - start] = 1
        scores = token_log_probabilities(model, rows, mask, batch_size=len(rows))
        for row, (start, stop, scored) in enumerate(batch):
            total += float(scores[row, scored - start : stop - start].sum(dtype=np.float64))
        if on_part is not None:
            on_part(sum(stop - scored for _, stop, scored in batch) / len(ids))
    return TextScore(len(ids), len(text.encode()), total)
