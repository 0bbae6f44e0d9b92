"""RULER's word counts: the most common words of a list (cwe) and of a coded text (fwe).

RULER's list of words ends at some thousands; ours, the words of the haystack and then made-up ones, does not, so that
lists of any length can be filled.
"""

import math
import re
import string
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from experiments.long_context_recall.haystacks import Haystack
from experiments.long_context_recall.samples import Ids, Sample, Setting, distinct, frame, ids_of, largest
from experiments.long_context_recall.words import made_up_word
from zoo.errors import UserError

CWE_BEFORE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
CWE_AFTER = (
    "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that appear most often "
    "in the list are:"
)
COMMON = 10
"""Words that are asked for."""
FWE_BEFORE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words."
)
FWE_AFTER = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text? Answer: According to the coded text above, the three most frequently "
    "appeared words are:"
)


@dataclass(frozen=True)
class CommonWords:
    """How often words appear."""

    common: int = 30
    """Each of the ten."""
    uncommon: int = 3
    """Each of the others."""
    example_words: int = 40
    """Different words of the solved example."""
    example_common: int = 10
    """As `common`, in the example."""
    example_uncommon: int = 3
    """As `uncommon`, in the example."""


LONG = CommonWords()
SHORT = CommonWords(common=6, uncommon=1, example_words=20, example_common=3, example_uncommon=1)
"""Below 4,096 tokens."""


def common_words(task: str, setting: Setting, number: int) -> Sample:
    """The ten most common words of a numbered list, after a solved example."""
    random = setting.random(task, number)
    config = LONG if setting.length >= 4096 else SHORT
    known = known_words(setting.haystack)
    order = random.permutation(len(known))
    word = lambda i: known[order[i]] if i < len(known) else extra_word(i - len(known))  # noqa: E731
    shown = [word(i) for i in range(config.example_words)]
    example_ids, _ = numbered(setting, shown, config.example_common, config.example_uncommon, random)
    example = [ids_of(setting, CWE_BEFORE), example_ids, ids_of(setting, CWE_AFTER + listed(shown[:COMMON]) + "\n")]
    asked = [word(config.example_words + i) for i in range(COMMON)]
    answer = listed(asked)
    framed = frame(setting, task, "", CWE_AFTER, answer, 120)
    head = ids_of(setting, CWE_BEFORE)
    room = framed.room - sum(map(len, example)) - len(head)
    words = list(asked)
    of_words = [len(ids_of(setting, f" {each}")) for each in asked]
    of_numbers: list[int] = []

    def cost(others: int) -> int:
        items = config.common * COMMON + config.uncommon * others
        while len(words) < COMMON + others:
            words.append(word(config.example_words + len(words)))
            of_words.append(len(ids_of(setting, f" {words[-1]}")))
        while len(of_numbers) < items:
            of_numbers.append(len(ids_of(setting, f" {len(of_numbers) + 1}.")))
        repeated = config.common * sum(of_words[:COMMON]) + config.uncommon * sum(of_words[COMMON : COMMON + others])
        return repeated + sum(of_numbers[:items])

    others = largest(cost, room, 1, task)
    context, counts = numbered(setting, words[: COMMON + others], config.common, config.uncommon, random)
    return Sample(
        task=task,
        prompt=framed.prompt([*example, head, context]),
        references=tuple(asked),
        answer=answer,
        max_new_tokens=framed.max_new_tokens,
        metric="string_match_all",
        facts={"length": setting.length, "words": len(counts), "items": sum(counts)},
    )


def listed(words: list[str]) -> str:
    """ " 1. apple 2. pear"."""
    return "".join(f" {i}. {word}" for i, word in enumerate(words, start=1))


def numbered(
    setting: Setting, words: list[str], common: int, uncommon: int, random: np.random.Generator
) -> tuple[Ids, list[int]]:
    """(the shuffled list, how often each word is in it); the first ten words are the common ones."""
    counts = [common] * COMMON + [uncommon] * (len(words) - COMMON)
    items = np.repeat(np.arange(len(words)), counts)
    pieces = []
    for i, word in enumerate(random.permutation(items), start=1):
        pieces += [ids_of(setting, f" {i}."), ids_of(setting, f" {words[word]}")]
    return np.concatenate(pieces), counts


@lru_cache(maxsize=4)
def known_words(hay: Haystack) -> list[str]:
    """The lower-case words of four letters and more of the haystack, by alphabet."""
    found: set[str] = set()
    for paragraph in hay.paragraphs:
        found.update(re.findall(r"(?<![\w'-])[a-z]{4,}(?![\w'-])", paragraph))
    return sorted(found)


@lru_cache(maxsize=2**20)
def extra_word(number: int) -> str:
    """Made-up words beyond those: of five syllables, so that they are hardly ever the same."""
    return made_up_word(np.random.default_rng(number), 5)


@dataclass(frozen=True)
class FrequentWords:
    """Frequent words extraction."""

    letters: int = 6
    """Of a coded word."""
    exponent: float = 2.0
    """The word of rank k is in the text n k^-exponent / zeta(exponent) times."""
    tokens_per_word: int = 50
    """As many different words as the length has so many tokens."""


def frequent_words(config: FrequentWords, task: str, setting: Setting, number: int) -> Sample:
    """The three most frequent words of a coded text, the dots of rank 1 not counted. The text is shorter by some words
    where the fourth and the third would otherwise be equally frequent."""
    random = setting.random(task, number)
    if config.exponent <= 1:
        raise UserError(f"{task}: the exponent must be above 1, got {config.exponent}")
    kinds = max(setting.length // config.tokens_per_word, 5)
    coded = lambda: "".join(string.ascii_lowercase[i] for i in random.integers(0, 26, config.letters))  # noqa: E731
    words = ["...", *distinct(coded, kinds - 1, task)]
    answer = " " + ", ".join(words[1:4])
    framed = frame(setting, task, FWE_BEFORE, FWE_AFTER, answer, 50)
    pieces = [ids_of(setting, f" {word}") for word in words]
    lengths = np.array([len(piece) for piece in pieces])
    cost = lambda n: int(frequencies(n, kinds, config.exponent) @ lengths)  # noqa: E731
    least = next(n for n in range(1, 10_000) if clear(frequencies(n, kinds, config.exponent)))
    count = largest(cost, framed.room, least, task)
    while not clear(frequencies(count, kinds, config.exponent)):
        count -= 1
    items = random.permutation(np.repeat(np.arange(kinds), frequencies(count, kinds, config.exponent)))
    return Sample(
        task=task,
        prompt=framed.prompt([pieces[i] for i in items]),
        references=tuple(words[1:4]),
        answer=answer,
        max_new_tokens=framed.max_new_tokens,
        metric="string_match_all",
        facts={"length": setting.length, "words": kinds, "items": len(items)},
    )


def frequencies(n: int, kinds: int, exponent: float) -> Int[np.ndarray, " kinds"]:
    """floor(n k^-exponent / zeta(exponent)) for k = 1 .. kinds."""
    return np.floor(n * np.arange(1, kinds + 1) ** -exponent / zeta(exponent)).astype(int)


@lru_cache(maxsize=8)
def zeta(exponent: float, terms: int = 1000) -> float:
    """Riemann's zeta: the first terms, and the rest by Euler and Maclaurin's formula."""
    head = math.fsum(k**-exponent for k in range(1, terms))
    return head + terms ** (1 - exponent) / (exponent - 1) + terms**-exponent / 2


def clear(counts: Int[np.ndarray, " kinds"]) -> bool:
    """Whether the words of ranks 2 to 4 are in the text, and those of higher ranks less often."""
    return bool(counts[3] > counts[4])
