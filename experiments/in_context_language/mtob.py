"""Translation from one book (MTOB, Tanzer et al. 2023) with the prompt of the Gemini 1.5 report, section 12.16.13.

Contexts are sums of parts, such as "W+S+Gl":

    -    nothing
    W    the word list's two entries nearest to each word of the sentence        Wa   all of it
    S    two sentences nearest to each word of the sentence                      Sa   all of them
    Gs   the passages of the book nearest to the sentence                        G    all of it
    Gm   about 50,000 tokens of the book                                         Gl   about 100,000
    Ge   the example sentences of the book and nothing else                      Gt   its text without examples

The last two are the question of Aycock et al. (arXiv:2409.19151): whether it is the explanations that help.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from experiments.in_context_language.materials import Entry, Material, Pair, Paragraph
from experiments.in_context_language.prompts import Count, Direction, Prompt, Section, cut_sections
from experiments.in_context_language.retrieval import NgramIndex, SubstringIndex
from zoo.errors import UserError, nearest_name

PARTS = ("-", "W", "Wa", "S", "Sa", "Gs", "Gm", "Gl", "G", "Ge", "Gt")
CONDITIONS = ("-", "W", "S", "Gs", "Gm", "Gl", "W+S", "W+Gs", "S+Gs", "W+S+Gs", "W+S+Gm", "W+S+Gl", "Wa+Sa", "Wa+Sa+Gl",
              "Wa+Sa+G", "Ge", "Gt")  # fmt: skip
"""Those of MTOB, of Gemini 1.5 (whole word list and sentences) and of Aycock et al."""


@dataclass(frozen=True)
class Retrieval:
    """How much is looked up."""

    entries_per_word: int = 2
    sentences_per_word: int = 2
    passages: int = 8
    """Of the book."""
    passage_characters: int = 800
    """Paragraphs are joined up to about this length."""
    medium_tokens: int = 50_000
    """Of Gm."""
    long_tokens: int = 100_000
    """Of Gl."""


class Translator:
    """Makes the prompts of one language; the indices are built once."""

    def __init__(self, material: Material, count: Count, retrieval: Retrieval = Retrieval()):
        """count: tokens of a text, by the tokenizer of the model that is asked."""
        self.material, self.count, self.retrieval = material, count, retrieval

    def prompts(self, condition: str, direction: Direction, budget: int | None = None) -> list[Prompt]:
        """A prompt for each test sentence of the direction, of at most `budget` tokens, the question included.

        Raises `UserError` for an unknown part, for two parts of the same kind, for a part that there is no material
        for, and for a budget that the headings alone exceed."""
        parts = self._parse(condition)
        return [self._prompt(pair, condition, parts, direction, budget) for pair in self.material.tests[direction]]

    def sections(self, part: str, source: str, direction: Direction) -> Section:
        """What a part of the context consists of, for one sentence; no headings."""
        material, retrieval = self.material, self.retrieval
        if part == "Wa":
            return _items(_entry_line(entry, direction) for entry in material.entries)
        if part == "Sa":
            return _items(self._sentence_lines(pair, direction) for pair in material.sentences)
        if part == "W":
            found = [self._entry_index[direction].nearest(w, retrieval.entries_per_word) for w in source.split()]
            return _items(_entry_line(material.entries[i], direction) for i in _interleaved(found))
        if part == "S":
            index = self._sentence_index[direction]
            found = [index.nearest(word, retrieval.sentences_per_word) for word in source.split()]
            return _items(self._sentence_lines(material.sentences[i], direction) for i in _interleaved(found))
        if part == "Gs":
            return _items(self._passages[i] for i in self._passage_index.nearest(source, retrieval.passages))
        if part == "Ge":
            examples = material.book_examples or material.sentences
            return _items(self._sentence_lines(pair, direction) for pair in examples)
        section = self._text if part == "Gt" else self._book
        tokens = {"Gm": retrieval.medium_tokens, "Gl": retrieval.long_tokens}.get(part)
        if tokens is None:
            return section
        if part not in self._cut:
            (self._cut[part],) = cut_sections([section], tokens, self.count)
        return self._cut[part]

    def _parse(self, condition: str) -> list[str]:
        parts = condition.split("+")
        for part in parts:
            if part not in PARTS:
                raise UserError(f"context {condition!r}: no part {part!r}; {nearest_name(part, PARTS)}")
        if len({_kind(part) for part in parts}) < len(parts) or ("-" in parts and len(parts) > 1):
            raise UserError(f"context {condition!r}: one part of each kind at most, and '-' only by itself")
        have: dict[str, object] = {"W": self.material.entries, "S": self.material.sentences, "-": True}
        have |= {"G": self.material.chapters}
        for part in parts:
            if not have[_kind(part)]:
                raise UserError(f"context {condition!r}: there is nothing for {part!r} on {self.material.language}")
        return sorted(parts, key=lambda part: "-GWS".index(_kind(part)))

    def _prompt(self, pair: Pair, condition: str, parts: list[str], direction: Direction, budget: int | None) -> Prompt:
        language, title = self.material.language, self.material.book_title
        source, reference = (
            (pair.english, pair.foreign) if direction == "from English" else (pair.foreign, pair.english)
        )
        first, second = ("English", language) if direction == "from English" else (language, "English")
        kinds = [_kind(part) for part in parts]
        task = f'translating the following sentence from {first} to {second}: "{source}".'
        aids = [_AIDS[kind].format(first=first, second=second) for kind in kinds if kind != "-"]
        opening = f"You are tasked with {task}\n"
        opening += f"You will be given {_listed(aids)} to aid you.\n" if aids else ""
        texts = []
        for number, (part, kind) in enumerate(zip(parts, kinds) if aids else ()):
            last = number == len(parts) - 1
            head = _HEADS[kind].format(title=title, now="Now here" if number else "Here")
            foot = _FEET[kind]
            foot += "" if last else f" Remember that you are tasked with {task}"
            if not last and kinds[number + 1] == "S":
                foot += " You will use the same style as the parallel sentences immediately below."
            section = self.sections(part, source, direction)
            texts.append(Section(head, section.items, foot + "\n", section.ranks))
        style = ", using the style from the parallel sentences immediately above" if "S" in kinds else ""
        question = (
            f'Now translate the following sentence from {first} to {second}{style}. Translate: "{source}".\n\n'
            f"I understand that you may not be familiar enough with {language} to make a confident translation, but "
            "please give your best guess. Respond with only the translation and no other text.\n"
        )
        sections = [Section(opening, ()), *texts, Section(question, ())]
        if budget is not None:
            sections = list(cut_sections(sections, budget, self.count))
        context = tuple(piece for section in sections[:-1] for piece in section.pieces)
        return Prompt(condition, context, question, source, reference)

    def _sentence_lines(self, pair: Pair, direction: Direction) -> str:
        lines = [f"English: {pair.english}\n", f"{self.material.language}: {pair.foreign}\n"]
        return "".join(lines if direction == "from English" else lines[::-1])

    @cached_property
    def _entry_index(self) -> dict[Direction, SubstringIndex]:
        entries = self.material.entries
        return {
            "into English": SubstringIndex([entry.word for entry in entries]),
            "from English": SubstringIndex([entry.english for entry in entries]),
        }

    @cached_property
    def _sentence_index(self) -> dict[Direction, SubstringIndex]:
        sentences = self.material.sentences
        return {
            "into English": SubstringIndex([pair.foreign for pair in sentences]),
            "from English": SubstringIndex([pair.english for pair in sentences]),
        }

    @cached_property
    def _passages(self) -> list[str]:
        passages = []
        for chapter in self.material.chapters:
            text = ""
            for paragraph in chapter:
                if text and len(text) + len(paragraph.text) > self.retrieval.passage_characters:
                    passages.append(text)
                    text = ""
                text += paragraph.text + "\n"
            passages.append(text)
        return passages

    @cached_property
    def _passage_index(self) -> NgramIndex:
        return NgramIndex(self._passages)

    @cached_property
    def _book(self) -> Section:
        return _from_chapters(self.material.chapters)

    @cached_property
    def _text(self) -> Section:
        return _from_chapters([[p for p in chapter if not p.is_example] for chapter in self.material.chapters])

    @cached_property
    def _cut(self) -> dict[str, Section]:
        return {}


_AIDS = {
    "G": "a field linguistics grammar book",
    "W": "a bilingual word list",
    "S": "a collection of parallel {first}/{second} sentences",
}
_HEADS = {
    "G": '{now} is the book, "{title}": START OF GRAMMAR BOOK\n\n',
    "W": "{now} is the bilingual word list: START OF WORD LIST\n\n",
    "S": "{now} is the collection of parallel sentences: START OF PARALLEL SENTENCES\n\n",
}
_FEET = {
    "G": "\nEND OF GRAMMAR BOOK The grammar book is now over.",
    "W": "\nEND OF WORD LIST The bilingual word list is now over.",
    "S": "\nEND OF PARALLEL SENTENCES The collection of parallel sentences is now over.",
}


def _kind(part: str) -> str:
    """W, S, G or -; the examples of a book are sentences."""
    return "S" if part == "Ge" else part[0]


def _listed(names: list[str]) -> str:
    """a; a and b; a, b, and c"""
    if len(names) < 3:
        return " and ".join(names)
    return ", ".join(names[:-1]) + f", and {names[-1]}"


def _entry_line(entry: Entry, direction: Direction) -> str:
    return f"{entry.english}: {entry.word}\n" if direction == "from English" else f"{entry.word}: {entry.english}\n"


def _items(texts: Iterable[str]) -> Section:
    return Section("", tuple(texts))


def _from_chapters(chapters: Iterable[Iterable[Paragraph]]) -> Section:
    """All paragraphs; those at the ends of chapters are left out first, the same share of every chapter."""
    items, shares = [], []
    for chapter in chapters:
        texts = [paragraph.text + "\n" for paragraph in chapter]
        items += texts
        shares += [number / len(texts) for number in range(len(texts))]
    order = sorted(range(len(items)), key=lambda i: (shares[i], i))
    ranks = [0] * len(items)
    for rank, i in enumerate(order):
        ranks[i] = rank
    return Section("", tuple(items), "", tuple(ranks))


def _interleaved(found: list[list[int]]) -> list[int]:
    """The nearest of every word first, then the second nearest of every word; nothing twice."""
    longest = max(map(len, found), default=0)
    return list(dict.fromkeys(numbers[k] for k in range(longest) for numbers in found if k < len(numbers)))
