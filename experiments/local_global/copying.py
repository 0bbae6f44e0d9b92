"""Held-out rows with copies, and what a model makes of the copied tokens, of their originals and of the rest."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Bool, Int

from experiments.likelihood_vs_position.rows import Copies, Rows, passages, with_bos, with_copies
from experiments.likelihood_vs_position.scoring import TokenScores, score_in_chunks
from zoo.interop.parameters import abstract_model

FIRST_COUNTED = 4
"""Tokens of a copied span before this one are not counted: a copy must have begun before it can be recognised."""
SEED = 20_240_800
"""Of the copies that are measured; the same for all runs."""


@dataclass(frozen=True, eq=False)
class Test:
    """Rows to measure on; all arrays are of the tokens after <bos>."""

    rows: Rows
    """<bos> and T tokens."""
    offset: Int[np.ndarray, "b t"]
    """Place of a copied token in its span; -1 for others."""
    original: Int[np.ndarray, "b t"]
    """Where in its row the token is that a copied token repeats; -1 for others."""

    @property
    def counted(self) -> Bool[np.ndarray, "b t"]:
        """Copied tokens from `FIRST_COUNTED` of their span on."""
        return self.offset >= FIRST_COUNTED

    @property
    def originals(self) -> Bool[np.ndarray, "b t"]:
        """The tokens that those repeat: the same words, where nothing can be copied yet."""
        rows, columns = np.nonzero(self.counted)
        mask = np.zeros(self.offset.shape, bool)
        mask[rows, self.original[rows, columns]] = True
        return mask

    @property
    def text(self) -> Bool[np.ndarray, "b t"]:
        """All tokens that are no copies."""
        return self.offset < 0


def make_test(documents: tuple[np.ndarray, ...], length: int, count: int, copies: Copies, bos_id: int) -> Test:
    """At most `count` rows of `length` tokens, the copies included, from passages that do not overlap."""
    own = length - copies.spans * copies.span
    texts, _ = passages(documents, own, count, bos_id)
    rng = np.random.default_rng(SEED)
    made = [with_copies(text[1:], copies, rng) for text in texts]
    rows = np.stack([with_bos(row.ids, bos_id) for row in made])
    return Test(rows, np.stack([row.offset for row in made]), np.stack([row.original for row in made]))


@dataclass(frozen=True)
class Copying:
    """Means over the tokens of a kind; negative log-likelihoods are nats per token."""

    text: float
    """Negative log-likelihood of all tokens that are no copies."""
    copies: float
    """That of copied tokens, the first ones of a span left out."""
    originals: float
    """That of the same tokens where they stand for the first time."""
    recall: float
    """Part of the copied tokens that were the likeliest ones."""
    guessed: float
    """Part of the same tokens that were the likeliest ones where they stand for the first time."""
    by_offset: tuple[float, ...]
    """Negative log-likelihood of copied tokens by their place in the span."""


def score_rows(model: Any, rows: Rows, rows_at_once: int) -> TokenScores:
    """Of all tokens, a few rows at a time."""
    length = rows.shape[1] - 1
    parts = [
        score_in_chunks(model, rows[first : first + rows_at_once], chunk=length)
        for first in range(0, len(rows), rows_at_once)
    ]
    return TokenScores(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def copying_of(scores: TokenScores, test: Test) -> Copying:
    """The means of each kind of token."""

    def mean(values: np.ndarray, mask: np.ndarray) -> float:
        return float(np.mean(values[mask], dtype=np.float64))

    return Copying(
        text=mean(scores.nll, test.text),
        copies=mean(scores.nll, test.counted),
        originals=mean(scores.nll, test.originals),
        recall=mean(scores.right, test.counted),
        guessed=mean(scores.right, test.originals),
        by_offset=tuple(mean(scores.nll, test.offset == place) for place in range(int(test.offset.max()) + 1)),
    )


def with_window(model: Any, window: int) -> Any:
    """The same weights with another window of the local layers."""
    config = replace(model.config, sliding_window=window)
    return nnx.merge(abstract_model(config, model.execution)[0], nnx.state(model))
