"""Rows of facts: the shortest thing in which a word must be looked up, before there are word lists of a language.

    * red dog houses = k        some English words, and letters that mean nothing
    * under tiger = v
    ...
    * under tiger = v           the same again, drawn with replacement

A model that is given word lists at once learns to copy some word of the list, and stays there: which one is asked for
is what it does not find. Here the later words of a repeated left side count, too. They can be foretold by looking up
the words before them, in the same way as the right side, and there are more of them.
"""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from experiments.in_context_language.english import ENGLISH
from experiments.in_context_language.prompts import Prompt

WORDS = tuple(word for words in ENGLISH.values() for word in words)
Split = Literal["train", "test"]


@dataclass(frozen=True)
class FactsConfig:
    """What rows of facts hold."""

    facts: int = 4
    """Different ones in a row."""
    words: tuple[int, int] = (2, 6)
    """Fewest and most words on the left, drawn evenly."""
    letters: tuple[int, int] = (1, 1)
    """Fewest and most letters on the right."""


@dataclass(frozen=True)
class Facts:
    """A row."""

    pairs: tuple[tuple[str, str], ...]
    """(left, right), as they are told; no left side is there twice."""
    asked: tuple[tuple[str, str], ...]
    """Those that come again."""


def draw_facts(seed: int, split: Split, config: FactsConfig, asked: int) -> Facts:
    """The row of a seed; rows of the two splits differ."""
    generator = random.Random(f"facts {split} {seed}")
    pairs: dict[str, str] = {}
    while len(pairs) < config.facts:
        left = " ".join(generator.choices(WORDS, k=generator.randint(*config.words)))
        pairs.setdefault(left, "".join(generator.choices(string.ascii_lowercase, k=generator.randint(*config.letters))))
    told = tuple(pairs.items())
    return Facts(told, tuple(generator.choices(told, k=asked)))


def facts_record(facts: Facts) -> dict[str, Any]:
    """A line of interleaved JSONL, with loss on what can be looked up: of the facts that come again, the words after
    the first one and the right side."""
    parts = [(_told(facts.pairs), False)]
    for left, right in facts.asked:
        first, space, rest = left.partition(" ")
        parts += [*asked_again(first, space + rest), (" = ", False), (f"{right}\n", True)]
    return {"content": [{"text": text, "loss": loss} for text, loss in parts], "kind": "from English: facts"}


def asked_again(first: str, rest: str) -> list[tuple[str, bool]]:
    """(text, whether it counts) of a left side that stands in the text already: what follows its first token counts."""
    return [(f"* {first}", False), *([(rest, True)] if rest else [])]


def facts_prompts(facts: Facts) -> list[Prompt]:
    """What is asked again, each by itself."""
    told = (_told(facts.pairs),)
    return [Prompt("facts", told, f"* {left} = ", left, right) for left, right in facts.asked]


def _told(pairs: Sequence[tuple[str, str]]) -> str:
    return "".join(f"* {left} = {right}\n" for left, right in pairs)
