"""Bags as batches of few shapes, so that there are few programs: one for each number of sentences and length.

All arms read the same sentences: up to `most_sentences` of a bag, drawn by `sentence_order`, each cut around its
mentions to min(sentence_tokens, passage_tokens / slots) tokens, where slots is the number of sentences rounded up to a
power of two. A bag then fits into a passage whole. Lengths are rounded up to a multiple of `length_step`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.relation_extraction.arms import Size
from experiments.relation_extraction.bags import Bag, multi_hot, per_relation
from experiments.relation_extraction.passages import (
    Encoder,
    Marks,
    Sentence,
    as_rows,
    mark,
    passage,
    sentence_order,
    shortened,
)
from experiments.relation_extraction.reader import Relations


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Batch:
    """Some bags; a row is a bag's passage, or one of its sentences: those of bag i are rows i * slots and on."""

    tokens: Int[np.ndarray, "rows t"]
    """Ids."""
    segment_ids: Int[np.ndarray, "rows t"]
    """Number of the sentence in its row from 1; 0 = padding."""
    positions: Int[np.ndarray, "rows t"]
    """Places that begin anew with every sentence of a row."""
    markers: Int[np.ndarray, "rows 2"]
    """Opening markers of head and tail in the row's first sentence."""
    present: Bool[np.ndarray, "bags slots"]
    """Whether there is such a sentence."""
    languages: Int[np.ndarray, "bags slots"]
    """Number of the sentence's language; 0 where none is named."""
    labels: Bool[np.ndarray, "bags relations"]
    """Whether the bag has the relation, `NA` included."""
    relation: Int[np.ndarray, "bags"]
    """The one that a softmax is trained on."""
    weights: Float[np.ndarray, "bags"]
    """1; 0 for bags that fill up the batch."""


@dataclass(frozen=True)
class Layout:
    """How an arm wants its bags."""

    passages: bool
    """One row for each bag instead of one for each sentence."""
    full_length: bool = False
    """Rows of the longest length, whatever is in them."""


class Bags:
    """Bags whose sentences are tokenised once."""

    def __init__(
        self,
        bags: Sequence[Bag],
        relations: Relations,
        encoder: Encoder,
        marks: Marks,
        size: Size,
        languages: Sequence[str] = (),
    ):
        self.bags, self.marks, self.size = list(bags), marks, size
        self.labels = multi_hot(self.bags, relations)
        number = {name: index for index, name in enumerate(languages)}
        self._languages = [[number.get(one.language or "", 0) for one in bag.instances] for bag in self.bags]
        self.slots = [slots_of(len(bag), size.most_sentences) for bag in self.bags]
        self._sentences: list[list[Sentence]] = []
        for bag, slots in zip(self.bags, self.slots):
            limit = sentence_limit(size, slots)
            self._sentences.append(
                [shortened(mark(one, encoder, marks), limit - 2, marks, one.place) for one in bag.instances]
            )

    def __len__(self) -> int:
        return len(self.bags)

    def examples(self, passages: bool, relations: Relations) -> list[tuple[int, int]]:
        """(bag, relation) to train on: every bag once, or once for each of its relations (OpenNRE's)."""
        if passages:
            return [(index, 0) for index in range(len(self))]
        index_of = {id(bag): index for index, bag in enumerate(self.bags)}
        return [(index_of[id(bag)], relations.names.index(name)) for bag, name in per_relation(self.bags)]

    def length(self, index: int, layout: Layout) -> int:
        """Tokens of the rows of a bag: the same in all epochs."""
        size, slots = self.size, self.slots[index]
        lengths = sorted((len(one.tokens) for one in self._sentences[index]), reverse=True)[: size.most_sentences]
        if not layout.passages:
            return rounded(lengths[0] + 2, sentence_limit(size, slots), size.length_step)
        if layout.full_length:
            return size.passage_tokens
        return rounded(1 + sum(lengths) + len(lengths), size.passage_tokens, size.length_step)

    def batch(
        self, chosen: Sequence[tuple[int, int]], layout: Layout, count: int, *, seed: int, epoch: int | None
    ) -> Batch:
        """The bags (all of one shape, see `grouped`), filled up to `count` by the first one with weight 0."""
        length = self.length(chosen[0][0], layout)
        slots = self.size.most_sentences if layout.passages else self.slots[chosen[0][0]]
        filled = [*chosen, *([chosen[0]] * (count - len(chosen)))]
        present, languages = np.zeros((count, slots), bool), np.zeros((count, slots), np.int32)
        passages = []
        for place, (index, _) in enumerate(filled):
            order = sentence_order(self.bags[index], seed, epoch)[: self.size.most_sentences]
            sentences = [self._sentences[index][number] for number in order]
            present[place, : len(order)] = True
            languages[place, : len(order)] = [self._languages[index][number] for number in order]
            if layout.passages:
                passages.append(passage(sentences, length, self.marks))
            else:
                own = [passage([sentence], length, self.marks) for sentence in sentences]
                passages += own + [own[0]] * (slots - len(own))
        rows = as_rows(passages, length, slots if layout.passages else 1, self.marks)
        return Batch(
            tokens=rows.tokens,
            segment_ids=rows.segment_ids,
            positions=rows.positions,
            markers=rows.markers[:, 0],
            present=present,
            languages=languages,
            labels=self.labels[[index for index, _ in filled]],
            relation=np.array([relation for _, relation in filled], np.int32),
            weights=(np.arange(count) < len(chosen)).astype(np.float32),
        )


def slots_of(sentences: int, most: int) -> int:
    """The number of sentences rounded up to a power of two, at most `most`."""
    return min(most, 1 << (sentences - 1).bit_length())


def sentence_limit(size: Size, slots: int) -> int:
    """Most tokens of a sentence with its markers, [CLS] and [SEP]."""
    return min(size.sentence_tokens, size.passage_tokens // slots)


def rounded(length: int, limit: int, step: int) -> int:
    """The length rounded up to a multiple of the step, at most the limit."""
    return min(limit, -(-length // step) * step)


def grouped(
    bags: Bags, examples: Sequence[tuple[int, int]], layout: Layout, count: int, random: np.random.Generator | None
) -> Iterator[list[tuple[int, int]]]:
    """The examples in batches of up to `count` whose bags have the same shape; with `random` in another order, and the
    batches as well. The number of batches is the same every time."""
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for example in examples:
        key = (0 if layout.passages else bags.slots[example[0]], bags.length(example[0], layout))
        groups.setdefault(key, []).append(example)
    batches = []
    for _, members in sorted(groups.items()):
        order = np.arange(len(members)) if random is None else random.permutation(len(members))
        batches += [[members[i] for i in order[at : at + count]] for at in range(0, len(members), count)]
    for number in np.arange(len(batches)) if random is None else random.permutation(len(batches)):
        yield batches[number]
