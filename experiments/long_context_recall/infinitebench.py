"""InfiniteBench's synthetic tasks (Zhang et al. 2024): a pass key or a string of digits in noise, a pair in JSON; and
key-value pairs at the beginning of a long context, as in the Gemini 1.0 report.

Prompts are InfiniteBench's for models that are not tuned to follow instructions (they end in the beginning of the
answer). There the amount of noise goes with fixed lengths (326 sentences for 8k, 5,220 for 128k), here as much is taken
as has room. The form of Gemini's key-value task is not published: ours is below.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import numpy as np

from experiments.long_context_recall.haystacks import NOISE, cut
from experiments.long_context_recall.needles import drawn_depth
from experiments.long_context_recall.samples import Sample, Setting, distinct, frame, ids_of, largest, too_short
from experiments.long_context_recall.words import adjective_noun

PASSKEY_BEFORE = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
    "about the important information there.\n\n"
)
NUMBER_BEFORE = (
    "There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz you about the important "
    "information there.\n\n"
)
KV_BEFORE = "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n{"


def passkey_digits(random: np.random.Generator) -> str:
    """Five digits, the first may be 0."""
    return "".join(map(str, random.integers(0, 10, 5)))


def repeated_digits(random: np.random.Generator) -> str:
    """Five random digits, then five times one of them doubled in its place."""
    digits = list(passkey_digits(random))
    for _ in range(5):
        place = int(random.integers(len(digits)))
        digits.insert(place, digits[place])
    return "".join(digits)


@dataclass(frozen=True)
class Digits:
    """A task with digits in noise."""

    before: str
    """Prompt."""
    line: str
    """What is hidden; {key} twice."""
    after: str
    """Question and lead of the answer."""
    draw: Callable[[np.random.Generator], str]
    """The key."""
    max_new_tokens: int
    """Of the answer."""


PASSKEY = Digits(
    PASSKEY_BEFORE,
    "The pass key is {key}. Remember it. {key} is the pass key.\n",
    "\nWhat is the pass key?\n\nThe pass key is",
    passkey_digits,
    6,
)
NUMBER_STRING = Digits(
    NUMBER_BEFORE,
    "The sequence of digits is {key}. Remember it. {key} is the sequence of digits.\n",
    "\nWhat is the sequence of digits?\n\nThe sequence of digits is",
    repeated_digits,
    12,
)


def digits_in_noise(config: Digits, task: str, setting: Setting, number: int, depth: float | None = None) -> Sample:
    """A key after round(depth / 100 * n) of n sentences of noise."""
    random = setting.random(task, number)
    depth, key = drawn_depth(depth, random), config.draw(random)
    framed = frame(setting, task, config.before, config.after, f" {key}", config.max_new_tokens)
    noise, line = ids_of(setting, NOISE + "\n"), ids_of(setting, config.line.format(key=key))
    count = largest(lambda n: n * len(noise), framed.room - len(line), 1, task)
    place = round(depth / 100 * count)
    wrong = distinct(partial(config.draw, random), 15, task, [key])
    return Sample(
        task=task,
        prompt=framed.prompt([np.tile(noise, place), line, np.tile(noise, count - place)]),
        references=(key,),
        answer=f" {key}",
        max_new_tokens=framed.max_new_tokens,
        metric="first_number",
        candidates=tuple(f" {each}" for each in (key, *wrong)),
        facts={"length": setting.length, "depth": depth, "sentences": count},
    )


def key_value(task: str, setting: Setting, number: int, depth: float | None = None) -> Sample:
    """One JSON object of UUIDs, as many pairs as have room; asked for is the pair at `depth`."""
    random = setting.random(task, number)
    depth, key, value = drawn_depth(depth, random), uuid(random), uuid(random)
    after = f'}}\n\nKey: "{key}"\nThe value associated with the specified key is:'
    framed = frame(setting, task, KV_BEFORE, after, f" {value}", 50)
    room = framed.room - len(ids_of(setting, f', "{key}": "{value}"'))
    too_short(task, framed.room - room, framed.room)
    pairs: list[tuple[str, str]] = []
    while True:
        pair = (uuid(random), uuid(random))
        room -= len(ids_of(setting, f', "{pair[0]}": "{pair[1]}"'))
        if room < 0:
            break
        pairs.append(pair)
    place = round(depth / 100 * len(pairs))
    pairs.insert(place, (key, value))
    pieces = [ids_of(setting, f'{", " if i else ""}"{a}": "{b}"') for i, (a, b) in enumerate(pairs)]
    return Sample(
        task=task,
        prompt=framed.prompt(pieces),
        references=(value,),
        answer=f" {value}",
        max_new_tokens=framed.max_new_tokens,
        metric="word_match",
        candidates=tuple(f" {each}" for each in (value, *(other for _, other in pairs if other != value))[:16]),
        facts={"length": setting.length, "depth": depth, "pairs": len(pairs)},
    )


def uuid(random: np.random.Generator) -> str:
    """A random UUID."""
    return str(UUID(bytes=random.bytes(16), version=4))


@dataclass(frozen=True)
class PairsFirst:
    """Gemini 1.0's synthetic retrieval (section 5.1.5): pairs at the beginning, long filler, then a key."""

    pairs: int = 8
    """Not published."""
    digits: int = 7
    """Of a value; not published."""


def pairs_first(config: PairsFirst, task: str, setting: Setting, number: int) -> Sample:
    """Key-value pairs, then running text that fills the context, then the question for one of them."""
    random = setting.random(task, number)
    sentence = int(random.integers(2**31))
    keys = distinct(lambda: adjective_noun(random), config.pairs, task)
    values = distinct(lambda: str(random.integers(10 ** (config.digits - 1), 10**config.digits)), config.pairs, task)
    asked = int(random.integers(config.pairs))
    before = "Remember these values.\n" + "".join(f"{key}: {value}\n" for key, value in zip(keys, values)) + "\n"
    question = f"What is the value of {keys[asked]}?"
    framed = frame(setting, task, before, f"\n\n{question}\n{keys[asked]}:", f" {values[asked]}", 16)
    too_short(task, 1, framed.room)
    filler, _ = cut(setting.haystack, framed.room, sentence)
    ranked = [values[asked], *(value for value in values if value != values[asked])]
    return Sample(
        task=task,
        prompt=framed.prompt([filler]),
        references=(values[asked],),
        answer=f" {values[asked]}",
        max_new_tokens=framed.max_new_tokens,
        metric="first_number",
        candidates=tuple(f" {value}" for value in ranked),
        question=question,
        facts={"length": setting.length, "pairs": config.pairs},
    )
