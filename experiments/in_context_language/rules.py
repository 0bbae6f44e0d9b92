"""What a grammar book says: for every rule of a language a sentence of plain English, in two wordings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from experiments.in_context_language.english import Sentence

Wordings = tuple[str, str]
Statement = tuple[dict[str, Any], Wordings]
"""What holds where a rule is stated ({field of Grammar: value}), and two wordings; {field} in them is a form."""


@dataclass(frozen=True)
class Rule:
    """One topic of the book: of its statements the first that is true of the language is made."""

    topic: str
    statements: tuple[Statement, ...]
    shows: Callable[[Sentence], bool]
    """Which sentences are good examples of it."""


def _orders() -> Iterator[Statement]:
    names = {"S": "the subject", "V": "the verb", "O": "the object"}
    for order in permutations("SVO"):
        first, second, third = (names[unit] for unit in order)
        wordings = (
            f"{first.capitalize()} comes first, then {second}, and {third} comes last.",
            f"A sentence begins with {first}, goes on with {second} and ends with {third}.",
        )
        yield {"order": "".join(order)}, wordings


def _tense_form(tense: str) -> tuple[Statement, ...]:
    name = f"{tense}_form"
    return (
        ({name: ""}, (f"The {tense} has no sign.", f"Nothing is added for the {tense}.")),
        ({}, (f"The sign of the {tense} is {{{name}}}.", f"One says {{{name}}} for the {tense}.")),
    )


def _affixes(field: str, prefix: Wordings, suffix: Wordings, none: Wordings) -> tuple[Statement, ...]:
    return (
        ({field: "none", f"{field}_form": ""}, none),
        ({field: "prefix"}, prefix),
        ({field: "suffix"}, suffix),
    )


def _any(sentence: Sentence) -> bool:
    return True


def _has_plural(sentence: Sentence) -> bool:
    return any(phrase.plural for phrase in (sentence.subject, sentence.object, sentence.place) if phrase)


def _has_plural_adjective(sentence: Sentence) -> bool:
    phrases = (sentence.subject, sentence.object, sentence.place)
    return any(phrase.plural and phrase.adjective for phrase in phrases if phrase)


RULES = (
    Rule("order", tuple(_orders()), lambda sentence: sentence.object is not None),
    Rule(
        "articles",
        (
            (
                {},
                (
                    'There is no word for "the", nor for "will", "did" and "does".',
                    'The words "the", "will", "did" and "does" are not translated.',
                ),
            ),
        ),
        _any,
    ),
    Rule(
        "adjective",
        (
            ({"adjective": "before"}, ("An adjective stands before its noun.", "Adjectives come before the noun.")),
            ({"adjective": "after"}, ("An adjective stands after its noun.", "Adjectives come after the noun.")),
        ),
        lambda sentence: sentence.subject.adjective is not None,
    ),
    Rule(
        "number",
        (
            (
                {"number": "prefix"},
                (
                    "Plural nouns have the prefix {number_form}.",
                    "{number_form} before a noun, written as one word, makes it plural.",
                ),
            ),
            (
                {"number": "suffix"},
                ("Plural nouns have the suffix {number_form}.", "{number_form} at the end of a noun makes it plural."),
            ),
            (
                {"number": "word before"},
                (
                    "The word {number_form} right before a noun makes it plural.",
                    "Plural nouns have the word {number_form} directly before them.",
                ),
            ),
            (
                {"number": "word after"},
                (
                    "The word {number_form} right after a noun makes it plural.",
                    "Plural nouns have the word {number_form} directly after them.",
                ),
            ),
            (
                {"number": "doubling", "number_form": ""},
                ("A noun is doubled to make it plural.", "Plural nouns are said twice, as one word."),
            ),
        ),
        lambda sentence: sentence.subject.plural,
    ),
    Rule(
        "adjective agreement",
        _affixes(
            "adjective_agreement",
            (
                "The adjective of a plural noun has the prefix {adjective_agreement_form}.",
                "With a plural noun the adjective begins with {adjective_agreement_form}.",
            ),
            (
                "The adjective of a plural noun has the suffix {adjective_agreement_form}.",
                "With a plural noun the adjective ends in {adjective_agreement_form}.",
            ),
            ("Adjectives never change.", "An adjective stays the same with plural nouns."),
        ),
        _has_plural_adjective,
    ),
    Rule(
        "case",
        (
            (
                {"case": "none", "subject_form": "", "object_form": ""},
                ("Subjects and objects are not marked.", "Nouns are the same as subject and as object."),
            ),
            *(
                statement
                for affix in ("prefix", "suffix")
                for statement in (
                    (
                        {"case": affix, "object_form": ""},
                        (
                            f"Subjects have the {affix} {{subject_form}}, objects have none.",
                            f"The noun of the subject takes the {affix} {{subject_form}}; objects are not marked.",
                        ),
                    ),
                    (
                        {"case": affix, "subject_form": ""},
                        (
                            f"Objects have the {affix} {{object_form}}, subjects have none.",
                            f"The noun of the object takes the {affix} {{object_form}}; subjects are not marked.",
                        ),
                    ),
                    (
                        {"case": affix},
                        (
                            f"Subjects have the {affix} {{subject_form}}, objects the {affix} {{object_form}}.",
                            f"The subject takes the {affix} {{subject_form}}, the object takes {{object_form}}.",
                        ),
                    ),
                )
            ),
        ),
        lambda sentence: sentence.object is not None,
    ),
    Rule(
        "affixes of nouns",
        (
            (
                {},
                (
                    "A sign of the plural is nearer to the noun than one of subject or object.",
                    "First comes what marks the plural, outside of it what marks subject or object.",
                ),
            ),
        ),
        lambda sentence: sentence.object is not None and sentence.object.plural,
    ),
    Rule(
        "adposition",
        (
            (
                {"adposition": "before"},
                (
                    'Words such as "near" stand before the nouns that they go with.',
                    'Words such as "near" come first, then the noun and its adjective.',
                ),
            ),
            (
                {"adposition": "after"},
                (
                    'Words such as "near" stand after the nouns that they go with.',
                    'Words such as "near" come last, after the noun and its adjective.',
                ),
            ),
        ),
        lambda sentence: sentence.place is not None,
    ),
    Rule(
        "place",
        (
            (
                {"place": "first"},
                (
                    "The place is named first of all.",
                    "A sentence begins with the place, if there is one; its noun has no sign of subject or object.",
                ),
            ),
            (
                {"place": "last"},
                (
                    "The place is named last of all.",
                    "A sentence ends with the place, if there is one; its noun has no sign of subject or object.",
                ),
            ),
        ),
        lambda sentence: sentence.place is not None,
    ),
    Rule(
        "tense",
        (
            ({"tense": "prefix"}, ("Tense is a prefix of the verb.", "The verb begins with a sign of its tense.")),
            ({"tense": "suffix"}, ("Tense is a suffix of the verb.", "The verb ends with a sign of its tense.")),
            (
                {"tense": "word before"},
                ("Tense is a word before the verb.", "Before the verb stands a sign of its tense, a word of its own."),
            ),
            (
                {"tense": "word after"},
                ("Tense is a word after the verb.", "After the verb stands a sign of its tense, a word of its own."),
            ),
        ),
        _any,
    ),
    Rule("past", _tense_form("past"), lambda sentence: sentence.tense == "past"),
    Rule("present", _tense_form("present"), lambda sentence: sentence.tense == "present"),
    Rule("future", _tense_form("future"), lambda sentence: sentence.tense == "future"),
    Rule(
        "verb agreement",
        _affixes(
            "verb_agreement",
            (
                "With a plural subject the verb has the prefix {verb_agreement_form}.",
                "The prefix {verb_agreement_form} of a verb tells that its subject is plural.",
            ),
            (
                "With a plural subject the verb has the suffix {verb_agreement_form}.",
                "The suffix {verb_agreement_form} of a verb tells that its subject is plural.",
            ),
            (
                "Verbs are the same with singular and plural subjects.",
                "The verb does not change with a plural subject.",
            ),
        ),
        lambda sentence: sentence.subject.plural,
    ),
    Rule(
        "affixes of verbs",
        (
            (
                {"tense_inside": True},
                (
                    "A prefix or suffix of tense is nearer to the verb than one for a plural subject.",
                    "Affixes for a plural subject stand outside of those of tense.",
                ),
            ),
            (
                {"tense_inside": False},
                (
                    "A prefix or suffix of tense is farther from the verb than one for a plural subject.",
                    "Affixes for a plural subject stand inside of those of tense.",
                ),
            ),
        ),
        lambda sentence: sentence.subject.plural and sentence.tense != "present",
    ),
    Rule(
        "negation",
        (
            (
                {"negation": "prefix"},
                (
                    '"not" is the outermost prefix of the verb, {negation_form}.',
                    "A negated verb begins with {negation_form}, before all other prefixes.",
                ),
            ),
            (
                {"negation": "suffix"},
                (
                    '"not" is the outermost suffix of the verb, {negation_form}.',
                    "A negated verb ends in {negation_form}, after all other suffixes.",
                ),
            ),
            (
                {"negation": "word before"},
                (
                    '"not" is the word {negation_form}, before the verb and its word of tense.',
                    "The word {negation_form}, before the verb and its word of tense, negates it.",
                ),
            ),
            (
                {"negation": "word after"},
                (
                    '"not" is the word {negation_form}, after the verb and its word of tense.',
                    "The word {negation_form}, after the verb and its word of tense, negates it.",
                ),
            ),
            (
                {"negation": "last word"},
                (
                    '"not" is the word {negation_form} at the end of the sentence.',
                    "The word {negation_form} at the very end of a sentence negates it.",
                ),
            ),
        ),
        lambda sentence: sentence.negated,
    ),
)
"""All topics, in the order of the book."""
PLAIN_TOPICS = ("order", "articles", "adjective", "number", "tense", "past", "present", "future")
"""Those of the book of a plain language."""


def rules_of(plain: bool) -> tuple[Rule, ...]:
    """What a book states."""
    return tuple(rule for rule in RULES if rule.topic in PLAIN_TOPICS) if plain else RULES
