"""Rows of token ids: drawn for training, passages of documents to measure on, and spans that come a second time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

from zoo.errors import UserError

Rows = Int32[np.ndarray, "b t"]
"""The first token of a row is <bos>: T - 1 tokens of it are predicted."""


@dataclass(frozen=True)
class Copies:
    """Spans of a text that are repeated further on in it."""

    spans: int
    """How many in a row."""
    span: int
    """Tokens of each."""
    gap: int
    """Tokens between the end of a span and the beginning of its copy, at least."""
    share: float = 1.0
    """Part of the rows that have them."""


@dataclass(frozen=True, eq=False)
class CopiedRow:
    """A text with copies in it."""

    ids: Int32[np.ndarray, " t"]
    """Without <bos>."""
    offset: Int[np.ndarray, " t"]
    """Place of a copied token in its span, 0 ..; -1 for a token of the text itself."""
    original: Int[np.ndarray, " t"]
    """Where in the row the token is that a copied token repeats; -1 for a token of the text itself."""


def with_copies(text: Int32[np.ndarray, " n"], copies: Copies, rng: np.random.Generator) -> CopiedRow:
    """The text, of which `spans` spans that do not overlap come again at least `gap` tokens later: n + spans * span
    tokens in all. Copies stand between tokens of the text, and in no span that is copied. Raises ValueError where the
    text is too short for so many."""
    length, count, span = len(text), copies.spans, copies.span
    free = length - copies.gap - count * span
    if free < 0:
        raise ValueError(f"{length} tokens have no room for {count} spans of {span} with a gap of {copies.gap}")
    starts = np.sort(rng.integers(0, free + 1, count)) + span * np.arange(count)
    allowed = np.ones(length + 1, bool)
    for start in starts:
        allowed[start + 1 : start + span] = False
    places = np.array(
        [rng.choice(np.flatnonzero(allowed[first:]) + first) for first in starts + span + copies.gap], np.int64
    )
    row = np.insert(np.arange(length), np.repeat(places, span), (starts[:, None] + np.arange(span)).reshape(-1))
    # Of equal places np.insert keeps the order in which they are given, so that a span is in one piece.
    copied = np.insert(np.zeros(length, bool), np.repeat(places, span), True)
    where = np.flatnonzero(~copied)
    offset = np.full(len(row), -1)
    order = np.argsort(places, kind="stable")
    offset[copied] = np.tile(np.arange(span), count)
    original = np.full(len(row), -1)
    original[copied] = where[(starts[order][:, None] + np.arange(span)).reshape(-1)]
    return CopiedRow(text[row].astype(np.int32), offset, original)


def draw_rows(
    stream: Int32[np.ndarray, " n"],
    length: int,
    count: int,
    rng: np.random.Generator,
    bos_id: int,
    copies: Copies | None = None,
) -> Rows:
    """[count, length + 1]: <bos> and a piece of the stream from a random place on; with copies, in their share of the
    rows, a shorter piece and its copied spans. Raises `UserError` if the stream is too short."""
    if len(stream) < length:
        raise UserError(f"the training text has {len(stream)} tokens, a row has {length}: give more text")
    rows = []
    for _ in range(count):
        repeated = copies if copies is not None and rng.random() < copies.share else None
        start = int(rng.integers(0, len(stream) - length + 1))
        ids = stream[start : start + length]
        if repeated is not None:
            ids = with_copies(ids[: length - repeated.spans * repeated.span], repeated, rng).ids
        rows.append(with_bos(ids, bos_id))
    return np.stack(rows)


def with_bos(ids: Int32[np.ndarray, " n"], bos_id: int) -> Int32[np.ndarray, " m"]:
    """<bos> and the ids."""
    return np.concatenate([[bos_id], ids]).astype(np.int32)


def passages(
    documents: Sequence[Int32[np.ndarray, " n"]], length: int, count: int, bos_id: int
) -> tuple[Rows, Int[np.ndarray, " passages"]]:
    """(<bos> and `length` tokens of each passage, the number of its document): passages that do not overlap, at most
    `count`, evenly spread over all documents. Raises `UserError` if no document is long enough."""
    places = [
        (number, start) for number, ids in enumerate(documents) for start in range(0, len(ids) + 1 - length, length)
    ]
    if not places:
        longest = max(map(len, documents), default=0)
        raise UserError(
            f"no document has {length} tokens to measure on (the longest has {longest}): give a smaller --length, or "
            "longer texts by --held-out"
        )
    chosen = [places[i * len(places) // min(count, len(places))] for i in range(min(count, len(places)))]
    rows = np.stack([with_bos(documents[number][start : start + length], bos_id) for number, start in chosen])
    return rows, np.array([number for number, _ in chosen])
