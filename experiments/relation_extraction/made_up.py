"""A made-up corpus with distant supervision's troubles: sentences that say nothing of their pair's relation, pairs of
several relations, pairs of none, two languages. For --quick and tests; how well models do on it means nothing."""

from collections.abc import Sequence

import numpy as np

from experiments.relation_extraction.bags import make_bags
from experiments.relation_extraction.corpus import Corpus
from experiments.relation_extraction.reader import NA, Instance, Mention, Relations
from experiments.relation_extraction.splits import divided

RELATIONS = Relations((NA, "place_of_birth", "employer", "place_of_death"))
TEMPLATES = {
    "en": {
        "place_of_birth": ("{h} was born in {t} .", "in {t} , {h} was first seen .", "{h} , a son of {t} , sang ."),
        "employer": ("{h} worked for {t} .", "{t} hired {h} last year .", "{h} , an engineer of {t} , spoke ."),
        "place_of_death": ("{h} died in {t} .", "in {t} , {h} was buried .", "{h} spent the last days in {t} ."),
        NA: ("{h} visited {t} .", "{t} was praised by {h} .", "{h} wrote a song about {t} .", "{h} read of {t} ."),
    },
    "eo": {
        "place_of_birth": ("{h} naskiĝis en {t} .", "en {t} naskiĝis {h} ."),
        "employer": ("{h} laboris por {t} .", "{t} dungis {h} ."),
        "place_of_death": ("{h} mortis en {t} .", "en {t} oni enterigis {h} ."),
        NA: ("{h} vizitis {t} .", "{h} skribis pri {t} .", "{t} plaĉis al {h} ."),
    },
}  # fmt: skip
SYLLABLES = ("ba", "do", "fi", "ka", "lu", "me", "no", "ra", "si", "ta", "ve", "zo")
NOISE = 0.3
"""Part of the sentences of a pair with a relation that do not say it; the first one of a pair always does."""


def made_up(pairs: int = 240, seed: int = 0) -> Corpus:
    """A corpus of so many pairs, a third of them `NA`, with one to three sentences each."""
    random = np.random.default_rng(seed)
    instances = [one for number in range(pairs) for one in _pair(number, random)]
    parts = divided(instances, (0.6, 0.15, 0.25))
    return Corpus("made up", RELATIONS, *(make_bags(parts[part]) for part in ("train", "val", "test")))


def _pair(number: int, random: np.random.Generator) -> list[Instance]:
    head, tail = _name(random).capitalize(), _name(random).capitalize()
    positive = [name for name in RELATIONS.names if name != NA]
    count = 0 if number % 3 == 0 else 2 if number % 10 == 1 else 1
    relations = [positive[int(i)] for i in random.permutation(len(positive))[:count]] or [NA]
    said = relations + [
        NA if random.random() < NOISE else relations[int(random.integers(len(relations)))]
        for _ in range(int(random.integers(3)))
    ]
    found = []
    for sentence, what in enumerate(said):
        language = ("en", "eo")[int(random.integers(2))]
        templates: Sequence[str] = TEMPLATES[language][what]
        text, mentions = _filled(templates[int(random.integers(len(templates)))], (head, tail), number)
        place = f"made up, pair {number}, sentence {sentence + 1}"
        found += [Instance(text, *mentions, relation, language, place) for relation in relations]
    return found


def _filled(template: str, names: tuple[str, str], number: int) -> tuple[str, tuple[Mention, Mention]]:
    """(the sentence, its head and tail)."""
    text = template.format(h=names[0], t="\0").replace("\0", names[1])
    places = []
    for name, other, slot, other_slot in (
        (names[0], names[1], "{h}", "{t}"),
        (names[1], names[0], "{t}", "{h}"),
    ):
        start = template.index(slot)
        if template.index(other_slot) < start:
            start += len(other) - len(other_slot)
        places.append(Mention(name, f"{number}:{slot[1]}", start, start + len(name)))
    return text, (places[0], places[1])


def _name(random: np.random.Generator) -> str:
    return "".join(SYLLABLES[int(i)] for i in random.integers(len(SYLLABLES), size=3))
