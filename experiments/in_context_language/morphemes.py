"""What words are built of: morphemes, each with its gloss, as the interlinear lines of grammar books have them.

    kabati    dog = kaba, plural = ti       the small dogs  ->  mo kabati

The gloss of a stem is the English word as the word list has it; that of an affix or a word of grammar is one of
GRAMMATICAL, which the rules of the book speak of.
"""

from dataclasses import dataclass

from experiments.in_context_language.english import TENSES, Tense
from experiments.in_context_language.grammar import Grammar

PLURAL, NOT, SUBJECT, OBJECT = "plural", "not", "subject", "object"
OF_ADJECTIVE, OF_VERB = "adjective", "verb"
"""What shows that the noun of an adjective, or the subject of a verb, is plural. Names of their own: one name for all
signs of the plural would leave open which rule has the form."""
GRAMMATICAL = (PLURAL, NOT, SUBJECT, OBJECT, OF_ADJECTIVE, OF_VERB, *TENSES)


@dataclass(frozen=True)
class Morpheme:
    """The smallest thing that means something."""

    gloss: str
    """What it means: an English word, or one of GRAMMATICAL."""
    form: str
    """How it is written; "" for a tense that has no sign."""


Word = tuple[Morpheme, ...]
"""In the order in which it is written."""


def spell(word: Word) -> str:
    """Its forms, one after the other."""
    return "".join(morpheme.form for morpheme in word)


def attach(word: Word, marking: str, affix: Morpheme) -> Word:
    """The word with an affix; unchanged if that has no form, or where the marking is none or a word of its own."""
    if not affix.form:
        return word
    return (affix, *word) if marking == "prefix" else (*word, affix) if marking == "suffix" else word


def make_plural(noun: Morpheme, grammar: Grammar) -> Word:
    """The noun with its sign of the plural, if that is a part of the word; doubled, its second half is the sign."""
    if grammar.number == "doubling":
        return (noun, Morpheme(PLURAL, noun.form))
    return attach((noun,), grammar.number, Morpheme(PLURAL, grammar.number_form))


def agree(adjective: Morpheme, grammar: Grammar) -> Word:
    """The adjective of a plural noun."""
    sign = Morpheme(OF_ADJECTIVE, grammar.adjective_agreement_form)
    return attach((adjective,), grammar.adjective_agreement, sign)


def conjugate(verb: Morpheme, grammar: Grammar, tense: Tense, plural: bool, negated: bool) -> Word:
    """The verb with its affixes: tense and agreement in the grammar's order, negation outside of both. A tense without
    a sign stands right behind the stem, so that every verb has a tense in its gloss."""
    sign = tense_sign(grammar, tense)
    word: Word = (verb,) if sign.form else (verb, sign)
    agreement = Morpheme(OF_VERB, grammar.verb_agreement_form if plural else "")
    affixes = [(grammar.tense, sign), (grammar.verb_agreement, agreement)]
    for marking, affix in affixes if grammar.tense_inside else reversed(affixes):
        word = attach(word, marking, affix)
    return attach(word, grammar.negation, Morpheme(NOT, grammar.negation_form if negated else ""))


def tense_sign(grammar: Grammar, tense: Tense) -> Morpheme:
    """Its form is "" where the tense is not marked."""
    forms = {"past": grammar.past_form, "present": grammar.present_form, "future": grammar.future_form}
    return Morpheme(tense, forms[tense])
