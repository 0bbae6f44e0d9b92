"""What there is to learn Kalamang and Lojban from, read from the optional folder `shared` (its SOURCE.txt files name
licences and commits), and the sentences that are held out for testing.

Nothing that holds a test sentence, or its translation, is left in the material: not a sentence, not a line of the book.
"""

import csv
import dataclasses
import json
import lzma
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.in_context_language.prompts import Direction
from experiments.in_context_language.scores import normalise
from zoo.errors import UserError

TESTS = 50
"""Sentences for each direction."""
LONGEST_TEST, SHORTEST_TEST = 20, 3
"""Words of a test sentence, on both sides."""


@dataclass(frozen=True)
class Pair:
    """A sentence and its translation."""

    foreign: str
    english: str


@dataclass(frozen=True)
class Entry:
    """A line of a word list."""

    word: str
    english: str
    part: str = ""
    """Of speech."""


@dataclass(frozen=True)
class Paragraph:
    """A piece of a book."""

    text: str
    is_example: bool
    """Belongs to an example sentence: the sentence, its glosses or its translation."""


@dataclass(frozen=True)
class Material:
    """All that may be told of a language, and the test."""

    language: str
    book_title: str
    entries: tuple[Entry, ...]
    sentences: tuple[Pair, ...]
    """Not those of the book."""
    chapters: tuple[tuple[Paragraph, ...], ...]
    """The book."""
    book_examples: tuple[Pair, ...]
    """The book's example sentences, without glosses."""
    tests: dict[Direction, tuple[Pair, ...]]
    """Other sentences for each direction."""


def load_kalamang(shared: Path) -> Material:
    """Visser's grammar and dictionary, CC BY 4.0. The test sentences are not those of MTOB: a score here is
    not one of its."""
    folder = _folder(shared, "kalamang_grammar_dictionary")
    held_out = _json_lines(folder / "sentences_test.jsonl")
    tests: dict[Direction, tuple[Pair, ...]] = {
        "into English": tuple(Pair(r["kgv"], r["eng"]) for r in held_out if r["direction"] == "kgv->eng"),
        "from English": tuple(Pair(r["kgv"], r["eng"]) for r in held_out if r["direction"] == "eng->kgv"),
    }
    with open(folder / "dictionary.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    material = Material(
        "Kalamang",
        "A grammar of Kalamang",
        tuple(Entry(row["headword"], row["english"], row["pos"]) for row in rows if row["headword"] and row["english"]),
        tuple(Pair(r["kgv"], r["eng"]) for r in _json_lines(folder / "sentences_train.jsonl")),
        tuple(_with_interlinear(chapter) for chapter in _chapters(folder / "grammar.txt.xz")),
        tuple(Pair(_plain(r["kgv"]), r["eng"]) for r in _json_lines(folder / "grammar_igt.jsonl") if r["eng"]),
        tests,
    )
    return without_tests(material)


def load_lojban(shared: Path, seed: int = 0) -> Material:
    """The Complete Lojban Language, a notice like CC BY-SA. A constructed language: its book is all there is to know.

    The test is drawn from the book's examples, the others are the sentences. The word list is made of the definitions
    in the book and of the glosses of examples that are not for testing."""
    folder = _folder(shared, "lojban_cll")
    records = _json_lines(folder / "examples.jsonl")
    pairs = [Pair(_plain(r["jbo"]), r["eng"]) for r in records if r["eng"]]
    good = sorted({pair for pair in pairs if _is_testable(pair)}, key=lambda pair: (pair.foreign, pair.english))
    drawn = random.Random(seed).sample(good, 2 * TESTS)
    lines = {normalise(r[field]) for r in records for field in ("jbo", "gloss", "eng") if r[field]}
    chapters = tuple(
        tuple(Paragraph(line, normalise(line) in lines) for line in chapter.splitlines() if line.strip())
        for chapter in _chapters(folder / "cll.txt.xz")
    )
    held_out = {pair.foreign for pair in drawn}
    glossed = [r for r in records if r["gloss"] and _plain(r["jbo"]) not in held_out]
    entries = {entry.word: entry for entry in (*_from_glosses(glossed), *_definitions(chapters))}
    material = Material(
        "Lojban",
        "The Complete Lojban Language",
        tuple(entries[word] for word in sorted(entries)),
        tuple(dict.fromkeys(pairs)),
        chapters,
        (),
        {"into English": tuple(drawn[:TESTS]), "from English": tuple(drawn[TESTS:])},
    )
    return without_tests(material)


def without_tests(material: Material) -> Material:
    """The material less all that holds a test sentence or the translation of one."""
    held_out = HeldOut(pair for pairs in material.tests.values() for pair in pairs)

    def clean(*texts: str) -> bool:
        return not any(held_out.found_in([text]) for text in texts)

    def clean_chapter(chapter: tuple[Paragraph, ...]) -> tuple[Paragraph, ...]:
        # A sentence may go over several lines, and what was apart may come together where lines are left out.
        while bad := {i for _, where in held_out.found_in([paragraph.text for paragraph in chapter]) for i in where}:
            chapter = tuple(paragraph for i, paragraph in enumerate(chapter) if i not in bad)
        return chapter

    return dataclasses.replace(
        material,
        entries=tuple(entry for entry in material.entries if clean(entry.english)),
        sentences=tuple(pair for pair in material.sentences if clean(pair.foreign, pair.english)),
        chapters=tuple(map(clean_chapter, material.chapters)),
        book_examples=tuple(pair for pair in material.book_examples if clean(pair.foreign, pair.english)),
    )


class HeldOut:
    """Finds test sentences, and their translations, in texts; case and punctuation do not count."""

    def __init__(self, tests: Iterable[Pair]):
        texts = [tuple(normalise(text).split()) for pair in tests for text in (pair.foreign, pair.english)]
        self._start = min(map(len, texts))
        self._by_start: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for words in texts:
            self._by_start.setdefault(words[: self._start], []).append(words)

    def found_in(self, texts: Sequence[str]) -> list[tuple[str, range]]:
        """Those that stand in the texts, which follow upon each other, as whole words; with the numbers of the texts
        that each is in."""
        owners, words = [], []
        for number, text in enumerate(texts):
            own = normalise(text).split()
            words += own
            owners += [number] * len(own)
        found = []
        for i in range(len(words) - self._start + 1):
            for sought in self._by_start.get(tuple(words[i : i + self._start]), ()):
                if tuple(words[i : i + len(sought)]) == sought:
                    found.append((" ".join(sought), range(owners[i], owners[i + len(sought) - 1] + 1)))
        return found


def _folder(shared: Path, name: str) -> Path:
    folder = shared / "data" / name
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it is part of the optional folder `shared` (or of $ZOO_SHARED)")
    return folder


def _json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def _chapters(path: Path) -> list[str]:
    """The text of each chapter, without the line "===== name ====="."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return [chapter for chapter in re.split(r"^=====.*=====$", file.read(), flags=re.MULTILINE) if chapter.strip()]


def _with_interlinear(chapter: str) -> tuple[Paragraph, ...]:
    """Paragraphs; an example goes from (ex) or IGT: to TR:, and has at most five of them."""
    paragraphs, left = [], 0
    for text in (part.strip() for part in re.split(r"\n\s*\n", chapter)):
        if not text:
            continue
        if text.startswith(("(ex", "IGT:", "TR:")):
            left = 5
        paragraphs.append(Paragraph(text, left > 0))
        left = 0 if re.search(r"^TR:.", text, flags=re.MULTILINE) else max(0, left - 1)
    return tuple(paragraphs)


def _plain(foreign: str) -> str:
    """Without the marks of a linguist: = and - between morphemes, brackets, dashes that stand for nothing."""
    return " ".join(re.sub(r"(?<=\w)[=\-_](?=\w)", "", re.sub(r"[\[\]]|(?:^|\s)-(?=\s|$)", " ", foreign)).split())


def _is_testable(pair: Pair) -> bool:
    """Whether it is one whole sentence in plain words, neither too short nor too long, with one translation."""
    lengths = [len(text.split()) for text in (pair.foreign, pair.english)]
    odd = re.search(r"[\[\](){}…_:;\d]|\.\.\.|--", pair.foreign + pair.english) or re.search(r"[.?!]\s", pair.english)
    words = all(re.search(r"\w{4}", text) for text in (pair.foreign, pair.english))
    return not odd and words and min(lengths) >= SHORTEST_TEST and max(lengths) <= LONGEST_TEST


def _from_glosses(records: Sequence[dict]) -> list[Entry]:
    """For each word its commonest gloss, from the examples that have as many glosses as words."""
    found: dict[str, Counter] = {}
    for record in records:
        words, glosses = record["jbo"].split(), record["gloss"].split()
        if len(words) == len(glosses):
            for word, gloss in zip(words, glosses):
                meaning = gloss.replace("-", " ").strip(" .,;:?!()[]")
                if meaning and re.fullmatch(r"[a-z'.]+", word):
                    found.setdefault(word.strip("."), Counter())[meaning] += 1
    return [Entry(word, counts.most_common(1)[0][0]) for word, counts in found.items()]


def _definitions(chapters: Sequence[Sequence[Paragraph]]) -> list[Entry]:
    """Definitions of root words, written as the word, and below it "x1 ... x2 ..."."""
    found = []
    for chapter in chapters:
        for first, second in zip(chapter, chapter[1:]):
            if re.fullmatch(r"[a-z']{4,}", first.text) and second.text.startswith("x1 "):
                found.append(Entry(first.text, second.text))
    return found
