"""Prompts as data: what a model is given, what it is asked, and the answer that would be right.

Contexts are made of sections, lists of entries or sentences or passages. A prompt that is longer than its budget of
tokens keeps the same share of every section.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from zoo.data import Tokenizer
from zoo.errors import UserError

Direction = Literal["from English", "into English"]
DIRECTIONS: tuple[Direction, ...] = ("from English", "into English")

Count = Callable[[str], int]
"""Tokens of a text."""


@dataclass(frozen=True)
class Prompt:
    """One question about one sentence."""

    condition: str
    """What the context holds."""
    context: tuple[str, ...]
    """The text before the question, in pieces that are tokenised one by one."""
    question: str
    """Ends where the answer begins."""
    source: str
    """The sentence to be translated."""
    reference: str
    """Its translation."""

    @property
    def text(self) -> str:
        """All that a model is given."""
        return "".join(self.context) + self.question


@dataclass(frozen=True)
class Section:
    """A part of a context, of which less may be kept."""

    head: str
    items: tuple[str, ...]
    """In the order in which they are given."""
    foot: str = ""
    ranks: tuple[int, ...] = ()
    """How early each item is left out, the highest first; () = from the end."""

    @property
    def pieces(self) -> tuple[str, ...]:
        """Its text."""
        return tuple(piece for piece in (self.head, *self.items, self.foot) if piece)


def cut_sections(sections: Sequence[Section], budget: int, count: Count) -> tuple[Section, ...]:
    """The largest share of each section's items, the same for all of them, that fits into a budget of tokens.

    Tokens are those of the pieces, added up. Raises `UserError` if the heads and feet alone are too long."""
    fixed = sum(count(section.head) + count(section.foot) for section in sections)
    if fixed > budget:
        raise UserError(f"a budget of {budget:,} tokens is below the {fixed:,} of the question and the headings")
    costs = [[count(item) for item in section.items] for section in sections]
    longest = max((len(section.items) for section in sections), default=0)

    def kept(level: int) -> list[list[int]]:
        return [_first_items(section, -(-len(section.items) * level // longest)) for section in sections]

    def fits(level: int) -> bool:
        chosen = kept(level)
        return fixed + sum(cost[i] for cost, items in zip(costs, chosen) for i in items) <= budget

    low, high = 0, longest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    if longest == 0:
        return tuple(sections)
    return tuple(
        Section(section.head, tuple(section.items[i] for i in items), section.foot)
        for section, items in zip(sections, kept(low))
    )


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """Token ids, <bos> first; the pieces are tokenised one by one, as those of a training document are."""
    ids = [tokenizer.bos_id]
    for piece in (*prompt.context, prompt.question):
        ids += tokenizer.encode(piece)
    return ids


def counter(tokenizer: Tokenizer) -> Count:
    """Counts tokens, each different text once."""
    known: dict[str, int] = {}

    def count(text: str) -> int:
        if text not in known:
            known[text] = len(tokenizer.encode(text))
        return known[text]

    return count


def _first_items(section: Section, number: int) -> list[int]:
    ranks = section.ranks or range(len(section.items))
    return sorted(sorted(range(len(section.items)), key=lambda i: ranks[i])[:number])
