"""Inflection as edits of the lemma, so that an encoder alone writes the form: a sequence-to-sequence task as tagging.

A row is

    features | PREFIX slots | characters of the lemma | SUFFIX slots

and every place behind the features writes nothing, one character, or a copy of its own. The form is what the places
write, from left to right. Slots are empty places before and behind the lemma. What a pair needs is found by dynamic
programming: the cheapest way to write the form, where a copy costs nothing, a character in a slot 1, a character of
the lemma that writes nothing 1, and one that writes another 1.1. A character that comes in between moves what follows
by one place, which costs much; forms that are too long cannot be written at all (`Encoded.covered`).

Why not a decoder: forms are near copies of lemmas, and a small model learns to copy by position at once, but by
attention only after many steps; all families have one kind of model, so that the same adapters fit; and a form is
written in one pass, so that exact matches of thousands of test forms take a second.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

EMPTY, COPY, UNKNOWN = 0, 1, 2
"""Ids of nothing (and of padding), of a copy, and of a character that is not in the vocabulary. Two different unknown
characters are not told apart."""
PREFIX, SUFFIX = 6, 12
"""Slots before and behind a lemma."""
PREFIX_SLOT = 3
SUFFIX_SLOT = PREFIX_SLOT + PREFIX
FIRST_CHARACTER = SUFFIX_SLOT + SUFFIX
"""Ids of the first slots and of the first character. Every slot has an id of its own: with one for all, a model has to
count from the end of the lemma, and learned next to nothing."""
DROPPED, REPLACED = 1.0, 1.1
"""Costs; a character in a slot has 1."""


def edit_labels(lemma: Sequence[int], form: Sequence[int]) -> list[int] | None:
    """The cheapest labels of PREFIX + len(lemma) + SUFFIX places that write the form; None if there are none.

    lemma, form: ids of characters. A prefix ends, and a suffix begins, beside the lemma. Of equal costs that with more
    characters in the prefix is taken.
    """
    size, infinite = len(form), float("inf")
    # cost[j]: of having written form[:j] with the places so far.
    cost = [float(j) if j <= PREFIX else infinite for j in range(size + 1)]
    writes: list[list[bool]] = []
    for character in lemma:
        new, wrote = [cost[0] + DROPPED], [False]
        for j in range(1, size + 1):
            drop = cost[j] + DROPPED
            write = cost[j - 1] + (0.0 if form[j - 1] == character else REPLACED)
            new.append(min(drop, write))
            wrote.append(write < drop)
        cost = new
        writes.append(wrote)
    end = min(range(max(0, size - SUFFIX), size + 1), key=lambda j: cost[j] + size - j)
    if cost[end] == infinite:
        return None
    labels, j = list[int](), end
    for character, wrote in zip(reversed(lemma), reversed(writes), strict=True):
        if wrote[j]:
            j -= 1
            labels.append(COPY if form[j] == character else form[j])
        else:
            labels.append(EMPTY)
    suffix = size - end
    return [*[EMPTY] * (PREFIX - j), *form[:j], *reversed(labels), *form[end:], *[EMPTY] * (SUFFIX - suffix)]


def written(tokens: Int[np.ndarray, "n t"], labels: Int[np.ndarray, "n t"]) -> Int[np.ndarray, "n t"]:
    """The forms that labels write, ids of characters from the left, EMPTY behind them. Labels of what is no place of
    the edit are EMPTY already. A copy of a slot writes nothing."""
    own = np.where((tokens >= FIRST_CHARACTER) | (tokens == UNKNOWN), tokens, EMPTY)
    flat = np.where(labels == COPY, own, labels)
    order = np.argsort(flat == EMPTY, axis=1, kind="stable")
    return np.take_along_axis(flat, order, axis=1)
