"""Bags as tokens: PARE's passages, and the same sentences one by one for encoders that see one at a time.

    [CLS] left [H] head [/H] middle [T] tail [/T] right [SEP] left .. [SEP]

Markers belong to roles: the head has [H] and [/H] whether it stands before or after the tail. The parts between markers
are tokenised each alone (the authors' code). Sentences come in random order, a new one in every epoch; in evaluation
the order depends on the pair and a seed only, where the authors' code draws it anew each time. Whole sentences are
taken up to the limit: the first that does not fit ends the passage, though a later one might. Only the first sentence
is shortened, and here it keeps its mentions (the authors cut its end).
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Int

from experiments.relation_extraction.bags import Bag
from experiments.relation_extraction.reader import Instance
from zoo.errors import UserError


class Encoder(Protocol):
    """What is asked of a tokenizer."""

    def encode(self, text: str) -> Sequence[int]:
        """Ids of a text, without tokens at its ends."""
        ...


@dataclass(frozen=True)
class Marks:
    """Ids of tokens that no text has. In BERT's vocabularies [unused1] .. [unused4] mark the entities."""

    cls: int
    """Before the passage."""
    sep: int
    """After every sentence."""
    pad: int
    """Fills up a row."""
    head: tuple[int, int]
    """Before and after the head."""
    tail: tuple[int, int]
    """Before and after the tail."""
    masked: tuple[int, int] | None = None
    """In place of the words of head and tail, if their names shall not be seen ([unused5], [unused6])."""


@dataclass(frozen=True, eq=False)
class Sentence:
    """One sentence with its markers, without [CLS] and [SEP]."""

    tokens: list[int]
    """Ids."""
    markers: tuple[int, int]
    """Where the head's and the tail's opening markers stand."""


@dataclass(frozen=True, eq=False)
class Passage:
    """Sentences in one row of tokens."""

    tokens: list[int]
    """[CLS], sentences, a [SEP] after each."""
    spans: list[tuple[int, int]]
    """[start, stop) of every sentence, its [SEP] included; the first begins with [CLS]. They lie side by side."""
    markers: list[tuple[int, int]]
    """Where each sentence's opening markers of head and tail stand in the passage."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Passages as arrays."""

    tokens: Int[np.ndarray, "b t"]
    """Ids, filled up with `Marks.pad`."""
    visible: Bool[np.ndarray, "b t"]
    """False at padding."""
    segment_ids: Int[np.ndarray, "b t"]
    """Number of the sentence, from 1; 0 = padding. As an encoder's segments they stop all flow between sentences."""
    positions: Int[np.ndarray, "b t"]
    """Places that begin anew with every sentence, at 1: place 0 is [CLS], which the first sentence has. With
    `segment_ids` the control without flow; a passage of one sentence is the same with and without them."""
    markers: Int[np.ndarray, "b s 2"]
    """Opening markers of head and tail; 0 where there is no sentence."""
    present: Bool[np.ndarray, "b s"]
    """Whether there is one."""


def mark(one: Instance, encoder: Encoder, marks: Marks) -> Sentence:
    """The sentence's tokens with markers around its mentions, which may overlap.

    With `Marks.masked` the tokens between a mention's markers are one; `UserError` if masked mentions overlap.
    """
    cuts = [
        (one.head.start, 1, marks.head[0]),
        (one.head.stop, 0, marks.head[1]),
        (one.tail.start, 1, marks.tail[0]),
        (one.tail.stop, 0, marks.tail[1]),
    ]
    if marks.masked and one.head.start < one.tail.stop and one.tail.start < one.head.stop:
        raise UserError(f"{one.place}: head and tail overlap and cannot be masked")
    tokens: list[int] = []
    opening = {}
    at = 0
    # At one place, what ends there ends before the next begins.
    for place, opens, marker in [*sorted(cuts), (len(one.text), 0, -1)]:
        inside = {one.head.start: 0, one.tail.start: 1}.get(at) if marks.masked and place > at else None
        if inside is not None and marks.masked:
            tokens.append(marks.masked[inside])
        elif one.text[at:place].strip():
            tokens += encoder.encode(one.text[at:place])
        if marker >= 0:
            if opens:
                opening[marker] = len(tokens)
            tokens.append(marker)
        at = place
    return Sentence(tokens, (opening[marks.head[0]], opening[marks.tail[0]]))


def shortened(sentence: Sentence, limit: int, marks: Marks, place: str) -> Sentence:
    """The sentence without what is far from its mentions, of `limit` tokens at most: first its ends go, as evenly as
    can be, then the middle of what lies between the mentions. `UserError` if the mentions alone are longer."""
    excess = len(sentence.tokens) - limit
    if excess <= 0:
        return sentence
    stops = [sentence.tokens.index(marks.head[1]) + 1, sentence.tokens.index(marks.tail[1]) + 1]
    first, last = min(sentence.markers), max(stops)
    left = min(first, max(excess // 2, excess - (len(sentence.tokens) - last)))
    right = min(excess - left, len(sentence.tokens) - last)
    tokens = sentence.tokens[left : len(sentence.tokens) - right]
    markers, excess = [at - left for at in sentence.markers], excess - left - right
    if excess:
        start, stop = min(stops) - left, max(markers)
        if excess > stop - start:
            raise UserError(f"{place}: the two mentions alone are longer than {limit} tokens")
        middle = start + (stop - start - excess) // 2
        tokens = tokens[:middle] + tokens[middle + excess :]
        markers = [at if at < stop else at - excess for at in markers]
    return Sentence(tokens, (markers[0], markers[1]))


def sentence_order(bag: Bag, seed: int, epoch: int | None = None) -> Int[np.ndarray, "sentences"]:
    """A permutation of the bag's sentences, the same whatever other bags there are.

    Args:
      epoch: of training; None = evaluation.
    """
    pair = zlib.crc32("\t".join(bag.pair).encode())
    return np.random.default_rng([seed, pair, 0 if epoch is None else epoch + 1]).permutation(len(bag))


def passage(sentences: Sequence[Sentence], limit: int, marks: Marks, place: str = "") -> Passage:
    """Sentences in this order as one row of at most `limit` tokens; `place` is the first one's, for messages.

    Raises `UserError` if the first one's mentions do not fit.
    """
    tokens, spans, markers = [marks.cls], [], []
    for number, sentence in enumerate(sentences):
        if number == 0:
            sentence = shortened(sentence, limit - 2, marks, place)
        elif len(tokens) + len(sentence.tokens) + 1 > limit:
            break
        markers.append((len(tokens) + sentence.markers[0], len(tokens) + sentence.markers[1]))
        start = len(tokens) if number else 0
        tokens += [*sentence.tokens, marks.sep]
        spans.append((start, len(tokens)))
    return Passage(tokens, spans, markers)


def bag_passage(
    bag: Bag, encoder: Encoder, marks: Marks, limit: int, *, seed: int = 0, epoch: int | None = None
) -> Passage:
    """The bag's passage, its sentences in the order of `sentence_order`. Raises what `passage` and `mark` do."""
    chosen = [bag.instances[number] for number in sentence_order(bag, seed, epoch)]
    return passage([mark(one, encoder, marks) for one in chosen], limit, marks, chosen[0].place)


def sentence_passages(
    bag: Bag, encoder: Encoder, marks: Marks, limit: int, most: int, *, seed: int = 0, epoch: int | None = None
) -> list[Passage]:
    """[CLS] sentence [SEP] for the first `most` sentences in the same order, each shortened to the limit if longer."""
    chosen = [bag.instances[number] for number in sentence_order(bag, seed, epoch)[:most]]
    return [passage([mark(one, encoder, marks)], limit, marks, one.place) for one in chosen]


def as_rows(passages: Sequence[Passage], length: int, sentences: int, marks: Marks) -> Rows:
    """Arrays of these passages, filled up to `length` tokens and `sentences` sentences. ValueError if one has more."""
    shape = (len(passages), length)
    tokens, segments, positions = np.full(shape, marks.pad, np.int32), np.zeros(shape, np.int32), np.zeros(shape, int)
    markers, present = np.zeros((len(passages), sentences, 2), np.int32), np.zeros((len(passages), sentences), bool)
    for row, one in enumerate(passages):
        size, count = len(one.tokens), len(one.spans)
        if size > length or count > sentences:
            raise ValueError(
                f"a passage of {size} tokens and {count} sentences: there is room for {length}, {sentences}"
            )
        tokens[row, :size] = one.tokens
        for number, (start, stop) in enumerate(one.spans):
            segments[row, start:stop] = number + 1
            positions[row, start:stop] = np.arange(stop - start) + (number > 0)
        markers[row, :count] = one.markers
        present[row, :count] = True
    return Rows(tokens, segments > 0, segments, positions.astype(np.int32), markers, present)
