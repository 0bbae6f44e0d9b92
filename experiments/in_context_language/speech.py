"""Saying sentences in a made-up language, and understanding them again."""

from collections.abc import Iterator
from itertools import product
from typing import cast

from experiments.in_context_language.english import TENSES, Part, Phrase, Sentence
from experiments.in_context_language.language import Language, attach, conjugate, double


def speak(sentence: Sentence, language: Language) -> str:
    """The sentence in the language, by its grammar."""
    return " ".join(_lay_out(sentence, language, language.word_of))


def understand(text: str, language: Language) -> list[Sentence]:
    """All sentences that are said so: one for what `speak` gives, none for what is not of the language.

    Every possible build of a sentence is laid out with gaps for the words; a build fits if each gap can be filled."""
    words, found = text.split(), []
    for build in _builds():
        shape = _lay_out(build, language, {gap: gap for gap in _GAPS})
        if len(shape) == len(words):
            found += [
                sentence for sentence in _fill(build, shape, words, language) if speak(sentence, language) == text
            ]
    return list(dict.fromkeys(found))


def _lay_out(sentence: Sentence, language: Language, word_of: dict[str, str]) -> list[str]:
    grammar = language.grammar
    units = {
        "S": _noun_phrase(sentence.subject, language, word_of, grammar.subject_form),
        "V": _verb(sentence, language, word_of),
        "O": _noun_phrase(sentence.object, language, word_of, grammar.object_form) if sentence.object else [],
    }
    words = [word for unit in grammar.order for word in units[unit]]
    if sentence.place:
        place, adposition = _noun_phrase(sentence.place, language, word_of, ""), [word_of[str(sentence.preposition)]]
        place = adposition + place if grammar.adposition == "before" else place + adposition
        words = place + words if grammar.place == "first" else words + place
    return words + [grammar.negation_form] * (sentence.negated and grammar.negation == "last word")


def _noun_phrase(phrase: Phrase, language: Language, word_of: dict[str, str], case: str) -> list[str]:
    grammar, noun = language.grammar, word_of[phrase.noun]
    beside: list[str] = []
    if phrase.plural and grammar.number == "doubling":
        noun = double(noun)
    elif phrase.plural:
        noun = attach(noun, grammar.number, grammar.number_form)
        beside = [grammar.number_form] * grammar.number.startswith("word")
    noun = attach(noun, grammar.case, case)
    words = [*beside, noun] if grammar.number == "word before" else [noun, *beside]
    if phrase.adjective is None:
        return words
    adjective = word_of[phrase.adjective]
    if phrase.plural:
        adjective = attach(adjective, grammar.adjective_agreement, grammar.adjective_agreement_form)
    return [adjective, *words] if grammar.adjective == "before" else [*words, adjective]


def _verb(sentence: Sentence, language: Language, word_of: dict[str, str]) -> list[str]:
    grammar = language.grammar
    tense = {"past": grammar.past_form, "present": grammar.present_form, "future": grammar.future_form}[sentence.tense]
    agreement = grammar.verb_agreement_form if sentence.subject.plural else ""
    negation = grammar.negation_form if sentence.negated else ""
    words = [conjugate(word_of[sentence.verb], grammar, tense, agreement, negation)]
    for marking, form in ((grammar.tense, tense), (grammar.negation, negation)):
        if form and marking.startswith("word"):
            words = [form, *words] if marking == "word before" else [*words, form]
    return words


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


def _builds() -> Iterator[Sentence]:
    """Every sentence but for its words."""
    kinds = list(product((False, True), (False, True)))

    def phrase(name: str, kind: tuple[bool, bool] | None) -> Phrase | None:
        return Phrase(f"<{name}>", kind[0], f"<{name}'s>" if kind[1] else None) if kind else None

    for subject, found, place in product(kinds, (None, *kinds), (None, *kinds)):
        for tense, negated in product(TENSES, (False, True)):
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
