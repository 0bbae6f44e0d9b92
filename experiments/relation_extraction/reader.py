"""OpenNRE's JSON lines: one sentence with a marked head and tail entity and the relation that a knowledge base has.

    {"text": "Ada was born in Ulm.", "h": {"id": "Q1", "name": "Ada", "pos": [0, 3]},
     "t": {"id": "Q2", "name": "Ulm", "pos": [16, 19]}, "relation": "place_of_birth", "language": "en"}

`pos` is [start, end) in characters of `text`, or in words of a list `token` that stands in its place. `language` is
optional, but a corpus names it in all lines or in none. The public files are read with `eval` by their authors' code;
here they are JSON. Relations are a JSON object of names and numbers (OpenNRE's rel2id.json).
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import UserError, nearest_name

NA = "NA"
"""Name of the class "no relation that the knowledge base has"."""


@dataclass(frozen=True)
class Relations:
    """The classes of a corpus, numbered from 0."""

    names: tuple[str, ...]
    """In the order of their numbers."""

    @property
    def na(self) -> int | None:
        """The number of `NA`; None where the corpus has no negative examples."""
        return self.names.index(NA) if NA in self.names else None

    @property
    def positive(self) -> tuple[int, ...]:
        """The numbers of all relations but `NA`."""
        return tuple(number for number, name in enumerate(self.names) if name != NA)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Mention:
    """An entity where it stands in a sentence."""

    name: str
    """As the corpus calls it; it need not be what stands in the sentence."""
    id: str
    """What is the same for all mentions of the entity, and in a corpus of several languages ought to be in all."""
    start: int
    """First character in the sentence."""
    stop: int
    """One past the last."""


@dataclass(frozen=True)
class Instance:
    """One sentence, two entities in it, and the relation that distant supervision gives to them."""

    text: str
    """The sentence; a list of words is joined by blanks."""
    head: Mention
    """Subject of the relation; it may stand before or after the tail."""
    tail: Mention
    """Object of the relation."""
    relation: str
    """Name of the relation."""
    language: str | None
    """As the file says it; None where no line of the corpus does."""
    place: str
    """FILE, line N: for messages."""


def read_relations(path: Path) -> Relations:
    """The classes of a rel2id.json, {"NA": 0, "place_of_birth": 1, ..}; the numbers are 0 .. N - 1, each once.

    Raises `UserError` otherwise, with the file and the class.
    """
    found = _parsed(_read_text(path), str(path))
    if not isinstance(found, dict) or not found:
        raise UserError(f'{path}: need a JSON object of relations and numbers, like {{"NA": 0, "spouse": 1}}')
    for name, number in found.items():
        if type(number) is not int or not 0 <= number < len(found):
            raise UserError(
                f"{path}: {name!r} has the number {number!r}; {len(found)} relations need 0 .. {len(found) - 1}"
            )
    names = sorted(found, key=found.__getitem__)
    for first, second in zip(names, names[1:]):
        if found[first] == found[second]:
            raise UserError(f"{path}: {first!r} and {second!r} have the same number {found[first]}")
    return Relations(tuple(names))


def read_instances(paths: Path | Sequence[Path], relations: Relations) -> list[Instance]:
    """All sentences of the files (.jsonl, .txt; .gz as well), in their order; blank lines are left out.

    Raises `UserError` with file and line for a line that is no JSON object, a field that is missing or of another type,
    an empty sentence, a mention outside of its sentence or without characters, an unknown relation, a missing id, and a
    line that names its language where another one does not; with the file for one that cannot be read or is empty.
    """
    paths = [paths] if isinstance(paths, Path) else list(paths)
    known = frozenset(relations.names)
    instances: list[Instance] = []
    for path in paths:
        before = len(instances)
        for place, line in json_lines(path):
            instance = _instance(line, place)
            if instance.relation not in known:
                hint = nearest_name(instance.relation, relations.names)
                raise UserError(f"{place}: unknown relation {instance.relation!r}: {hint}")
            if instances and (instance.language is None) != (instances[0].language is None):
                named, other = sorted((instance, instances[0]), key=lambda one: one.language is None)
                raise UserError(
                    f"{other.place}: no language, but {named.place} says {named.language!r}; name it in all or none"
                )
            instances.append(instance)
        if len(instances) == before:
            raise UserError(f"{path}: no sentences")
    return instances


def _instance(line: dict, place: str) -> Instance:
    """The sentence of one JSON object."""
    text, starts, stops = _sentence(line, place)
    language = json_field(line, "language", str, place) if "language" in line else None
    relation = json_field(line, "relation", str, place)
    mentions = []
    for role in ("h", "t"):
        entity = json_field(line, role, dict, place)
        name, span = json_field(entity, "name", str, place, role), json_field(entity, "pos", list, place, role)
        if len(span) != 2 or any(type(number) is not int for number in span):
            raise UserError(f"{place}: {role}.pos must be two whole numbers, [start, end), got {span!r}")
        start, stop = span
        if not 0 <= start < stop <= len(starts):
            unit = "words" if "token" in line else "characters"
            raise UserError(
                f"{place}: {role}.pos = [{start}, {stop}] is not inside the sentence of {len(starts)} {unit}"
            )
        if not entity.get("id"):
            why = "names of one entity differ between languages" if language else "bags are made of equal ids"
            raise UserError(f"{place}: {role} ({name!r}) has no id; {why}")
        mentions.append(Mention(name, json_field(entity, "id", str, place, role), starts[start], stops[stop - 1]))
    return Instance(text, mentions[0], mentions[1], relation, language, place)


def _sentence(line: dict, place: str) -> tuple[str, Sequence[int], Sequence[int]]:
    """(the text, where the units that offsets count start in it, where they stop)."""
    if ("text" in line) == ("token" in line):
        raise UserError(f"{place}: need either 'text' (offsets in characters) or 'token' (offsets in words)")
    if "text" in line:
        text = json_field(line, "text", str, place)
        starts, stops = range(len(text)), range(1, len(text) + 1)
        if not text.strip():
            raise UserError(f"{place}: the sentence is empty")
        return text, starts, stops
    words = json_field(line, "token", list, place)
    if not all(isinstance(word, str) and word for word in words):
        raise UserError(f"{place}: 'token' must be a list of words")
    if not words:
        raise UserError(f"{place}: the sentence is empty")
    starts_of, stops_of, at = [], [], 0
    for word in words:
        starts_of.append(at)
        stops_of.append(at + len(word))
        at += len(word) + 1
    return " ".join(words), starts_of, stops_of


def json_field(values: dict, name: str, kind: type, place: str, of: str = "") -> Any:
    """values[name], where that is of this type (str, int, list or dict); `of` is where `values` stands, for messages.
    Raises `UserError` otherwise."""
    spelled = f"{of}.{name}" if of else name
    if name not in values:
        raise UserError(f"{place}: no field {spelled!r}")
    if not isinstance(values[name], kind) or isinstance(values[name], bool):
        wanted = {str: "a string", int: "a whole number", dict: "an object", list: "a list"}[kind]
        raise UserError(f"{place}: {spelled!r} must be {wanted}, got {json.dumps(values[name], ensure_ascii=False)}")
    return values[name]


def json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """(FILE, line N; the object) of every line that is not blank. `UserError` for what is no JSON object."""
    # Not splitlines(), which would split at characters that may stand in a sentence.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            found = _parsed(line, place)
            if not isinstance(found, dict):
                raise UserError(f"{place}: need a JSON object, got {type(found).__name__}")
            yield place, found


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON (column {error.colno}: {error.msg})") from None


def languages_of(instances: Iterable[Instance]) -> list[str]:
    """The languages that are named, in alphabetical order."""
    return sorted({instance.language for instance in instances if instance.language is not None})
