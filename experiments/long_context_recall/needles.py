"""Needles in text: Gemini 1.5's magic numbers, one or up to a hundred of them, and the classic San Francisco needle.

The needle, the prompt and its last line are Gemini's (report of Gemini 1.5, section 5.2.1.1 and the prompt in its
appendix). How the question is worded, how long numbers are, and the prompt for many needles are not published: the
first is as in the public programs that replicate it, the last is ours.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.long_context_recall.haystacks import cut, insert, insertion_point
from experiments.long_context_recall.samples import Ids, Sample, Setting, distinct, frame, ids_of, too_short
from experiments.long_context_recall.words import cities, made_up_word
from zoo.errors import UserError

NEEDLE = "The special magic {key} number is: {value}."
BEFORE = "<context>\n"
QUESTION = "What is the special magic {key} number?"
AFTER = (
    "\n</context>\n{question} Don't give information outside the document or repeat your findings\n"
    "Here is the magic number from the context:"
)
ALL_QUESTION = "What are all the special magic numbers of the cities?"
ALL_AFTER = (
    "\n</context>\n{question} Don't give information outside the document or repeat your findings\n"
    "Here are the magic numbers from the context:"
)
CLASSIC_PLACE, CLASSIC_THING = "San Francisco", "eat a sandwich and sit in Dolores Park on a sunny day"
CLASSIC = "The best thing to do in {place} is {thing}."
CLASSIC_QUESTION = "What is the best thing to do in {place}?"
CLASSIC_OTHERS = (
    "take a boat to the old lighthouse and eat oysters on the quay",
    "climb the hill behind the station before the fog comes in",
    "drink coffee in the market and listen to the street musicians",
    "hire a bicycle and ride along the canal to the botanical garden",
    "spend a rainy day in the museum of clocks and bridges",
    "walk through the flower market and have soup in a cellar",
    "see the harbour at dawn and buy fresh bread at the corner",
)
"""Ours: what else one could do, to rank by likelihood."""

Keys = Literal["cities", "held-out cities", "made-up words", "numbers"]


@dataclass(frozen=True)
class Needles:
    """Which needles are hidden and asked for."""

    hidden: int = 1
    """Needles in the context."""
    asked: Literal["one", "all"] = "one"
    """Ask for one of them, or for all in one turn."""
    keys: Keys = "cities"
    """Cities that training may use, those that it must not, words in no list, or numbers of five digits."""
    digits: int = 7
    """Of a value. Not published; as in the public replications."""
    candidates: int = 16
    """Values to rank by likelihood: those of the other needles and numbers that are in no needle."""


def draw_key(keys: Keys, random: np.random.Generator) -> str:
    """A key of this kind."""
    if keys == "made-up words":
        return made_up_word(random).capitalize()
    if keys == "numbers":
        return str(random.integers(10_000, 100_000))
    known = cities(held_out=keys == "held-out cities")
    return known[random.integers(len(known))]


def draw_value(digits: int, random: np.random.Generator) -> str:
    """A number of so many digits; the first is not 0."""
    return str(random.integers(10 ** (digits - 1), 10**digits))


def key_values(config: Needles, task: str, random: np.random.Generator) -> list[tuple[str, str]]:
    """Different keys with different values."""
    if config.hidden < 1 or config.digits < 1 or config.candidates < 1:
        raise UserError(f"{task}: hidden, digits and candidates must be at least 1, got {config}")
    keys = distinct(lambda: draw_key(config.keys, random), config.hidden, task)
    values = distinct(lambda: draw_value(config.digits, random), config.hidden, task)
    return list(zip(keys, values, strict=True))


def magic_numbers(config: Needles, task: str, setting: Setting, number: int, depth: float | None = None) -> Sample:
    """A prompt with magic numbers hidden in running text.

    One needle is at `depth`; of several the first is, the others follow evenly up to the end (first_depth + i (100 -
    first_depth) / n, the rule of the multi-needle variant). If one of several is asked for, it is one drawn from all.
    """
    random = setting.random(task, number)
    sentence, depth = int(random.integers(2**31)), drawn_depth(depth, random)
    pairs = key_values(config, task, random)
    if config.asked == "all":
        question, after = ALL_QUESTION, ALL_AFTER
        asked, answer = pairs, "".join(f"\n{key}: {value}" for key, value in pairs)
    else:
        asked = [pairs[random.integers(len(pairs))]]
        question, after, answer = QUESTION.format(key=asked[0][0]), AFTER, f" {asked[0][1]}"
    hidden = [(f" {NEEDLE.format(key=key, value=value)}") for key, value in pairs]
    depths = [depth + i * (100 - depth) / len(pairs) for i in range(len(pairs))]
    framed = frame(setting, task, BEFORE, after.format(question=question), answer, 16 if len(asked) == 1 else 0)
    context, reached = hide(setting, task, framed.room, sentence, [ids_of(setting, text) for text in hidden], depths)
    others = [value for _, value in pairs if value != asked[0][1]]
    wanted = unused_values(config, len(others))
    others += distinct(lambda: draw_value(config.digits, random), wanted, task, [value for _, value in pairs])
    ranked = (answer, *(f" {value}" for value in others[: config.candidates - 1])) if config.asked == "one" else ()
    where = pairs.index(asked[0])
    return Sample(
        task=task,
        prompt=framed.prompt([context]),
        references=tuple(value for _, value in asked),
        answer=answer,
        max_new_tokens=framed.max_new_tokens,
        metric="first_number" if config.asked == "one" else "numbers_found",
        candidates=ranked,
        question=question,
        facts={
            "length": setting.length,
            "depth": depths[where],
            "token": len(framed.before) + reached[where],
            "hidden": len(pairs),
            "key": asked[0][0],
        },
    )


def unused_values(config: Needles, others: int) -> int:
    """How many values that are in no needle are candidates; of few digits there are not many."""
    free = 9 * 10 ** (config.digits - 1) - config.hidden
    return max(0, min(config.candidates - 1 - others, free // 2))


def classic(task: str, setting: Setting, number: int, depth: float | None = None) -> Sample:
    """Kamradt's needle, as a sentence of running text instead of a line of its own. His judge, a language model, is
    replaced by looking for the answer's words, and by ranking it among other things that one could do."""
    random = setting.random(task, number)
    sentence, depth = int(random.integers(2**31)), drawn_depth(depth, random)
    question, lead = CLASSIC_QUESTION.format(place=CLASSIC_PLACE), f"The best thing to do in {CLASSIC_PLACE} is"
    after = f"\n</context>\n{question}\n{lead}"
    framed = frame(setting, task, BEFORE, after, f" {CLASSIC_THING}.", 48)
    needle = ids_of(setting, " " + CLASSIC.format(place=CLASSIC_PLACE, thing=CLASSIC_THING))
    context, (reached,) = hide(setting, task, framed.room, sentence, [needle], [depth])
    return Sample(
        task=task,
        prompt=framed.prompt([context]),
        references=(CLASSIC_THING,),
        answer=f" {CLASSIC_THING}.",
        max_new_tokens=framed.max_new_tokens,
        metric="exact_span",
        candidates=tuple(f" {thing}." for thing in (CLASSIC_THING, *CLASSIC_OTHERS)),
        question=question,
        facts={"length": setting.length, "depth": depth, "token": len(framed.before) + reached},
    )


def drawn_depth(depth: float | None, random: np.random.Generator) -> float:
    """The depth asked for; drawn between 0 and 100 if there is none. It draws in both cases, so that what is drawn
    after it is the same at every depth."""
    drawn = float(random.uniform(0, 100))
    return drawn if depth is None else float(depth)


def hide(
    setting: Setting, task: str, room: int, sentence: int, needles: list[Ids], depths: list[float]
) -> tuple[Ids, list[int]]:
    """(context of exactly `room` tokens, first token of each needle in it). The text is cut so that it and the needles
    fill the room; depths are those in the text alone. Raises `UserError` if the needles have no room."""
    too_short(task, sum(map(len, needles)) + 1, room)
    text = room - sum(map(len, needles))
    ids, ends = cut(setting.haystack, text, sentence)
    places = [insertion_point(ends, text, depth) for depth in depths]
    order = sorted(range(len(needles)), key=lambda i: places[i])
    first, before = [0] * len(needles), 0
    for i in order:
        first[i], before = places[i] + before, before + len(needles[i])
    return insert(ids, [(places[i], needles[i]) for i in order]), first
