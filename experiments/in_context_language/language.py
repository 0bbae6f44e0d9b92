"""A made-up language: its sounds, its words and its grammar, all from one seed.

No word of a test language is a word of any training language: a form belongs to the split that its checksum names.
(Affixes are too short to be told apart like that.)
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from experiments.in_context_language.english import ENGLISH, TENSES, Part
from experiments.in_context_language.grammar import FORMS, Grammar, Split, draw_grammar, is_plain
from experiments.in_context_language.morphemes import (
    Morpheme,
    agree,
    attach,
    conjugate,
    make_plural,
    spell,
    tense_sign,
)
from zoo.errors import UserError

CONSONANTS, VOWELS = "ptkbdgmnslrvzhjwf", "aeiou"
SYLLABLES = ("cv", "cv", "cvc", "v", "vc")


@dataclass(frozen=True)
class LanguageSize:
    """How many words of each kind a language has, the English ones drawn for each language, and how many rules."""

    nouns: int = 10
    transitive_verbs: int = 4
    intransitive_verbs: int = 3
    adjectives: int = 4
    prepositions: int = 2
    """0: languages are plain. They differ in word order, the side of adjectives, and affixes of plural and tense alone;
    no place is named and nothing is negated (`grammar.PLAIN`)."""

    def __post_init__(self):
        for part, count in self.counts.items():
            least = 0 if part == "preposition" else 1
            if not least <= count <= len(ENGLISH[part]):
                raise UserError(
                    f"a language must have {least} .. {len(ENGLISH[part])} words of the kind {part}, not {count}"
                )

    @property
    def plain(self) -> bool:
        """Whether languages have few rules."""
        return self.prepositions == 0

    @property
    def counts(self) -> dict[Part, int]:
        """By part of speech."""
        return {
            "noun": self.nouns,
            "transitive verb": self.transitive_verbs,
            "intransitive verb": self.intransitive_verbs,
            "adjective": self.adjectives,
            "preposition": self.prepositions,
        }


@dataclass(frozen=True)
class Language:
    """What a grammar book tells of it."""

    name: str
    grammar: Grammar
    words: tuple[tuple[str, Part, str], ...]
    """(English, part of speech, the word)."""

    @cached_property
    def word_of(self) -> dict[str, str]:
        """From English."""
        return {english: word for english, _, word in self.words}

    @cached_property
    def vocabulary(self) -> dict[Part, tuple[str, ...]]:
        """The English words of each part of speech."""
        return {part: tuple(english for english, kind, _ in self.words if kind == part) for part in ENGLISH}

    @property
    def plain(self) -> bool:
        """Whether it has few rules (`LanguageSize.prepositions`)."""
        return is_plain(self.grammar)


def make_language(seed: int, split: Split = "train", size: LanguageSize = LanguageSize()) -> Language:
    """The language of this seed. Languages in which two words could sound alike, with all of their affixes, are drawn
    anew."""
    for attempt in range(1000):
        language = _draw(random.Random(f"{split} {seed} {attempt}"), split, size)
        if not _ambiguous(language):
            return language
    raise AssertionError(f"no unambiguous language of {size} was found")


def split_of_word(word: str) -> Split:
    """A fifth of all forms is for testing."""
    return "test" if zlib.crc32(word.encode()) % 5 == 0 else "train"


def _draw(generator: random.Random, split: Split, size: LanguageSize) -> Language:
    consonants = generator.sample(CONSONANTS, generator.randint(7, 11))
    vowels = generator.sample(VOWELS, generator.randint(3, 5))
    shapes = sorted(set(generator.sample(SYLLABLES, 3)) | {"cv"})
    taken: set[str] = set()

    def syllable(shape: str) -> str:
        return "".join(generator.choice(consonants if sound == "c" else vowels) for sound in shape)

    def draw(make: Callable[[], str]) -> str:
        while (form := make()) in taken:
            pass
        taken.add(form)
        return form

    def word() -> str:
        # The last syllable has a consonant first: stems with affixes then seldom read in two ways.
        while True:
            first = [syllable(generator.choice(shapes)) for _ in range(generator.randint(1, 2))]
            form = "".join(first) + syllable(generator.choice([shape for shape in shapes if shape[0] == "c"]))
            if split_of_word(form) == split and len(form) > 3:
                return form

    def affix() -> str:
        return syllable(generator.choice(("cv", "vc", "cvc", "v")))

    name = draw(word).capitalize()
    words = tuple(
        (english, part, draw(word))
        for part, count in size.counts.items()
        for english in generator.sample(ENGLISH[part], count)
    )
    return Language(name, draw_grammar(generator, split, lambda: draw(affix), size.plain), words)


def _ambiguous(language: Language) -> bool:
    """Whether two different words, or forms of a word that mean different things, are written alike."""
    grammar = language.grammar
    particles = [getattr(grammar, form) for form in FORMS if getattr(grammar, form)]
    seen: dict[str, tuple] = {form: ("affix", form) for form in particles}
    for english, part, word in language.words:
        for form, meaning in _forms(grammar, part, word):
            if seen.setdefault(form, (english, *meaning)) != (english, *meaning):
                return True
    return False


def _forms(grammar: Grammar, part: Part, word: str) -> list[tuple[str, tuple]]:
    """All forms of a word with what they tell besides the word itself."""
    stem = Morpheme(part, word)
    if part == "preposition":
        return [(word, ())]
    if part == "adjective":
        agreeing = spell(agree(stem, grammar))
        return [(word, ()), (agreeing, () if agreeing == word else ("plural",))]
    if part == "noun":
        plural = make_plural(stem, grammar)
        told = () if spell(plural) == word else ("plural",)
        cases = {"", grammar.subject_form, grammar.object_form}
        return [
            (spell(attach(noun, grammar.case, Morpheme("case", case))), (*meaning, case))
            for noun, meaning in (((stem,), ()), (plural, told))
            for case in cases
        ]
    forms = []
    for tense, plural_subject, negated in product(TENSES, (False, True), (False, True)):
        told_tense = tense_sign(grammar, tense).form if grammar.tense in ("prefix", "suffix") else ""
        agreement = grammar.verb_agreement_form if plural_subject else ""
        denied = negated and grammar.negation in ("prefix", "suffix")
        form = spell(conjugate(stem, grammar, tense, plural_subject, negated))
        forms.append((form, (told_tense, agreement, denied)))
    return forms
