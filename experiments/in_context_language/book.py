"""The grammar book of a made-up language: rules in plain English, each with a worked example, and a word list.

`read_book` is the inverse: it makes the language out of the text of its book alone, and so shows that nothing that one
needs in order to translate is missing from it.
"""

import functools
import random
import re
from dataclasses import dataclass, fields
from typing import Any

from experiments.in_context_language.english import ENGLISH, Part, draw_sentence, write
from experiments.in_context_language.grammar import PLAIN, Grammar
from experiments.in_context_language.language import Language
from experiments.in_context_language.rules import RULES, Rule, Wordings, rules_of
from experiments.in_context_language.speech import speak


@dataclass(frozen=True)
class Book:
    """A grammar book, part by part."""

    name: str
    """Of the language."""
    rules: tuple[str, ...]
    """One sentence each."""
    examples: tuple[tuple[str, str], ...]
    """(English, translation) for each rule."""
    words: tuple[tuple[str, str], ...]
    """(English, word), in alphabetical order of the English."""


def write_book(language: Language, seed: int = 0) -> Book:
    """The book of a language; the seed chooses wordings and examples."""
    generator = random.Random(f"book {seed} {language.name}")
    rules, examples = [], []
    for rule in rules_of(language.plain):
        rules.append(generator.choice(_true_statement(rule, language.grammar)).format(**vars(language.grammar)))
        sentence = draw_sentence(generator, language.vocabulary)
        while not rule.shows(sentence):
            sentence = draw_sentence(generator, language.vocabulary)
        examples.append((write(sentence), speak(sentence, language)))
    words = tuple(sorted((english, word) for english, _, word in language.words))
    return Book(language.name, tuple(rules), tuple(examples), words)


def grammar_text(book: Book, examples: bool = True) -> str:
    """The rules as the book has them, with or without an example after each."""
    lines = [f"A grammar of {book.name}"]
    for rule, (english, translation) in zip(book.rules, book.examples, strict=True):
        lines += [f"- {rule}", *([f'  For example, "{english}" is "{translation}".'] if examples else [])]
    return "\n".join(lines) + "\n"


def word_list_text(book: Book) -> str:
    """The word list as the book has it. A space is before the English word, as in a sentence, so that it is the same
    token."""
    return "\n".join([f"Words of {book.name}", *(f"* {english} = {word}" for english, word in book.words)]) + "\n"


def read_book(text: str) -> Language:
    """The language that a book describes: `grammar_text` and `word_list_text`, one after the other.

    Without prepositions it is a plain one. Raises ValueError where a line is not understood, or if something about the
    language is not said."""
    name, words = "", []
    found: dict[str, Any] = {}
    for line in text.splitlines():
        if line.startswith("A grammar of "):
            name = line.removeprefix("A grammar of ")
        elif line.startswith("- "):
            found |= _read_rule(line.removeprefix("- "))
        elif " = " in line:
            english, _, word = line.removeprefix("* ").partition(" = ")
            words.append((english, _PART_OF[english], word))
    if not any(part == "preposition" for _, part, _ in words):
        found = PLAIN | found
    if missing := [field.name for field in fields(Grammar) if field.name not in found]:
        raise ValueError(f"the book does not say: {', '.join(missing)}")
    return Language(name, Grammar(**found), tuple(words))


_PART_OF: dict[str, Part] = {word: part for part, words in ENGLISH.items() for word in words}


def _true_statement(rule: Rule, grammar: Grammar) -> Wordings:
    for holds, wordings in rule.statements:
        if all(getattr(grammar, name) == value for name, value in holds.items()):
            return wordings
    raise AssertionError(f"no statement about {rule.topic} is true of {grammar}")


def _read_rule(sentence: str) -> dict[str, Any]:
    for pattern, holds in _patterns():
        if match := pattern.fullmatch(sentence):
            return holds | match.groupdict()
    raise ValueError(f"not a rule of a grammar book: {sentence!r}")


@functools.cache
def _patterns() -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    """What each wording tells; a form is a word."""
    return [
        (re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\w+)", re.escape(wording))), holds)
        for rule in RULES
        for holds, wordings in rule.statements
        for wording in wordings
    ]
