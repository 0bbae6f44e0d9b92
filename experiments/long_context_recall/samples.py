"""What a task gives: a prompt of token ids, what is right, and how that is judged; and how prompts are put together.

Lengths are tokens of prompt and answer together, <bos> included, as in RULER. A prompt is put together from pieces of
ids, not of text, so that a million tokens take no longer than copying them. Every piece is tokenised as it reads inside
of running text (`running_ids`); a piece that begins with a space, as an inserted sentence does, has the same ids there
as in the whole text, since no common tokenizer makes a token across the beginning of a word. Where a template's line
breaks meet the context the whole text may have other tokens, of the same characters.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int32

from experiments.long_context_recall.haystacks import Haystack, running_ids
from zoo.data import Tokenizer
from zoo.errors import UserError

Ids = Int32[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One question about one long context."""

    task: str
    """Name in the registry."""
    prompt: Ids
    """<bos>, then everything up to where the answer begins. Never ends in a space: that is the answer's. Empty where
    `parts` are given."""
    references: tuple[str, ...]
    """What the answer has to hold; what of it, `metric` says."""
    answer: str
    """A right answer, in the form in which it goes on from the prompt."""
    max_new_tokens: int
    """The protocol's, or as many as the right answer has if these are more."""
    metric: str
    """Name in `scores.METRICS`."""
    candidates: tuple[str, ...] = ()
    """Answers to rank by likelihood, `answer` among them; none where the task has no single answer."""
    question: str = ""
    """The question alone, where the metric needs it."""
    facts: Mapping[str, int | float | str] = field(default_factory=dict)
    """What else a table may be sorted by, such as `depth`."""
    parts: tuple[Mapping[str, Any], ...] = ()
    """A prompt with media: parts of an interleaved document, as `zoo.data.load_media_prompt` takes them."""


@dataclass(frozen=True)
class Setting:
    """What all samples of one cell of a grid share."""

    tokenizer: Tokenizer
    """Of the model that is examined."""
    haystack: Haystack
    """Text to hide things in, tokenised by it."""
    length: int
    """Tokens of prompt and answer together."""
    seed: int = 0
    """Of everything that is drawn."""

    def random(self, task: str, number: int) -> np.random.Generator:
        """The same at every length and depth, so that a task's cells differ in these only."""
        return drawing(self.seed, task, number)


def drawing(seed: int, task: str, number: int) -> np.random.Generator:
    """The generator of one sample of a task."""
    return np.random.default_rng([seed, zlib.crc32(task.encode()), number])


@dataclass(frozen=True)
class Frame:
    """What stands around the context."""

    task: str
    """For messages."""
    before: Ids
    """With <bos>."""
    after: Ids
    """Up to the answer."""
    answer: Ids
    """The right answer."""
    max_new_tokens: int
    """See `Sample`."""
    room: int
    """Tokens left for the context."""

    def prompt(self, context: Sequence[Ids]) -> Ids:
        """The whole prompt."""
        return np.concatenate([self.before, *context, self.after]).astype(np.int32)


def frame(setting: Setting, task: str, before: str, after: str, answer: str, max_new_tokens: int) -> Frame:
    """Tokenises what stands around the context and says how much room is left for it (perhaps less than nothing)."""
    head = np.concatenate([[setting.tokenizer.bos_id], ids_of(setting, before)]).astype(np.int32)
    tail, right = ids_of(setting, after.rstrip(" ")), ids_of(setting, answer)
    new = max(max_new_tokens, len(right))
    return Frame(task, head, tail, right, new, setting.length - len(head) - len(tail) - new)


def ids_of(setting: Setting, text: str) -> Ids:
    """The ids of a short text inside of running text; the same text is not tokenised twice."""
    return _remembered(setting.tokenizer, text)


@lru_cache(maxsize=4096)
def _remembered(tokenizer: Tokenizer, text: str) -> Ids:
    ids = running_ids(tokenizer, text)
    ids.setflags(write=False)
    return ids


def candidate_ids(sample: Sample, tokenizer: Tokenizer) -> list[Ids]:
    """The tokens of each candidate, as they follow the prompt."""
    return [_remembered(tokenizer, candidate) for candidate in sample.candidates]


def training_record(sample: Sample) -> dict[str, Any]:
    """A sample with media as a line of an interleaved .jsonl file beside its media, for training: its answer counts."""
    return {"content": [*sample.parts, {"text": sample.answer}], "kind": sample.task}


def largest(cost: Callable[[int], int], room: int, least: int, task: str) -> int:
    """The largest n >= least with cost(n) <= room, by doubling and bisection; cost must not fall. Raises `UserError`
    where not even `least` has room."""
    too_short(task, cost(least), room)
    low, step = least, 1
    while cost(low + step) <= room:
        low, step = low + step, 2 * step
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= room else (low, middle)
    return low


def too_short(task: str, needed: int, room: int) -> None:
    """Raises `UserError` if there is less room than is needed."""
    if needed > room:
        raise UserError(
            f"{task}: {needed - room} tokens too few: the context takes at least {needed} tokens and has {max(room, 0)}"
            "; give a greater length"
        )


def distinct(draw: Callable[[], str], count: int, task: str, avoid: Sequence[str] = ()) -> list[str]:
    """`count` different draws, none of those to be avoided. Raises `UserError` where there are not so many."""
    found: dict[str, None] = {}
    for _ in range(100 * count + 1000):
        if len(found) == count:
            return list(found)
        if (drawn := draw()) not in avoid:
            found[drawn] = None
    raise UserError(f"{task}: only {len(found)} different keys or values can be drawn, {count} are needed")
