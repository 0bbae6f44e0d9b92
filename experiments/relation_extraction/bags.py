"""Bags: all sentences of an ordered pair of entities, with all relations that the corpus gives to the pair.

PARE (arXiv 2110.07415) makes its bags so for training and for testing. OpenNRE's baselines train on bags of (head,
tail, relation) instead; `per_relation` makes these.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int

from experiments.relation_extraction.reader import Instance, Relations

Pair = tuple[str, str]
"""Ids of (head, tail). The other order is another pair."""


@dataclass(frozen=True)
class Bag:
    """The different sentences of one pair."""

    pair: Pair
    """Ids of head and tail."""
    instances: tuple[Instance, ...]
    """In the order of the corpus; each sentence once. Their `relation` is the first that the corpus gave them."""
    relations: frozenset[str]
    """All that any line of the pair names, `NA` included."""

    def __post_init__(self):
        if not self.instances:
            raise ValueError(f"the bag of {self.pair} has no sentence")
        if not self.relations:
            raise ValueError(f"the bag of {self.pair} has no relation, not even NA")

    @property
    def languages(self) -> tuple[str, ...]:
        """Of its sentences, in alphabetical order; empty where the corpus names none."""
        return tuple(sorted({one.language for one in self.instances if one.language is not None}))

    def __len__(self) -> int:
        return len(self.instances)


def make_bags(instances: Iterable[Instance], *, across_languages: bool = True) -> list[Bag]:
    """The bags, in the order in which their pairs first occur.

    A sentence that repeats another of its bag, but for capitals and white space at its ends, is dropped and its
    relation kept: so do files say that a pair has several relations.

    Args:
      across_languages: a bag has the sentences of all languages; False: a bag for each language of a pair.
    """
    sentences: dict[tuple, dict[str, Instance]] = {}
    relations: dict[tuple, set[str]] = {}
    for one in instances:
        key = (one.head.id, one.tail.id, None if across_languages else one.language)
        sentences.setdefault(key, {}).setdefault(one.text.lower().strip(), one)
        relations.setdefault(key, set()).add(one.relation)
    return [Bag(key[:2], tuple(found.values()), frozenset(relations[key])) for key, found in sentences.items()]


def of_language(bags: Iterable[Bag], language: str) -> list[Bag]:
    """The bags with their sentences of this language only; those without any are left out. Relations stay."""
    parts = [(bag, tuple(one for one in bag.instances if one.language == language)) for bag in bags]
    return [replace(bag, instances=instances) for bag, instances in parts if instances]


def per_relation(bags: Iterable[Bag]) -> list[tuple[Bag, str]]:
    """OpenNRE's bags for training with a softmax: each bag once for each of its relations, in alphabetical order."""
    return [(bag, relation) for bag in bags for relation in sorted(bag.relations)]


def multi_hot(bags: Sequence[Bag], relations: Relations) -> Bool[np.ndarray, "bags relations"]:
    """Whether the bag has the relation, `NA` being a class like others."""
    labels = np.zeros((len(bags), len(relations)), bool)
    number = {name: index for index, name in enumerate(relations.names)}
    for row, bag in enumerate(bags):
        labels[row, [number[name] for name in bag.relations]] = True
    return labels


def sizes(bags: Sequence[Bag]) -> Int[np.ndarray, "bags"]:
    """Number of sentences."""
    return np.array([len(bag) for bag in bags], int)


def size_names(bags: Sequence[Bag], limits: Sequence[int] = (1, 2)) -> list[str]:
    """The group of each bag by its size: one for each limit, then all that is larger ("1", "2", "3+")."""
    found = []
    for count in sizes(bags):
        within = [limit for limit in limits if count <= limit]
        found.append(str(within[0]) if within else f"{limits[-1] + 1}+")
    return found


def language_names(bags: Sequence[Bag]) -> list[str]:
    """The languages of each bag, joined by "+"; "" where the corpus names none."""
    return ["+".join(bag.languages) for bag in bags]


def instances_of(bags: Iterable[Bag]) -> list[Instance]:
    """The lines of a file that has these bags: a sentence once for each relation of its bag."""
    return [replace(one, relation=name) for bag in bags for one in bag.instances for name in sorted(bag.relations)]


def size_counts(bags: Sequence[Bag]) -> dict[int, int]:
    """Bags by number of sentences, ascending."""
    return dict(sorted(Counter(map(len, bags)).items()))
