"""The line in which a sentence is glossed before it is translated, so that each step asks for one thing.

    English: the small dogs waited
    Gloss: small = mo, dog = kaba plural = ti, wait = sulo past = Answer: mo kabati sulo

    Poba: mo kabati sulo
    Gloss: mo = small, kaba = dog ti = plural, sulo = wait = past Answer: the small dogs waited

Each morpheme of the made-up sentence, in its order: what is known, the sign of a word list, what is looked up; commas
are between words. A model that writes the answer at once must, for each word, choose what to say next, find its base
form and look it up in a single step; here these are steps of their own, and a lookup is written as in the word list. As
grammar books do (interlinear glosses), and as models do that reason before they answer (Wei et al. 2022,
arXiv:2201.11903). Only what follows MARKER is the translation.

An answer begins with the rules in short, in words that are the same for every language:

    Gloss: object verb subject, adjective before, plural suffix, tense prefix: small = mo, dog = kaba ... Answer: ...

Without them a small model learned which glosses a sentence needs before it read in which order they come.
"""

from collections.abc import Sequence

from experiments.in_context_language.grammar import Grammar, is_plain
from experiments.in_context_language.morphemes import Morpheme, Word
from experiments.in_context_language.prompts import Direction

HEAD = "Gloss:"
"""Where the answer begins."""
ORDER_HEAD = "Order:"
"""Where glosses without forms begin."""
MARKER = " Answer:"
"""Between the gloss and the translation, in the same line: an answer ends with its line."""


def write_gloss(words: Sequence[Word], direction: Direction) -> str:
    """The line without its head and its translation."""
    write = _from_english if direction == "from English" else _into_english
    return ",".join("".join(map(write, word)) for word in words)


def write_rules(grammar: Grammar) -> str:
    """The rules in short, those of a plain language or all; forms are not among them."""
    units = {"S": "subject", "V": "verb", "O": "object"}
    parts = [" ".join(units[unit] for unit in grammar.order)]
    parts += [
        f"adjective {grammar.adjective}",
        f"plural {grammar.number.replace('doubling', 'doubled')}",
        f"tense {grammar.tense}",
    ]
    if not is_plain(grammar):
        parts += [f"not {grammar.negation}", f"place {grammar.place}", f"near {grammar.adposition}"]
        parts += [f"object {grammar.case}", f"verb plural {grammar.verb_agreement}"]
        parts += [
            f"adjective plural {grammar.adjective_agreement}",
            f"tense {('outside', 'inside')[grammar.tense_inside]}",
        ]
    return f" {', '.join(parts)}:"


def write_order(words: Sequence[Word]) -> str:
    """Glosses alone: what is to be said, in the order of the language, before any of it is looked up.

    the small dogs waited  ->  small, dog plural, wait past"""
    return ",".join("".join(f" {morpheme.gloss}" for morpheme in word) for word in words).strip()


def translation_in(answer: str) -> str:
    """What follows the last marker; "" if there is none."""
    return answer.rpartition(MARKER)[2].strip() if MARKER in answer else ""


def _from_english(morpheme: Morpheme) -> str:
    return f" {morpheme.gloss} =" + f" {morpheme.form}" * bool(morpheme.form)


def _into_english(morpheme: Morpheme) -> str:
    return f" {morpheme.form}" * bool(morpheme.form) + f" = {morpheme.gloss}"
