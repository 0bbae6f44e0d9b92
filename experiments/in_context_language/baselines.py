"""Translation without a model: `python -m experiments.in_context_language.baselines`.

What a model reaches means something only beside these: copying the source, looking up every word, and giving the
translation of the most similar example."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from experiments.in_context_language.documents import make_document, material_of
from experiments.in_context_language.language import LanguageSize
from experiments.in_context_language.materials import Material, Pair, load_kalamang, load_lojban
from experiments.in_context_language.prompts import DIRECTIONS, Direction
from experiments.in_context_language.retrieval import CommonSubstringIndex, Index, NgramIndex
from experiments.in_context_language.scores import Score, normalise, score
from experiments.in_context_language.synthetic import SHOTS
from experiments.in_context_language.workloads import FEW_RULES
from experiments.shared_folder import default_shared
from experiments.speed.report import as_markdown
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command

Translate = Callable[[str], str]
ARTICLES = frozenset({"a", "an", "the"})
ENDINGS = ("ing", "ed", "es", "s", "d")
"""Of English words, tried in this order where a word is not found as it is."""
STOPS = tuple(".!?")
SHORTEST_STEM = 3
"""Letters at least of what is taken for the stem of an unknown foreign word."""


def copy_source(source: str) -> str:
    """The sentence itself: what names and loan words are worth."""
    return source


class NearestExample:
    """The translation of the sentence whose source is the most similar to the text, by an index of the sources."""

    def __init__(self, material: Material, direction: Direction, make_index: Callable[[list[str]], Index]):
        told = (*material.sentences, *material.book_examples)
        self._pairs = [_source_first(pair, direction) for pair in told]
        self._index = make_index([source for source, _ in self._pairs])

    def __call__(self, source: str) -> str:
        found = self._index.nearest(source, 1)
        return self._pairs[found[0]][1] if found else source


@dataclass(frozen=True)
class WordByWord:
    """Every word by the first sense of its entry, in the order of the source. What is not found is copied.

    Capitals and full stops are as in most of the example sentences."""

    material: Material
    direction: Direction

    def __call__(self, source: str) -> str:
        look_up = self._from_english if self.direction == "from English" else self._into_english
        text = " ".join(word for word in map(look_up, normalise(source).split()) if word)
        capital, stop = self._style
        end = source[-1] if source[-1:] in STOPS else "."
        return (text[:1].upper() + text[1:] if capital else text) + (end if stop else "")

    @cached_property
    def _style(self) -> tuple[bool, bool]:
        """Whether most sentences begin with a capital, and end with a full stop or the like."""
        targets = [_source_first(pair, self.direction)[1] for pair in self.material.sentences]
        return (
            2 * sum(text[:1].isupper() for text in targets) > len(targets),
            2 * sum(text[-1:] in STOPS for text in targets) > len(targets),
        )

    def _into_english(self, word: str) -> str:
        """By the entry of the word, else of the longest word that it begins with: endings are cut off."""
        for end in (len(word), *range(len(word) - 1, SHORTEST_STEM - 1, -1)):
            if word[:end] in self._english_of:
                return self._english_of[word[:end]]
        return word

    def _from_english(self, word: str) -> str:
        if word in ARTICLES:
            return ""
        stems = [word.removesuffix(ending) for ending in ENDINGS if word.endswith(ending)]
        for form in (word, *stems, *(stem + "e" for stem in stems)):
            if form in self._foreign_of:
                return self._foreign_of[form]
        return word

    @cached_property
    def _english_of(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for entry in self.material.entries:
            found.setdefault(normalise(entry.word), first_sense(entry.english))
        return found

    @cached_property
    def _foreign_of(self) -> dict[str, str]:
        """By every word of every sense, of the shortest sense first."""
        told = [(sense.split(), entry.word) for entry in self.material.entries for sense in senses(entry.english)]
        found: dict[str, str] = {}
        for words, foreign in sorted(told, key=lambda sense: len(sense[0])):
            for word in words:
                found.setdefault(word, foreign)
        return found


def senses(english: str) -> list[str]:
    """The senses that an entry gives, without remarks in brackets and without the "to" and "to be" of verbs."""
    text = re.sub(r"\([^)]*\)|\[[^\]]*\]|x\d", " ", english)
    found = [normalise(part) for part in re.split(r"[;,/.]", text)]
    return [sense for part in found if (sense := re.sub(r"^(to be|to|a|an|the|is a|is) ", "", part))]


def first_sense(english: str) -> str:
    """Of an entry; "" if there are only remarks."""
    return next(iter(senses(english)), "")


def baselines(material: Material, direction: Direction) -> dict[str, Translate]:
    """All of them, by name."""
    return {
        "copy the source": copy_source,
        "word by word": WordByWord(material, direction),
        "nearest example, n-grams": NearestExample(material, direction, NgramIndex),
        "nearest example, common substring": NearestExample(material, direction, CommonSubstringIndex),
    }


def table(materials: Sequence[Material]) -> list[list[str]]:
    """Rows of cells, the head first: chrF [95 % interval] of each baseline, and exact matches of the best one."""
    rows: list[list[str]] = []
    for material in materials:
        for direction in DIRECTIONS:
            found = evaluate(material, direction=direction)
            best = max(found.values(), key=lambda result: result.chrf)
            cells = [str(result) for result in found.values()]
            rows = rows or [["language", "direction", "sentences", *found, "exact, of the best"]]
            rows.append([material.language, direction, str(best.count), *cells, f"{best.exact:.0f} %"])
    return rows


def synthetic_table(languages: int, size: LanguageSize, shots: Sequence[int] = SHOTS) -> list[list[str]]:
    """Rows of cells, the head first: chrF of each baseline on unseen made-up languages of a size, by the number of
    example sentences. Reading the book would give 100."""
    rows: list[list[str]] = []
    for direction in DIRECTIONS:
        for number in shots:
            documents = [make_document(seed, "test", "all", direction, number, 4, size) for seed in range(languages)]
            found = evaluate(*map(material_of, documents), direction=direction)
            rows = rows or [["direction", "sentences told", "sentences asked", *found]]
            count = next(iter(found.values())).count
            rows.append([direction, str(number), str(count), *(str(result) for result in found.values())])
    return rows


def evaluate(*materials: Material, direction: Direction) -> dict[str, Score]:
    """The scores of all baselines on the test sentences of a direction, of all languages together."""
    translations: dict[str, list[str]] = {}
    references: list[str] = []
    for material in materials:
        pairs = [_source_first(pair, direction) for pair in material.tests[direction]]
        references += [translation for _, translation in pairs]
        for name, translate in baselines(material, direction).items():
            translations.setdefault(name, []).extend(translate(source) for source, _ in pairs)
    return {name: score(given, references) for name, given in translations.items()}


def _source_first(pair: Pair, direction: Direction) -> tuple[str, str]:
    return (pair.english, pair.foreign) if direction == "from English" else (pair.foreign, pair.english)


@dataclass(frozen=True)
class BaselinesConfig:
    """Prints the tables of baselines that need no model, for Kalamang and Lojban and for made-up languages, in both
    directions."""

    languages: int = 50
    """Unseen made-up ones; 0: only the real ones."""
    rich: bool = False
    """Made-up languages with all rules, instead of those of the study, which have few."""
    shared: Path | None = None
    """The folder that holds data/kalamang_grammar_dictionary and data/lojban_cll. Default: $ZOO_SHARED, or `shared`
    beside the repository."""


def shared_folder(named: Path | None = None) -> Path:
    """Where the real data is. Raises `UserError` if there is no such folder."""
    folder = named or default_shared()
    if folder is None or not folder.is_dir():
        where = folder or "shared"
        raise UserError(f"{where}: no such folder; --shared or $ZOO_SHARED names the one that holds the real data")
    return folder


def main() -> None:
    """The command."""
    config = parse_command(BaselinesConfig, "experiments.in_context_language.baselines")
    shared = shared_folder(config.shared)
    print(as_markdown(table([load_kalamang(shared), load_lojban(shared)])))
    if config.languages:
        print("\n" + as_markdown(synthetic_table(config.languages, LanguageSize() if config.rich else FEW_RULES)))


if __name__ == "__main__":
    run_command(main)
