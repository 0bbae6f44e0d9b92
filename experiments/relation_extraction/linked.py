"""Sentences with linked entities, and a knowledge base: what `build_dataset` reads, and describes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.relation_extraction.reader import NA, Mention, json_field, json_lines
from zoo.errors import UserError


@dataclass(frozen=True)
class LinkedSentence:
    """A sentence and the entities in it."""

    text: str
    """The sentence."""
    language: str
    """Its language."""
    mentions: tuple[Mention, ...]
    """In the order of the file; the name is what stands in the sentence."""
    place: str
    """FILE, line N."""


def read_sentences(paths: Sequence[Path]) -> Iterator[LinkedSentence]:
    """The sentences one after the other. `UserError` with file and line for a wrong field or offset."""
    for path in paths:
        for place, line in json_lines(path):
            text = json_field(line, "text", str, place)
            mentions = []
            for number, entry in enumerate(json_field(line, "mentions", list, place)):
                of = f"mentions[{number}]"
                if not isinstance(entry, dict):
                    raise UserError(f"{place}: {of} must be an object")
                start, stop = json_field(entry, "start", int, place, of), json_field(entry, "end", int, place, of)
                if not 0 <= start < stop <= len(text):
                    raise UserError(f"{place}: {of} = [{start}, {stop}) is not inside {len(text)} characters")
                mentions.append(Mention(text[start:stop], json_field(entry, "entity", str, place, of), start, stop))
            language = json_field(line, "language", str, place)
            yield LinkedSentence(text, language, tuple(mentions), place)


def read_facts(paths: Sequence[Path]) -> dict[tuple[str, str], tuple[str, ...]]:
    """The relations of every (head, tail), in alphabetical order. `UserError` with file and line for a wrong field, or
    a relation that is called like the class without one."""
    facts: dict[tuple[str, str], set[str]] = {}
    for path in paths:
        for place, line in json_lines(path):
            head, relation, tail = (json_field(line, name, str, place) for name in ("head", "relation", "tail"))
            if relation == NA:
                raise UserError(f"{place}: a relation cannot be called {NA!r}, which is the class without one")
            facts.setdefault((head, tail), set()).add(relation)
    return {pair: tuple(sorted(relations)) for pair, relations in facts.items()}
