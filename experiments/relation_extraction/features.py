"""What a linear model reads of a bag: words of its sentences by where they stand, as sparse rows. numpy only.

A sentence's features are its words (lower-cased) in five places, marked as such: anywhere, between the mentions, and in
them; pairs of neighbours between the mentions; the three words before the first and after the second mention; which
mention comes first and about how far the other one is. What is between or around counts once with and once without the
order of the roles. A bag's row is the mean over its sentences of these 0/1 rows, divided by its length.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from experiments.relation_extraction.bags import Bag
from experiments.relation_extraction.reader import Instance

# \w leaves out the vowel signs of Indic scripts, which are part of the word: blanks and punctuation split.
WORD = re.compile(r"[^\s!-/:-@\[-`{-~।॥“”‘’«»–—…]+|[!-/:-@\[-`{-~।॥“”‘’«»–—…]")
BLOCK = 1 << 15
"""Entries that are multiplied at a time: what they pick stays in the cache."""
AROUND = 3
"""Words before the first and after the second mention."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A sparse matrix, row by row."""

    starts: Int[np.ndarray, "rows+1"]
    """Where each row begins in the two others; ends with their length. No row is empty."""
    columns: Int[np.ndarray, "entries"]
    """Column of every entry."""
    values: Float[np.ndarray, "entries"]
    """The entry, float32."""
    width: int
    """Columns of the matrix."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def times(self, matrix: Float[np.ndarray, "width out"]) -> Float[np.ndarray, "rows out"]:
        """The product with a dense matrix."""
        result = np.empty((len(self), matrix.shape[1]), matrix.dtype)
        for rows, columns, values in self._blocks:
            gathered = matrix[columns]
            if columns.shape[1] < 16:  # a matrix product has its price for every row
                result[rows] = np.einsum("rl,rlo->ro", values, gathered)
            else:
                result[rows] = np.matmul(values[:, None], gathered)[:, 0]
        return result

    @cached_property
    def _blocks(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(rows, their columns, their values) of rows of about the same number of entries, filled up with zeros."""
        lengths = np.diff(self.starts)
        order = np.argsort(lengths, kind="stable")
        blocks, at = [], 0
        while at < len(order):
            shortest = int(lengths[order[at]])
            longest = max(shortest * 5 // 4, shortest)
            stop = int(np.searchsorted(lengths[order], longest, side="right"))
            stop = min(stop, at + max(BLOCK // longest, 1))
            rows = order[at:stop]
            within = np.arange(lengths[rows].max())
            real = within < lengths[rows, None]
            entries = np.where(real, self.starts[rows, None] + within, 0)
            blocks.append((rows, np.where(real, self.columns[entries], 0), np.where(real, self.values[entries], 0)))
            at = stop
        return blocks

    def transposed(self) -> "Rows":
        """The matrix turned; a column without entries is given a 0."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.starts))
        absent = np.setdiff1d(np.arange(self.width), self.columns)
        columns = np.concatenate([self.columns, absent])
        order = np.argsort(columns, kind="stable")
        values = np.concatenate([self.values, np.zeros(len(absent), np.float32)])[order]
        rows = np.concatenate([rows, np.zeros(len(absent), int)])[order]
        starts = np.append(0, np.cumsum(np.bincount(columns, minlength=self.width)))
        return Rows(starts, rows, values, len(self))


def sentence_features(one: Instance) -> set[str]:
    """The features of one sentence, as strings."""
    head_first = (one.head.start, one.head.stop) <= (one.tail.start, one.tail.stop)
    first, second = (one.head, one.tail) if head_first else (one.tail, one.head)
    order = "<" if head_first else ">"
    between = WORD.findall(one.text[first.stop : second.start].lower())
    before = WORD.findall(one.text[: first.start].lower())[-AROUND:]
    after = WORD.findall(one.text[second.stop :].lower())[:AROUND]
    found = {order, f"{order}far {min(len(between), 20).bit_length()}"}
    found.update(f"w {word}" for word in WORD.findall(one.text.lower()))
    for role, mention in (("h", one.head), ("t", one.tail)):
        found.update(f"{role} {word}" for word in WORD.findall(one.text[mention.start : mention.stop].lower()))
    for place, words in (("b", between), ("l", before), ("r", after)):
        for mark in ("", order):
            found.update(f"{mark}{place} {word}" for word in words)
    found.update(f"{order}bb {left} {right}" for left, right in zip(["^", *between], [*between, "$"]))
    return found


def bag_features(bags: Iterable[Bag]) -> Iterator[dict[str, float]]:
    """For every bag, the share of its sentences that have each feature."""
    for bag in bags:
        counts = Counter(feature for one in bag.instances for feature in sentence_features(one))
        yield {feature: count / len(bag) for feature, count in counts.items()}


def vocabulary(rows: Iterable[Mapping[str, float]], least: int, least_of_mentions: int | None = None) -> dict[str, int]:
    """Columns of the features that at least `least` rows have, in alphabetical order; column 0 is the constant 1.

    Words in mentions ("h ", "t ") need `least_of_mentions` rows, by default as many as others.
    """
    counts = Counter(feature for row in rows for feature in row)
    of_mentions = least if least_of_mentions is None else least_of_mentions
    needed = {"h ": of_mentions, "t ": of_mentions}
    kept = sorted(feature for feature, count in counts.items() if count >= needed.get(feature[:2], least))
    return {feature: column for column, feature in enumerate(kept, start=1)}


def sparse(rows: Sequence[Mapping[str, float]], columns: Mapping[str, int]) -> Rows:
    """The known features of every row, scaled to length 1, and a constant 1 in column 0."""
    starts, places, values = [0], [], []
    for row in rows:
        known = sorted((columns[feature], value) for feature, value in row.items() if feature in columns)
        length = np.sqrt(sum(value * value for _, value in known)) or 1.0
        places += [0, *(column for column, _ in known)]
        values += [1.0, *(value / length for _, value in known)]
        starts.append(len(places))
    return Rows(np.array(starts), np.array(places), np.array(values, np.float32), len(columns) + 1)
