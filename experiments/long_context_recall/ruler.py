"""The synthetic tasks of RULER (Hsieh et al. 2024), prompts and sizes as in NVIDIA/RULER: needles, variables, words.

Different from it: adjectives and nouns are our own short lists, its essays are our haystack (novels), and lines of a
context are counted one by one, so that a prompt is at most one of them shorter than asked for (RULER goes in steps of
5 to 500). Keys that are asked for occur in no other needle.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import numpy as np

from experiments.long_context_recall.haystacks import NOISE, cut, insert, sentence_gaps
from experiments.long_context_recall.samples import Ids, Sample, Setting, distinct, frame, ids_of, largest, too_short
from experiments.long_context_recall.words import adjective_noun

Kind = Literal["words", "numbers", "uuids"]
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
DEPTHS = np.round(np.linspace(0, 100, 40)).astype(int)


@dataclass(frozen=True)
class Niah:
    """A needle task."""

    haystack: Literal["noise", "essay", "needles"]
    """What is around the needles: a repeated sentence, running text, or needles that nobody asks for."""
    keys: Kind = "words"
    """What is asked for."""
    values: Kind = "numbers"
    """What is answered."""
    num_keys: int = 1
    """Needles with different keys."""
    num_values: int = 1
    """Values of each key, each in a needle of its own."""
    num_queries: int = 1
    """Keys that are asked for."""


NIAH = {
    "ruler-niah-single-1": Niah("noise"),
    "ruler-niah-single-2": Niah("essay"),
    "ruler-niah-single-3": Niah("essay", values="uuids"),
    "ruler-niah-multikey-1": Niah("essay", num_keys=4),
    "ruler-niah-multikey-2": Niah("needles"),
    "ruler-niah-multikey-3": Niah("needles", keys="uuids", values="uuids"),
    "ruler-niah-multivalue": Niah("essay", num_values=4),
    "ruler-niah-multiquery": Niah("essay", num_keys=4, num_queries=4),
}


def draw(kind: Kind, random: np.random.Generator) -> str:
    """An adjective-noun, a number of seven digits, or a UUID."""
    if kind == "words":
        return adjective_noun(random)
    if kind == "numbers":
        return str(random.integers(10**6, 10**7))
    return str(UUID(bytes=random.bytes(16), version=4))


def niah_prompt(kind: Kind, queries: Sequence[str], answers: int) -> tuple[str, str, str]:
    """(before the context, question, lead of the answer), in the singular for one answer."""
    asked = queries[0] if len(queries) == 1 else f"{', '.join(queries[:-1])}, and {queries[-1]}"
    noun, are, all_the = (kind[:-1], "is", "the") if answers == 1 else (kind, "are", "all the")
    before = (
        f"{'A' if answers == 1 else 'Some'} special magic {noun} {are} hidden within the following text. Make sure to "
        f"memorize it. I will quiz you about the {noun} afterwards.\n"
    )
    question = f"What {are} {all_the} special magic {noun} for {asked} mentioned in the provided text?"
    return before, question, f" The special magic {noun} for {asked} mentioned in the provided text {are}"


def niah(config: Niah, task: str, setting: Setting, number: int) -> Sample:
    """RULER's needles: the value or values of one or more keys."""
    random = setting.random(task, number)
    sentence = int(random.integers(2**31))
    keys = distinct(lambda: draw(config.keys, random), config.num_keys, task)
    values = distinct(lambda: draw(config.values, random), config.num_keys * config.num_values, task)
    of_key = {key: values[i * config.num_values : (i + 1) * config.num_values] for i, key in enumerate(keys)}
    lines = [needle(config, key, value) for key in keys for value in of_key[key]]
    lines = [lines[i] for i in random.permutation(len(lines))]
    queries = [keys[i] for i in random.permutation(len(keys))[: config.num_queries]]
    references = tuple(value for key in queries for value in of_key[key])
    before, question, lead = niah_prompt(config.values, queries, len(references))
    answer = " " + ", ".join(references)
    essay = config.haystack == "essay"
    after = f"\n{question}{lead}" if essay else f"{question}{lead}"  # lines end in a line break of their own
    framed = frame(setting, task, before, after, answer, 128)
    if essay:
        hidden = [ids_of(setting, f" {line}") for line in lines]
        too_short(task, sum(map(len, hidden)) + 1, framed.room)
        text = framed.room - sum(map(len, hidden))
        ids, ends = cut(setting.haystack, text, sentence)
        gaps = sentence_gaps(ends, text)
        depths = np.sort(random.choice(DEPTHS, len(hidden), replace=False))
        context = insert(ids, [(int(gaps[int((len(gaps) - 1) * d / 100)]), h) for d, h in zip(depths, hidden)])
    else:
        context = among_lines(config, task, setting, random, lines, framed.room)
    return Sample(
        task=task,
        prompt=framed.prompt([context]),
        references=references,
        answer=answer,
        max_new_tokens=framed.max_new_tokens,
        metric="string_match_all",
        question=question,
        facts={"length": setting.length},
    )


def needle(config: Niah, key: str, value: str) -> str:
    """A needle's sentence."""
    return NEEDLE.format(kind=config.values, key=key, value=value)


def among_lines(
    config: Niah, task: str, setting: Setting, random: np.random.Generator, lines: list[str], room: int
) -> Ids:
    """The needles at random places among lines of noise, or of needles with other keys, as many as have room."""
    hidden = [ids_of(setting, line + "\n") for line in lines]
    room -= sum(map(len, hidden))
    if config.haystack == "noise":
        noise = ids_of(setting, NOISE + "\n")
        others = [noise] * largest(lambda n: n * len(noise), room, len(hidden), task)
    else:
        others, asked = [], {line.split(" is: ")[0] for line in lines}
        while True:
            drawn = needle(config, draw(config.keys, random), draw(config.values, random))
            if drawn.split(" is: ")[0] not in asked:
                ids = ids_of(setting, drawn + "\n")
                if len(ids) > room:
                    break
                others.append(ids)
                room -= len(ids)
        too_short(task, len(hidden) + 1, len(others) + 1)
    for place, ids in zip(sorted(random.choice(len(others), len(hidden), replace=False), reverse=True), hidden):
        others.insert(int(place), ids)
    return np.concatenate(others)


@dataclass(frozen=True)
class Variables:
    """Variable tracking (vt)."""

    hops: int = 4
    """Variables in the chain after the first."""
    letters: int = 5
    """Of a variable's name."""
    example_tokens: int = 500
    """Size of the solved example before the task, at most a quarter of the length; none where it has no room there."""
    example_letters: int = 3
    """Of a variable's name in the example."""


VT_BEFORE = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
VT_AFTER = (
    "Question: Find all variables that are assigned the value {value} in the text above. Answer: According to the "
    "chain(s) of variable assignment in the text above, {count} variables are assigned the value {value}, they are: "
)


def variables(config: Variables, task: str, setting: Setting, number: int) -> Sample:
    """One chain of assignments in noise; asked for are all variables that have its value."""
    random = setting.random(task, number)
    (shown, shown_value), (names, value) = (
        chain(config.hops + 1, letters, task, random) for letters in (config.example_letters, config.letters)
    )
    example: list[Ids] = []
    size = min(config.example_tokens, setting.length // 4)
    head, tail = ids_of(setting, VT_BEFORE), ids_of(setting, f"\n{vt_after(shown, shown_value)}{' '.join(shown)}\n\n")
    statements = assignments(setting, shown, shown_value)
    fixed = len(head) + len(tail) + sum(map(len, statements))
    # In sentences, not lines: so RULER does as well where there are few lines.
    sentences = [ids_of(setting, f" {sentence}.") for sentence in NOISE.removesuffix(".").split(". ")]
    rows = (size - fixed) // sum(map(len, sentences))
    if rows * len(sentences) >= len(statements):
        example = [head, *spread(statements, sentences * rows, random), tail]
    answer = " " + " ".join(names)
    framed = frame(setting, task, "", vt_after(names, value), answer, 30)
    statements, noise = assignments(setting, names, value), ids_of(setting, " " + NOISE + "\n")
    room = framed.room - sum(map(len, example)) - len(head) - sum(map(len, statements))
    count = largest(lambda n: n * len(noise), room, len(statements), task)
    return Sample(
        task=task,
        prompt=framed.prompt([*example, head, *spread(statements, [noise] * count, random)]),
        references=tuple(names),
        answer=answer,
        max_new_tokens=framed.max_new_tokens,
        metric="string_match_all",
        facts={"length": setting.length, "examples": int(bool(example))},
    )


def chain(count: int, letters: int, task: str, random: np.random.Generator) -> tuple[list[str], str]:
    """(names of upper-case letters, value of five digits)."""
    name = lambda: "".join(string.ascii_uppercase[i] for i in random.integers(0, 26, letters))  # noqa: E731
    return distinct(name, count, task), str(random.integers(10_000, 99_999))


def assignments(setting: Setting, names: list[str], value: str) -> list[Ids]:
    """VAR A = 12345, VAR B = VAR A, ..., each with the space before it."""
    values = [value, *(f"VAR {name}" for name in names)]
    return [ids_of(setting, f" VAR {name} = {given}") for name, given in zip(names, values)]


def vt_after(names: list[str], value: str) -> str:
    """Question and lead of the answer."""
    return VT_AFTER.format(value=value, count=len(names))


def spread(statements: list[Ids], noise: list[Ids], random: np.random.Generator) -> list[Ids]:
    """The statements in their order at random places of the noise, no two at the same."""
    places = np.sort(random.choice(len(noise), len(statements), replace=False))
    parts = list(noise)
    for offset, (place, statement) in enumerate(zip(places, statements)):
        parts.insert(int(place) + offset, statement)
    return parts
