"""The grammar of a made-up language: what can differ between languages, and which combinations are for testing.

Held out are combinations, not rules: of the 60 triples (word order, adposition, negation) 12 are for testing alone,
though each rule by itself, and each pair of two such rules, is found in training too. Plain languages are divided by
all of their four rules: six of the 48 combinations, one of each word order, are for testing alone, and each three of
four rules are trained on. (Where many are held out, one of the rules follows from the others in training, and a model
learns that in place of reading it.)
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

Split = Literal["train", "test"]
Side = Literal["before", "after"]
Order = Literal["SVO", "SOV", "VSO", "VOS", "OSV", "OVS"]
Marking = Literal["prefix", "suffix", "word before", "word after"]
"""How something is expressed: by a part of the word, or by a word beside it."""

ORDERS: tuple[Order, ...] = get_args(Order)
SIDES: tuple[Side, ...] = get_args(Side)
NEGATIONS: tuple[str, ...] = (*get_args(Marking), "last word")
NUMBERS: tuple[str, ...] = (*get_args(Marking), "doubling")
TENSE_MARKINGS: tuple[str, ...] = get_args(Marking)
AFFIXES: tuple[str, ...] = ("none", "prefix", "suffix")


@dataclass(frozen=True)
class Grammar:
    """One choice for everything. `*_form` are the affixes and words themselves."""

    order: Order
    """Of subject, verb and object."""
    adjective: Side
    """Of its noun."""
    adposition: Side
    """Of the noun phrase that it stands with."""
    place: Literal["first", "last"]
    """Where a phrase of place stands in the sentence."""
    negation: str
    """One of NEGATIONS."""
    negation_form: str
    number: str
    """How nouns are marked as plural, one of NUMBERS; the singular is not marked."""
    number_form: str
    """"" where the noun is doubled."""
    tense: str
    """One of TENSE_MARKINGS."""
    past_form: str
    """One of the three tenses may be "", not marked."""
    present_form: str
    future_form: str
    case: str
    """Of subjects and objects, one of AFFIXES."""
    subject_form: str
    """"" where subjects are not marked."""
    object_form: str
    """"" where objects are not marked."""
    verb_agreement: str
    """With a plural subject, one of AFFIXES."""
    verb_agreement_form: str
    adjective_agreement: str
    """With a plural noun, one of AFFIXES."""
    adjective_agreement_form: str
    tense_inside: bool
    """Whether the affix of tense stands nearer to the verb than that of agreement."""


PLAIN: dict[str, Any] = {
    "adposition": "before",
    "place": "last",
    "negation": "word before",
    "negation_form": "",
    "case": "none",
    "subject_form": "",
    "object_form": "",
    "verb_agreement": "none",
    "verb_agreement_form": "",
    "adjective_agreement": "none",
    "adjective_agreement_form": "",
    "tense_inside": True,
}
"""What plain languages share and their books do not mention. Their plural and tense are prefixes or suffixes."""
PLAIN_AFFIXES = ("prefix", "suffix")


FORMS = tuple(field.name for field in fields(Grammar) if field.name.endswith("_form"))


def profile(grammar: Grammar) -> tuple:
    """The grammar without its forms: which rules are in force."""
    return tuple(getattr(grammar, field.name) for field in fields(Grammar) if field.name not in FORMS)


def split_of(grammar: Grammar) -> Split:
    """Test for every fifth (word order, adposition, negation): of two triples that differ in the adposition alone at
    least one is for training. Of plain grammars, for one (adjective, number, tense) of each word order."""
    order = ORDERS.index(grammar.order)
    if is_plain(grammar):
        signs = map(PLAIN_AFFIXES.index, (grammar.number, grammar.tense))
        held_out = (SIDES.index(grammar.adjective), *signs) == _bits(order + 1)
    else:
        held_out = (order + NEGATIONS.index(grammar.negation) + 2 * SIDES.index(grammar.adposition)) % 5 == 0
    return "test" if held_out else "train"


def _bits(number: int) -> tuple[int, int, int]:
    return number // 4 % 2, number // 2 % 2, number % 2


def is_plain(grammar: Grammar) -> bool:
    """Whether it has what PLAIN says; no other one is without a sign of negation."""
    return not grammar.negation_form


def draw_grammar(generator: random.Random, split: Split, draw_affix: Callable[[], str], plain: bool = False) -> Grammar:
    """A random grammar of the split, plain or not; `draw_affix` gives a new short form at each call."""
    choose = generator.choice
    numbers, markings = (PLAIN_AFFIXES, PLAIN_AFFIXES) if plain else (NUMBERS, TENSE_MARKINGS)
    while True:
        negation, number, tense, case = choose(NEGATIONS), choose(numbers), choose(markings), choose(AFFIXES)
        verbs, adjectives = choose(AFFIXES), choose(AFFIXES)
        unmarked, marked = choose((0, 1, 2, None)), choose(("subject", "object", "both"))
        tenses = ["" if number == unmarked else draw_affix() for number in range(3)]
        grammar = Grammar(
            order=choose(ORDERS),
            adjective=choose(SIDES),
            adposition=choose(SIDES),
            place=choose(("first", "last")),
            negation=negation,
            negation_form=draw_affix(),
            number=number,
            number_form="" if number == "doubling" else draw_affix(),
            tense=tense,
            past_form=tenses[0],
            present_form=tenses[1],
            future_form=tenses[2],
            case=case,
            subject_form=draw_affix() if case != "none" and marked != "object" else "",
            object_form=draw_affix() if case != "none" and marked != "subject" else "",
            verb_agreement=verbs,
            verb_agreement_form="" if verbs == "none" else draw_affix(),
            adjective_agreement=adjectives,
            adjective_agreement_form="" if adjectives == "none" else draw_affix(),
            tense_inside=choose((True, False)),
        )
        grammar = replace(grammar, **PLAIN) if plain else grammar
        if split_of(grammar) == split:
            return grammar
