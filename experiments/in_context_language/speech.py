"""Saying sentences in a made-up language, and understanding them again."""

from collections.abc import Iterator
from itertools import product
from typing import cast

from experiments.in_context_language.english import TENSES, Part, Phrase, Sentence
from experiments.in_context_language.language import Language
from experiments.in_context_language.morphemes import (
    NOT,
    OBJECT,
    PLURAL,
    SUBJECT,
    Morpheme,
    Word,
    agree,
    attach,
    conjugate,
    make_plural,
    spell,
    tense_sign,
)


def speak(said: Sentence | Phrase, language: Language) -> str:
    """The sentence, or the noun phrase, in the language, by its grammar."""
    return " ".join(map(spell, parse(said, language)))


def parse(said: Sentence | Phrase, language: Language) -> list[Word]:
    """The words that `speak` writes, with the gloss of every morpheme."""
    if isinstance(said, Phrase):
        return _noun_phrase(said, language, language.word_of)
    return _lay_out(said, language, language.word_of)


def understand(text: str, language: Language) -> list[Sentence]:
    """All sentences that are said so: one for what `speak` gives, none for what is not of the language.

    Every possible build of a sentence is laid out with gaps for the words; a build fits if each gap can be filled."""
    words, found = text.split(), []
    for build in _builds(language.plain):
        shape = list(map(spell, _lay_out(build, language, {gap: gap for gap in _GAPS})))
        if len(shape) == len(words):
            found += [
                sentence for sentence in _fill(build, shape, words, language) if speak(sentence, language) == text
            ]
    return list(dict.fromkeys(found))


def _lay_out(sentence: Sentence, language: Language, word_of: dict[str, str]) -> list[Word]:
    grammar = language.grammar
    subject, found = Morpheme(SUBJECT, grammar.subject_form), Morpheme(OBJECT, grammar.object_form)
    units = {
        "S": _noun_phrase(sentence.subject, language, word_of, subject),
        "V": _verb(sentence, language, word_of),
        "O": _noun_phrase(sentence.object, language, word_of, found) if sentence.object else [],
    }
    words = [word for unit in grammar.order for word in units[unit]]
    if sentence.place:
        place = _noun_phrase(sentence.place, language, word_of)
        adposition: Word = (_stem(str(sentence.preposition), word_of),)
        place = [adposition, *place] if grammar.adposition == "before" else [*place, adposition]
        words = place + words if grammar.place == "first" else words + place
    negation: Word = (Morpheme(NOT, grammar.negation_form),)
    return words + [negation] * (sentence.negated and grammar.negation == "last word")


def _stem(english: str, word_of: dict[str, str]) -> Morpheme:
    return Morpheme(english, word_of[english])


def _noun_phrase(
    phrase: Phrase, language: Language, word_of: dict[str, str], case: Morpheme | None = None
) -> list[Word]:
    grammar, stem = language.grammar, _stem(phrase.noun, word_of)
    noun: Word = make_plural(stem, grammar) if phrase.plural else (stem,)
    words = [attach(noun, grammar.case, case) if case else noun]
    if phrase.plural:
        words = _beside(words, grammar.number, Morpheme(PLURAL, grammar.number_form))
    if phrase.adjective is None:
        return words
    told = _stem(phrase.adjective, word_of)
    adjective: Word = agree(told, grammar) if phrase.plural else (told,)
    return [adjective, *words] if grammar.adjective == "before" else [*words, adjective]


def _verb(sentence: Sentence, language: Language, word_of: dict[str, str]) -> list[Word]:
    grammar, stem = language.grammar, _stem(sentence.verb, word_of)
    words = [conjugate(stem, grammar, sentence.tense, sentence.subject.plural, sentence.negated)]
    words = _beside(words, grammar.tense, tense_sign(grammar, sentence.tense))
    if sentence.negated:
        words = _beside(words, grammar.negation, Morpheme(NOT, grammar.negation_form))
    return words


def _beside(words: list[Word], marking: str, sign: Morpheme) -> list[Word]:
    """The words with one of grammar before or after them, where the sign is a word of its own."""
    if not sign.form:
        return words
    return [(sign,), *words] if marking == "word before" else [*words, (sign,)] if marking == "word after" else words


_GAPS: dict[str, Part] = {
    "<subject>": "noun",
    "<object>": "noun",
    "<place>": "noun",
    "<subject's>": "adjective",
    "<object's>": "adjective",
    "<place's>": "adjective",
    "<transitive>": "transitive verb",
    "<intransitive>": "intransitive verb",
    "<preposition>": "preposition",
}
"""What stands for the words of a build."""


def _builds(plain: bool) -> Iterator[Sentence]:
    """Every sentence but for its words."""
    kinds = list(product((False, True), (False, True)))
    places, negations = ((None,), (False,)) if plain else ((None, *kinds), (False, True))

    def phrase(name: str, kind: tuple[bool, bool] | None) -> Phrase | None:
        return Phrase(f"<{name}>", kind[0], f"<{name}'s>" if kind[1] else None) if kind else None

    for subject, found, place in product(kinds, (None, *kinds), places):
        for tense, negated in product(TENSES, negations):
            yield Sentence(
                cast(Phrase, phrase("subject", subject)),
                "<transitive>" if found else "<intransitive>",
                phrase("object", found),
                "<preposition>" if place else None,
                phrase("place", place),
                tense,
                negated,
            )


def _fill(build: Sentence, shape: list[str], words: list[str], language: Language) -> Iterator[Sentence]:
    """The build with the words that fit into the gaps of its `shape`; nothing if one does not."""
    found: dict[str, str] = {}
    for form, word in zip(shape, words, strict=True):
        gap = form[form.index("<") : form.index(">") + 1] if "<" in form else None
        if gap is None:
            if form != word:
                return
            continue
        part = _GAPS[gap]
        fitting = [english for english, kind, own in language.words if kind == part and form.replace(gap, own) == word]
        if not fitting:
            return
        found[gap] = fitting[0]

    def phrase(name: str, of: Phrase) -> Phrase:
        return Phrase(found[f"<{name}>"], of.plural, found.get(f"<{name}'s>"))

    yield Sentence(
        phrase("subject", build.subject),
        found[build.verb],
        phrase("object", build.object) if build.object else None,
        found.get("<preposition>"),
        phrase("place", build.place) if build.place else None,
        build.tense,
        build.negated,
    )
