"""Which entries and sentences are nearest to a text: by character n-grams, and by the longest common substring."""

import math
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

from experiments.in_context_language.scores import normalise

ORDERS = (2, 3, 4)
"""Lengths of the n-grams."""
LONGEST = 12
"""Longest substring that is looked up."""


class Index(Protocol):
    """Finds texts."""

    def nearest(self, text: str, k: int) -> list[int]:
        """The numbers of the k nearest texts, the nearest first."""
        ...


class NgramIndex:
    """Cosine of the counts of character n-grams, each weighted by log((N + 1) / texts that have it)."""

    def __init__(self, texts: Sequence[str]):
        counts = [Counter(_ngrams(text)) for text in texts]
        frequency = Counter(gram for count in counts for gram in count)
        self._weights = {gram: math.log((1 + len(texts)) / number) for gram, number in frequency.items()}
        self._postings: dict[str, list[tuple[int, float]]] = {}
        for number, count in enumerate(counts):
            vector = self._vector(count)
            for gram, weight in vector.items():
                self._postings.setdefault(gram, []).append((number, weight))

    def nearest(self, text: str, k: int) -> list[int]:
        """The nearest by cosine; of equals the one that comes first."""
        scores: dict[int, float] = defaultdict(float)
        for gram, weight in self._vector(Counter(_ngrams(text))).items():
            for number, other in self._postings.get(gram, ()):
                scores[number] += weight * other
        return [number for number, _ in sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]]

    def _vector(self, count: Counter) -> dict[str, float]:
        raw = {gram: n * self._weights[gram] for gram, n in count.items() if self._weights.get(gram)}
        length = math.sqrt(sum(weight * weight for weight in raw.values())) or 1.0
        return {gram: weight / length for gram, weight in raw.items()}


class SubstringIndex:
    """Longest common substring with any word of a text, as MTOB looks up words."""

    def __init__(self, texts: Sequence[str]):
        self._lengths = [len(text) for text in texts]
        self._with: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            for part in {part for word in normalise(text).split() for part in _substrings(word)}:
                self._with.setdefault(part, []).append(number)

    def nearest(self, text: str, k: int) -> list[int]:
        """The texts that share the longest substring with the word `text`, the shortest first of equals."""
        found: dict[int, None] = {}
        parts = set(_substrings(normalise(text)))
        for length in range(LONGEST, 1, -1):
            level = {number for part in parts if len(part) == length for number in self._with.get(part, ())}
            found |= dict.fromkeys(sorted(level - set(found), key=lambda number: (self._lengths[number], number)))
            if len(found) >= k:
                break
        return list(found)[:k]


class CommonSubstringIndex:
    """Longest common substring of whole texts, spaces included."""

    def __init__(self, texts: Sequence[str]):
        lines = [f" {normalise(text)} " for text in texts]
        self._text = "\n".join(lines)
        self._starts = [0]
        for line in lines:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def nearest(self, text: str, k: int = 1) -> list[int]:
        """The text that shares the longest substring with this one, the first of equals; `k` must be 1."""
        assert k == 1, "only the nearest one is looked for"
        padded = f" {normalise(text)} "
        low, high, best = 0, len(padded), -1
        while low < high:  # a common substring has common substrings of every smaller length
            length = (low + high + 1) // 2
            parts = (padded[start : start + length] for start in range(len(padded) - length + 1))
            found = next((place for part in parts if (place := self._text.find(part)) >= 0), -1)
            low, high, best = (length, high, found) if found >= 0 else (low, length - 1, best)
        return [bisect(self._starts, best) - 1] if best >= 0 else []


def _ngrams(text: str) -> Iterable[str]:
    padded = f" {normalise(text)} "
    return (padded[i : i + n] for n in ORDERS for i in range(len(padded) - n + 1))


def _substrings(word: str) -> Iterable[str]:
    for length in range(2, min(len(word), LONGEST) + 1):
        for start in range(len(word) - length + 1):
            yield word[start : start + length]
