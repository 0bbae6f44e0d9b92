"""Dividing a corpus into train, val and test, with and without leaks, and counting what leaks.

A fact leaks if sentences of one pair of entities stand on both sides: the model can then know the pair's relation
without reading. `by_pair` prevents that in all languages (DiS-ReX); `by_language` divides every language by itself, as
RELX-Distant was, so that a test pair in one language can be a training pair in another one; `by_sentence` does not look
at pairs at all.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from experiments.relation_extraction.bags import Bag
from experiments.relation_extraction.reader import Instance

PARTS = ("train", "val", "test")
Shares = tuple[float, float, float]
"""Of train, val and test; their sum is 1."""


def _unordered(one: Instance) -> str:
    # (a, b) and (b, a) are different bags whose sentences are the same.
    return "\t".join(sorted((one.head.id, one.tail.id)))


def by_pair(one: Instance) -> str:
    """What divides a corpus: the pair, in any order and language."""
    return _unordered(one)


def by_language(one: Instance) -> str:
    """The pair in one language."""
    return f"{one.language}\t{_unordered(one)}"


def by_sentence(one: Instance) -> str:
    """The sentence; its relations stay together."""
    return f"{one.language}\t{_unordered(one)}\t{one.text}"


def divided(
    instances: Iterable[Instance],
    shares: Shares = (0.7, 0.1, 0.2),
    key: Callable[[Instance], str] = by_pair,
    seed: int = 0,
) -> dict[str, list[Instance]]:
    """The instances of each of `PARTS`: by a hash of their key, so that a pair's part does not depend on what else
    there is, and shares are met on average. ValueError for other shares."""
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"shares of train, val and test must sum to 1, got {shares}")
    parts: dict[str, list[Instance]] = {part: [] for part in PARTS}
    for one in instances:
        place = uniform(key(one), seed)
        parts[PARTS[0] if place < shares[0] else PARTS[1] if place < shares[0] + shares[1] else PARTS[2]].append(one)
    return parts


def uniform(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on the key and the seed alone."""
    digest = hashlib.blake2b(f"{seed}\t{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def overlaps(train: Sequence[Bag], test: Sequence[Bag]) -> dict[str, dict[str, int]]:
    """For every language of the test bags, how many have a pair (in any order) that training has, by the training's
    language; "" where languages are not named."""
    pairs: dict[str, set[frozenset[str]]] = {}
    for bag in train:
        for language in bag.languages or ("",):
            pairs.setdefault(language, set()).add(frozenset(bag.pair))
    counts: dict[str, dict[str, int]] = {}
    for bag in test:
        for language in bag.languages or ("",):
            row = counts.setdefault(language, dict.fromkeys(sorted(pairs), 0))
            for other, known in pairs.items():
                row[other] += frozenset(bag.pair) in known
    return dict(sorted(counts.items()))


def overlap_table(counts: Mapping[str, Mapping[str, int]], sizes: Mapping[str, int]) -> str:
    """Markdown: a row for each language of the test bags, with how many there are."""
    columns = sorted({other for row in counts.values() for other in row})
    lines = [f"| test bags | number | {' | '.join(f'also in {other} train' for other in columns)} |"]
    lines.append("|---|---|" + "---|" * len(columns))
    for language, row in counts.items():
        lines.append(f"| {language} | {sizes[language]:,} | {' | '.join(f'{row[other]:,}' for other in columns)} |")
    return "\n".join(lines)
