"""A made-up language: its sounds, its words and its grammar, all from one seed.

No word of a test language is a word of any training language: a form belongs to the split that its checksum names.
(Affixes are too short to be told apart like that.)
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from experiments.in_context_language.english import ENGLISH, Part
from experiments.in_context_language.grammar import FORMS, Grammar, Split, draw_grammar
from zoo.errors import UserError

CONSONANTS, VOWELS = "ptkbdgmnslrvzhjwf", "aeiou"
SYLLABLES = ("cv", "cv", "cvc", "v", "vc")


@dataclass(frozen=True)
class Vocabulary:
    """How many words of each kind a language has; the English words are drawn for each language."""

    nouns: int = 10
    transitive_verbs: int = 4
    intransitive_verbs: int = 3
    adjectives: int = 4
    prepositions: int = 2

    def __post_init__(self):
        for part, count in self.counts.items():
            if not 1 <= count <= len(ENGLISH[part]):
                raise UserError(f"a language must have 1 .. {len(ENGLISH[part])} words of the kind {part}, not {count}")

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


def make_language(seed: int, split: Split = "train", size: Vocabulary = Vocabulary()) -> Language:
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


def _draw(generator: random.Random, split: Split, size: Vocabulary) -> Language:
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
    return Language(name, draw_grammar(generator, split, lambda: draw(affix)), words)


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
    if part == "preposition":
        return [(word, ())]
    if part == "adjective":
        agreeing = attach(word, grammar.adjective_agreement, grammar.adjective_agreement_form)
        return [(word, ()), (agreeing, () if agreeing == word else ("plural",))]
    if part == "noun":
        plural = double(word) if grammar.number == "doubling" else attach(word, grammar.number, grammar.number_form)
        told = () if plural == word else ("plural",)
        cases = {"", grammar.subject_form, grammar.object_form}
        return [
            (attach(form, grammar.case, case), (*meaning, case))
            for form, meaning in ((word, ()), (plural, told))
            for case in cases
        ]
    forms = []
    for tense in (grammar.past_form, grammar.present_form, grammar.future_form):
        for agreement in ("", grammar.verb_agreement_form):
            for negation in ("", grammar.negation_form):
                form = conjugate(word, grammar, tense, agreement, negation)
                told = tense if grammar.tense in ("prefix", "suffix") else ""
                denied = negation if grammar.negation in ("prefix", "suffix") else ""
                forms.append((form, (told, agreement, denied)))
    return forms


def attach(word: str, marking: str, form: str) -> str:
    """The word with an affix; unchanged where the marking is none or a word of its own."""
    return form + word if marking == "prefix" else word + form if marking == "suffix" else word


def double(word: str) -> str:
    """Said twice, as one word."""
    return word + word


def conjugate(verb: str, grammar: Grammar, tense: str, agreement: str, negation: str) -> str:
    """The verb with its affixes: tense and agreement in the grammar's order, negation outside of both."""
    affixes = [(grammar.tense, tense), (grammar.verb_agreement, agreement)]
    for marking, form in affixes if grammar.tense_inside else reversed(affixes):
        verb = attach(verb, marking, form)
    return attach(verb, grammar.negation, negation)
