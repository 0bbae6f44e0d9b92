"""Small word lists for keys, values and topics, and pronounceable words that are in no list."""

from collections.abc import Iterator

import numpy as np


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CITIES = _words(
    """Aberdeen Accra Adelaide Algiers Amman Amsterdam Ankara Antwerp Athens Atlanta Auckland Baghdad Baku Bangkok
    Barcelona Basel Beirut Belfast Belgrade Bergen Berlin Bogota Bologna Bombay Bordeaux Boston Bremen Brisbane Bristol
    Brussels Bucharest Budapest Cairo Calgary Canberra Caracas Cardiff Chicago Cologne Copenhagen Cork Dakar Dallas
    Damascus Delhi Denver Detroit Dhaka Dresden Dublin Durban Edinburgh Florence Frankfurt Geneva Genoa Ghent Glasgow
    Granada Grenoble Hamburg Hanoi Harare Havana Helsinki Honolulu Houston Istanbul Jakarta Kabul Kampala Karachi Kiev
    Kingston Kyoto Lagos Lahore Leeds Leipzig Lima Lisbon Liverpool London Luanda Lusaka Lyon Madrid Malaga Manchester
    Manila Marseille Melbourne Memphis Miami Milan Minsk Mombasa Montreal Moscow Munich Nairobi Naples Nice Osaka Oslo
    Ottawa Palermo Paris Perth Philadelphia Porto Prague Pretoria Quito Riga Rome Rotterdam Salzburg Santiago Seattle
    Seoul Seville Shanghai Singapore Sofia Stockholm Stuttgart Sydney Tallinn Tbilisi Tehran Tokyo Toronto Toulouse
    Tripoli Tunis Turin Valencia Vancouver Venice Vienna Vilnius Warsaw Wellington Winnipeg Yerevan Zagreb
    Zurich"""
)
HELD_OUT_EVERY = 8
"""Every eighth city is kept out of training."""

ADJECTIVES = _words(
    """amber ancient bitter bold brave bright broken calm careful clever cold crooked curious dark deep distant dusty
    early eager empty faint fierce flat foreign gentle golden grand green hasty heavy hidden hollow honest humble icy
    idle jolly keen kind lively lonely loose loud lucky mellow mild modest narrow noble pale patient plain polite proud
    quick quiet rapid rare rough rusty scarlet secret sharp shy silent silver simple sleepy slender smooth solid sour
    stern strange sturdy sudden tall tame tender tidy tiny tough vast velvet wandering warm weary wide wild
    wise"""
)
NOUNS = _words(
    """acorn anchor apron arrow basket beacon bell blanket boat bottle bridge broom brush bucket button candle canyon
    carpet castle cellar chimney clock cloud coin compass copper cottage cradle crown cupboard curtain dagger desk drum
    eagle engine falcon feather fence fiddle flag flute forest fountain garden gate glove hammer harbour harp hat hedge
    helmet horse island jacket jar jewel kettle key kite ladder lake lamp lantern leaf letter lion mantle map market
    meadow mill mirror mountain needle orchard oven owl paddle parcel pebble pencil pillow pocket pond quill raven
    ribbon river road robin rope saddle sail shadow shell shovel sparrow spoon stable star stone stove table teapot
    thimble tower trumpet tunnel umbrella valley violin wagon wall well wheel whistle willow window"""
)
VERBS = _words(
    """admired avoided carried chose crossed described dreaded examined followed forgot guarded hid kept left lost
    mended noticed painted passed praised preferred reached remembered returned saw sold sought studied touched trusted
    visited wanted watched"""
)
NAMES = _words("Agnes Amos Clara Edwin Ezra Hester Hugh Ida Jasper Lydia Martha Miles Nora Ralph Silas Winifred")
FORMATS = ("ballad", "diary entry", "essay", "fable", "joke", "letter", "poem", "riddle", "speech", "story")
"""What somebody is asked to write."""

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def with_article(noun: str) -> str:
    """ "an essay", "a poem"."""
    return f"{'an' if noun[0] in VOWELS else 'a'} {noun}"


def cities(*, held_out: bool) -> tuple[str, ...]:
    """The cities that training may use, or those that it must not."""
    return tuple(city for i, city in enumerate(CITIES) if (i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out)


def adjective_noun(random: np.random.Generator) -> str:
    """ "dusty-lantern"."""
    return f"{ADJECTIVES[random.integers(len(ADJECTIVES))]}-{NOUNS[random.integers(len(NOUNS))]}"


def made_up_word(random: np.random.Generator, syllables: int = 3) -> str:
    """A pronounceable word such as "tavoni", which most tokenizers write as several pieces."""
    letters = [alphabet[random.integers(len(alphabet))] for _ in range(syllables) for alphabet in (CONSONANTS, VOWELS)]
    return "".join(letters)


def made_up_text(seed: int, characters: int) -> Iterator[str]:
    """Paragraphs of simple English sentences, at least `characters` in all; the same for the same seed."""
    random = np.random.default_rng(seed)
    written = 0
    while written < characters:
        paragraph = " ".join(_sentence(random) for _ in range(random.integers(3, 9)))
        written += len(paragraph)
        yield paragraph


def _sentence(random: np.random.Generator) -> str:
    choose = lambda words: words[random.integers(len(words))]  # noqa: E731
    thing = lambda: f"the {choose(ADJECTIVES)} {choose(NOUNS)}"  # noqa: E731
    forms = (
        lambda: f"{choose(NAMES)} {choose(VERBS)} {thing()} near {thing()}.",
        lambda: f"When {choose(NAMES)} {choose(VERBS)} {thing()}, {choose(NAMES)} {choose(VERBS)} it too.",
        lambda: f"Beyond {thing()} stood {thing()}, which {choose(NAMES)} {choose(VERBS)}.",
        lambda: f'"Nobody {choose(VERBS)} {thing()}," said {choose(NAMES)}.',
        lambda: f"Did {choose(NAMES)} know who {choose(VERBS)} {thing()}?",
    )
    return choose(forms)()
