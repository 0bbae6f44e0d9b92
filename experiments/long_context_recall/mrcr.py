"""Several requests in one conversation that read the same: multi-round co-reference resolution (MRCR).

As OpenAI's version of the task of Michelangelo (Vodrahalli et al. 2024): a long conversation of "Write a FORMAT about
TOPIC" turns, some of which are the same request, and at the end "Prepend STRING to the i-th FORMAT about TOPIC". There
replies are a language model's and turns are chat messages; here they are paragraphs of the haystack, about anything,
and the conversation is plain text, so that it can be made for any length and for models without a chat format.
"""

import string
from dataclasses import dataclass

import numpy as np

from experiments.long_context_recall.samples import Sample, Setting, distinct, frame, ids_of, too_short
from experiments.long_context_recall.words import FORMATS, NOUNS, with_article
from zoo.errors import UserError

TURN = "User: Write {request}.\n\nModel: {reply}\n\n"
LAST = (
    "User: Prepend {prefix} to the {ordinal} (1 indexed) {request}. Do not include any other text in your response."
    "\n\nModel:"
)
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th")


@dataclass(frozen=True)
class Mrcr:
    """A conversation."""

    same: int = 2
    """Requests that read the same; one of their replies is asked for."""
    similar: float = 0.5
    """Share of the other requests that have the same format or the same topic."""
    prefix: int = 10
    """Characters of the random string."""
    shortest: int = 100
    """Characters of a reply."""
    longest: int = 800
    """Characters of a reply."""


def conversation(config: Mrcr, task: str, setting: Setting, number: int) -> Sample:
    """The i-th of several replies to the same request, word by word."""
    random = setting.random(task, number)
    if not 1 <= config.same <= len(ORDINALS):
        raise UserError(f"{task}: same must lie in 1 .. {len(ORDINALS)}, got {config.same}")
    parts = [part for part in setting.haystack.paragraphs if config.shortest <= len(part) <= config.longest]
    if len(set(parts)) < config.same + 1:
        raise UserError(
            f"{task}: {setting.haystack.name} has {len(set(parts))} different paragraphs of {config.shortest} to "
            f"{config.longest} characters, {config.same + 1} are needed"
        )
    replies = distinct(lambda: parts[random.integers(len(parts))], config.same, task)
    form, topic = FORMATS[random.integers(len(FORMATS))], NOUNS[random.integers(len(NOUNS))]
    asked = int(random.integers(config.same))
    prefix = "".join((string.ascii_letters + string.digits)[i] for i in random.integers(0, 62, config.prefix))
    question = LAST.format(prefix=prefix, ordinal=ORDINALS[asked], request=f"{form} about the {topic}")
    answer = f" {prefix}{replies[asked]}"
    framed = frame(setting, task, "", question, answer, 0)
    turns = [ids_of(setting, TURN.format(request=request(form, topic), reply=reply)) for reply in replies]
    needed = sum(map(len, turns))
    too_short(task, needed + 1, framed.room)
    room, others = framed.room - needed, []
    while True:
        reply = parts[random.integers(len(parts))]
        other = TURN.format(request=request(*other_request(config, form, topic, random)), reply=reply)
        if reply in replies:
            continue
        room -= len(ids_of(setting, other))
        if room < 0:
            break
        others.append(ids_of(setting, other))
    places = np.sort(random.integers(0, len(others) + 1, config.same))
    before = sum(map(len, others[: places[asked]])) + sum(map(len, turns[:asked]))
    for place, turn in sorted(zip(places, turns, strict=True), key=lambda pair: pair[0], reverse=True):
        others.insert(int(place), turn)
    return Sample(
        task=task,
        prompt=framed.prompt(others),
        references=(prefix, replies[asked]),
        answer=answer,
        max_new_tokens=framed.max_new_tokens,
        metric="mrcr",
        question=question,
        facts={
            "length": setting.length,
            "depth": 100 * before / sum(map(len, others)),
            "turns": len(others),
            "same": config.same,
            "asked": asked + 1,
        },
    )


def request(form: str, topic: str) -> str:
    """ "a poem about the lantern"."""
    return f"{with_article(form)} about the {topic}"


def other_request(config: Mrcr, form: str, topic: str, random: np.random.Generator) -> tuple[str, str]:
    """(format, topic), not both as asked for; one of them with probability `similar`."""
    others = [f for f in FORMATS if f != form], [t for t in NOUNS if t != topic]
    drawn = tuple(names[random.integers(len(names))] for names in others)
    if random.random() < config.similar:
        return (form, drawn[1]) if random.random() < 0.5 else (drawn[0], topic)
    return drawn[0], drawn[1]
