"""BABILong (Kuratov et al. 2024): facts of bAbI, in their order, scattered over the sentences of a long text.

The stories are told by a small world of our own in the manner of bAbI's tasks 1 to 3 (Weston et al. 2015), and the
instructions and solved examples are in our words. Template, background, labels and score are BABILong's, except that
lengths count the whole prompt and that it ends in "Answer:".
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from experiments.long_context_recall.haystacks import cut, sentence_gaps
from experiments.long_context_recall.samples import Ids, Sample, Setting, frame, ids_of, too_short
from experiments.long_context_recall.scores import PLACES
from zoo.errors import UserError

PEOPLE, ITEMS = ("Daniel", "John", "Mary", "Sandra"), ("apple", "football", "milk")
GO = ("moved to", "went to", "went back to", "travelled to", "journeyed to")
TAKE, DROP = ("got", "grabbed", "picked up", "took"), ("discarded", "dropped", "left", "put down")
TEMPLATE = (
    "{instruction}\n\n{examples}\n\n{post_prompt}\n\n<context>\n",
    "\n</context>\n\nQuestion: {question}\nAnswer:",
)
SHORTEST = 10
"""Tokens of a background sentence, at least."""

Kind = Literal["qa1", "qa2", "qa3"]


@dataclass(frozen=True)
class Task:
    """What is asked of a story."""

    instruction: str
    """What the context is."""
    examples: str
    """Solved stories, of other people and places."""
    post_prompt: str
    """The form of the answer."""
    facts: tuple[int, int]
    """Fewest and most sentences of a story."""


EXAMPLE = "<example>\n{story} {question}\nAnswer: {answer}\n</example>"
CARRY = "What somebody takes goes with them to every place until they put it down, and then stays there."
TASKS: dict[Kind, Task] = {
    "qa1": Task(
        "Somewhere in the text below there are sentences that say where people go. Answer the question from these "
        "sentences alone; where somebody was in several places, the latest counts.",
        EXAMPLE.format(
            story="Alan went to the beach. Rose moved to the garage. Alan travelled to the shop.",
            question="Where is Alan?",
            answer="The most recent location of Alan is shop.",
        ),
        "Answer in this form and write nothing else: The most recent location of PERSON is PLACE.",
        (2, 10),
    ),
    "qa2": Task(
        f"Somewhere in the text below there are sentences that say where people go and what they carry. {CARRY} Answer "
        "the question from these sentences alone.",
        EXAMPLE.format(
            story="Rose went to the shop. Rose got the bottle. Rose moved to the balcony.",
            question="Where is the bottle?",
            answer="The bottle is in the balcony.",
        ),
        "Answer in this form and write nothing else: The ITEM is in the PLACE.",
        (4, 16),
    ),
    "qa3": Task(
        f"Somewhere in the text below there are sentences that say where people go and what they carry. {CARRY} Answer "
        "the question from these sentences alone.",
        EXAMPLE.format(
            story="Rose went to the shop. Rose got the bottle. Rose moved to the balcony. Rose went to the garage.",
            question="Where was the bottle before the garage?",
            answer="Before the garage the bottle was in the balcony.",
        ),
        "Answer in this form and write nothing else: Before the PLACE the ITEM was in the PLACE.",
        (6, 24),
    ),
}


@dataclass
class World:
    """Where people and items are, and where each item has been."""

    places: dict[str, str] = field(default_factory=dict)
    """Of people whose place was told."""
    carriers: dict[str, str] = field(default_factory=dict)
    """Who carries an item."""
    been: dict[str, list[str]] = field(default_factory=dict)
    """Places of an item, each once in a row, from where it was first taken."""


@dataclass(frozen=True)
class Story:
    """Sentences and a question about them."""

    sentences: tuple[str, ...]
    """In the order of time."""
    question: str
    """Has one answer."""
    place: str
    """The answer's place."""
    answer: str
    """As a sentence."""


def tell(kind: Kind, random: np.random.Generator) -> Story:
    """A random story with a question whose answer is known from it."""
    fewest, most = TASKS[kind].facts
    choose = lambda names: names[random.integers(len(names))]  # noqa: E731
    while True:
        world, sentences = World(), []
        for _ in range(int(random.integers(fewest, most + 1))):
            sentences.append(_step(kind, world, choose))
        if found := _questions(kind, world):
            return Story(tuple(sentences), *choose(found))


def _step(kind: Kind, world: World, choose) -> str:
    person = choose(PEOPLE)
    carried = [item for item, carrier in world.carriers.items() if carrier == person]
    free = [item for item in ITEMS if item not in world.carriers and person in world.places
            and world.been.get(item, [world.places[person]])[-1] == world.places[person]]  # fmt: skip
    acts = ["go", "go"] + ([] if kind == "qa1" else ["take"] * 2 * bool(free) + ["drop"] * bool(carried))
    act = choose(acts)
    if act == "take":
        item = choose(free)
        world.carriers[item] = person
        world.been.setdefault(item, [world.places[person]])
        return f"{person} {choose(TAKE)} the {item}."
    if act == "drop":
        item = choose(carried)
        del world.carriers[item]
        return f"{person} {choose(DROP)} the {item}."
    place = choose([place for place in PLACES if place != world.places.get(person)])
    world.places[person] = place
    for item in carried:
        world.been[item].append(place)
    return f"{person} {choose(GO)} the {place}."


def _questions(kind: Kind, world: World) -> list[tuple[str, str, str]]:
    """(question, place, answer) of all that can be asked."""
    if kind == "qa1":
        return [(f"Where is {person}?", place, f"The most recent location of {person} is {place}.")
                for person, place in world.places.items()]  # fmt: skip
    if kind == "qa2":
        return [(f"Where is the {item}?", been[-1], f"The {item} is in the {been[-1]}.")
                for item, been in world.been.items()]  # fmt: skip
    return [
        (f"Where was the {item} before the {after}?", before, f"Before the {after} the {item} was in the {before}.")
        for item, been in world.been.items()
        for before, after in zip(been, been[1:], strict=False)
        if been.count(after) == 1  # else it would not be clear which time is meant
    ]


def question_in_background(kind: Kind, task: str, setting: Setting, number: int) -> Sample:
    """A story whose sentences stand, in their order, in random gaps between the sentences of the haystack."""
    if kind not in TASKS:
        raise UserError(f"{task}: no task {kind!r}; known are {', '.join(TASKS)}")
    random = setting.random(task, number)
    sentence, story, asked = int(random.integers(2**31)), tell(kind, random), TASKS[kind]
    before = TEMPLATE[0].format(
        instruction=asked.instruction, examples=asked.examples, post_prompt=asked.post_prompt
    )  # fmt: skip
    framed = frame(setting, task, before, TEMPLATE[1].format(question=story.question), f" {story.answer}", 20)
    facts = [ids_of(setting, f" {fact}") for fact in story.sentences]
    needed = sum(map(len, facts))
    too_short(task, needed + SHORTEST, framed.room)
    background = sentences_of(setting, framed.room - needed, sentence)
    gaps = np.sort(random.integers(0, len(background) + 1, len(facts)))
    parts, given = [], 0
    for i, piece in enumerate([*background, np.empty(0, np.int32)]):
        while given < len(facts) and gaps[given] == i:
            parts.append(facts[given])
            given += 1
        parts.append(piece)
    return Sample(
        task=task,
        prompt=framed.prompt(parts),
        references=(story.place,),
        answer=f" {story.answer}",
        max_new_tokens=framed.max_new_tokens,
        metric="babilong",
        question=story.question,
        facts={"length": setting.length, "facts": len(facts)},
    )


def sentences_of(setting: Setting, length: int, sentence: int) -> list[Ids]:
    """`length` tokens of sentences from one of them on, those below `SHORTEST` left out, the last cut."""
    spare = 2
    while True:
        ids, ends = cut(setting.haystack, spare * length, sentence)
        pieces = np.split(ids, sentence_gaps(ends, len(ids))[1:-1])
        kept = [piece for piece in pieces if len(piece) >= SHORTEST]
        counts = np.cumsum([len(piece) for piece in kept])
        if len(kept) and counts[-1] >= length:
            last = int(np.searchsorted(counts, length))
            return [*kept[:last], kept[last][: length - (int(counts[last - 1]) if last else 0)]]
        spare *= 2
        if spare > 64:
            raise UserError(f"{setting.haystack.name}: hardly any sentence has {SHORTEST} tokens or more")
