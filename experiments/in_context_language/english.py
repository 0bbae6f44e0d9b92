"""The controlled English that made-up languages are translated from and into: what is said, and how it is written.

    the small dogs did not chase the farmer behind the houses

Subject, verb, perhaps an object, perhaps a place; nouns are singular or plural and may have an adjective; the tense is
past, present or future; a sentence may be negated. Every meaning has exactly one wording.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Tense = Literal["past", "present", "future"]
TENSES: tuple[Tense, ...] = ("past", "present", "future")
Part = Literal["noun", "transitive verb", "intransitive verb", "adjective", "preposition"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ENGLISH: dict[Part, tuple[str, ...]] = {
    "noun": _words(
        "bird boat boy brother cat cook cow dog door farmer fish fox friend girl goat hill horse house hunter "
        "island king lake lion mountain owl queen river road rock sailor sister snake star stone teacher tiger "
        "tower tree village wall"
    ),
    "transitive verb": _words(
        "call carry chase follow fear help kick like love pull push visit watch wash clean greet guard lift"
    ),
    "intransitive verb": _words("arrive cough dance jump laugh rest shout wait walk work"),
    "adjective": _words("big black brave calm cold green happy old poor quick red rich sad small white young"),
    "preposition": _words("above behind beside inside near outside under around"),
}
"""The words that a language has words for; all of them are regular."""


LONGEST = 8
"""Words of the word list in the longest sentence: three nouns with adjectives, a verb and a preposition."""
LONGEST_PLAIN = 5
"""Without a place."""


@dataclass(frozen=True)
class Phrase:
    """the (adjective) noun(s)"""

    noun: str
    plural: bool = False
    adjective: str | None = None


@dataclass(frozen=True)
class Sentence:
    """What is said."""

    subject: Phrase
    verb: str
    object: Phrase | None = None
    """None: the verb is intransitive."""
    preposition: str | None = None
    place: Phrase | None = None
    """What the preposition stands with; None together with it."""
    tense: Tense = "present"
    negated: bool = False


def write(sentence: Sentence | Phrase) -> str:
    """The English wording, without capitals and full stop; of a noun phrase too."""
    if isinstance(sentence, Phrase):
        return _phrase(sentence)
    parts = [_phrase(sentence.subject), _verb(sentence)]
    if sentence.object:
        parts.append(_phrase(sentence.object))
    if sentence.place:
        parts += [str(sentence.preposition), _phrase(sentence.place)]
    return " ".join(parts)


def read(text: str) -> Sentence:
    """The inverse of `write`. Raises ValueError for anything else."""
    words = text.split()
    subject, rest = _read_phrase(words)
    verb, tense, negated, rest = _read_verb(rest)
    found: Phrase | None = None
    preposition, place = None, None
    if rest[:1] == ["the"]:
        found, rest = _read_phrase(rest)
    if rest and rest[0] in ENGLISH["preposition"]:
        preposition = rest[0]
        place, rest = _read_phrase(rest[1:])
    sentence = Sentence(subject, verb, found, preposition, place, tense, negated)
    if rest or write(sentence) != text or (found is not None) != (verb in ENGLISH["transitive verb"]):
        raise ValueError(f"not a sentence of the controlled English: {text!r}")
    return sentence


def draw_sentence(generator: random.Random, vocabulary: Mapping[Part, Sequence[str]]) -> Sentence:
    """A sentence made of these words: two thirds of the verbs have an object, a third of the sentences a place, two
    fifths of the nouns an adjective, a quarter is negated. Without prepositions it is a plain one, which has no place
    and is not negated."""
    plain = not vocabulary["preposition"]

    def phrase() -> Phrase:
        adjective = generator.choice(vocabulary["adjective"]) if generator.random() < 0.4 else None
        return Phrase(generator.choice(vocabulary["noun"]), generator.random() < 0.5, adjective)

    transitive = generator.random() < 0.65
    verb = generator.choice(vocabulary["transitive verb" if transitive else "intransitive verb"])
    subject, found = phrase(), phrase() if transitive else None
    somewhere = generator.random() < 0.33 and not plain
    return Sentence(
        subject,
        verb,
        found,
        generator.choice(vocabulary["preposition"]) if somewhere else None,
        phrase() if somewhere else None,
        generator.choice(TENSES),
        generator.random() < 0.25 and not plain,
    )


def draw_short(generator: random.Random, vocabulary: Mapping[Part, Sequence[str]], longest: int) -> Sentence | Phrase:
    """A sentence or a noun phrase with 1 .. `longest` words of the word list, each number equally often; half of what
    has two of them is a noun phrase. No sentence has more than LONGEST, no plain one more than LONGEST_PLAIN."""
    most = LONGEST if vocabulary["preposition"] else LONGEST_PLAIN
    assert 1 <= longest <= most, f"{longest} words, of at most {most}"
    words = generator.randint(1, longest)
    if words == 1 or (words == 2 and generator.random() < 0.5):
        adjective = generator.choice(vocabulary["adjective"]) if words == 2 else None
        return Phrase(generator.choice(vocabulary["noun"]), generator.random() < 0.5, adjective)
    while count_words(sentence := draw_sentence(generator, vocabulary)) != words:
        pass
    return sentence


def count_words(sentence: Sentence) -> int:
    """That stand in a word list."""
    phrases = [phrase for phrase in (sentence.subject, sentence.object, sentence.place) if phrase]
    return 1 + sum(1 + (phrase.adjective is not None) for phrase in phrases) + (sentence.preposition is not None)


def _phrase(phrase: Phrase) -> str:
    adjective = f"{phrase.adjective} " if phrase.adjective else ""
    return f"the {adjective}{_add_s(phrase.noun) if phrase.plural else phrase.noun}"


def _verb(sentence: Sentence) -> str:
    verb, one = sentence.verb, not sentence.subject.plural
    match sentence.tense, sentence.negated:
        case "future", negated:
            return f"will not {verb}" if negated else f"will {verb}"
        case "past", negated:
            return f"did not {verb}" if negated else _add_ed(verb)
        case _, True:
            return f"{'does' if one else 'do'} not {verb}"
        case _:
            return _add_s(verb) if one else verb


def _add_s(word: str) -> str:
    if word.endswith(("sh", "ch", "x", "s")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _add_ed(word: str) -> str:
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ied"
    return word + ("d" if word.endswith("e") else "ed")


_NOUNS = {form: (word, plural) for word in ENGLISH["noun"] for form, plural in ((word, False), (_add_s(word), True))}
_VERBS: dict[str, tuple[str, Tense]] = {}
for _verb_word in ENGLISH["transitive verb"] + ENGLISH["intransitive verb"]:
    _VERBS |= {_verb_word: (_verb_word, "present"), _add_s(_verb_word): (_verb_word, "present")}
    _VERBS |= {_add_ed(_verb_word): (_verb_word, "past")}
_HELPERS: dict[str, Tense] = {"will": "future", "did": "past", "do": "present", "does": "present"}


def _read_phrase(words: list[str]) -> tuple[Phrase, list[str]]:
    if words[:1] != ["the"]:
        raise ValueError(f"'the' expected before {' '.join(words)!r}")
    adjective = words[1] if words[1:2] and words[1] in ENGLISH["adjective"] else None
    rest = words[2 if adjective else 1 :]
    if not rest or rest[0] not in _NOUNS:
        raise ValueError(f"a noun expected before {' '.join(rest)!r}")
    noun, plural = _NOUNS[rest[0]]
    return Phrase(noun, plural, adjective), rest[1:]


def _read_verb(words: list[str]) -> tuple[str, Tense, bool, list[str]]:
    helper = _HELPERS.get(words[0]) if words else None
    rest = words[1:] if helper else words
    negated = rest[:1] == ["not"]
    rest = rest[1:] if negated else rest
    if not rest or rest[0] not in _VERBS:
        raise ValueError(f"a verb expected before {' '.join(rest)!r}")
    verb, tense = _VERBS[rest[0]]
    return verb, helper or tense, negated, rest[1:]
