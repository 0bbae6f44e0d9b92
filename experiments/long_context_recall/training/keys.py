"""Keys of needles that a model is trained on: never one that the tests ask for.

The tests ask for cities that are held out, for made-up words of three syllables and for numbers of five digits.
Training has the other cities, words of two and four syllables, numbers of three, four and six digits, and keys that are
no words at all: one to four tokens of the vocabulary. These last are to make matching general: there are more of them
than a model of this size could learn by heart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from experiments.long_context_recall.haystacks import running_ids
from experiments.long_context_recall.words import cities, made_up_word
from zoo.data import Tokenizer

KeyKind = Literal["pieces", "words", "cities", "numbers", "unseen words", "unseen cities", "unseen numbers"]
TRAINED: tuple[KeyKind, ...] = ("pieces", "words", "cities", "numbers")
UNSEEN: tuple[KeyKind, ...] = ("unseen cities", "unseen words", "unseen numbers")
"""As the tests draw them (`needles.draw_key`)."""
SYLLABLES, TESTED_SYLLABLES = (2, 4), 3
NUMBER_DIGITS, TESTED_DIGITS = (3, 4, 6), 5
MOST_PIECES = 4

Key = tuple[int, ...]
"""Token ids, as they follow " magic"."""


@dataclass(frozen=True, eq=False)
class Keys:
    """Draws keys of one tokenizer."""

    tokenizer: Tokenizer
    """Of the model."""

    @cached_property
    def pieces(self) -> np.ndarray:
        """Ids of the tokens that random keys are made of: letters, with a space before them or not."""
        texts = [string.decode("utf-8", "replace") for string in self.tokenizer.token_strings()]
        return np.array([token for token, text in enumerate(texts) if text.removeprefix(" ").isalpha()], np.int32)

    @cached_property
    def held_out(self) -> frozenset[Key]:
        """Cities that training must not use."""
        return frozenset(self.encoded(city) for city in cities(held_out=True))

    def encoded(self, text: str) -> Key:
        """The ids of a key in running text."""
        return tuple(running_ids(self.tokenizer, f" {text}").tolist())

    def draw(self, kind: KeyKind, random: np.random.Generator) -> Key:
        """A key of this kind."""
        choose = lambda values: values[random.integers(len(values))]  # noqa: E731
        if kind == "unseen words":
            return self.encoded(made_up_word(random, TESTED_SYLLABLES).capitalize())
        if kind == "unseen numbers":
            return self.encoded(_number(TESTED_DIGITS, random))
        if kind == "unseen cities":
            return self.encoded(choose(cities(held_out=True)))
        while True:
            if kind == "pieces":
                key = tuple(self.pieces[random.integers(len(self.pieces), size=random.integers(1, MOST_PIECES + 1))]
                            .tolist())  # fmt: skip
            elif kind == "words":
                key = self.encoded(made_up_word(random, choose(SYLLABLES)).capitalize())
            elif kind == "numbers":
                key = self.encoded(_number(choose(NUMBER_DIGITS), random))
            elif kind == "cities":
                key = self.encoded(choose(cities(held_out=False)))
            else:
                raise ValueError(f"no such kind of key: {kind!r}")
            if key not in self.held_out:
                return key

    def distinct(self, kinds: Sequence[KeyKind], count: int, random: np.random.Generator) -> list[Key]:
        """`count` different keys, each of a kind drawn from `kinds`."""
        found: dict[Key, None] = {}
        while len(found) < count:
            found[self.draw(kinds[int(random.integers(len(kinds)))], random)] = None
        return list(found)


def _number(digits: int, random: np.random.Generator) -> str:
    return str(random.integers(10 ** (digits - 1), 10**digits))
