"""Raw examples of each family: read from the folder `shared`, divided into stages, or made up."""

import hashlib
import unicodedata
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from experiments.continual_multilingual.languages import read_distances
from experiments.continual_multilingual.sizes import Family, Size
from zoo.errors import UserError

Example = tuple[str, ...]
"""Columns of a line. tagging: words, tags (with blanks between). classification: label, text. transduction: lemma,
form, features (with semicolons between)."""
Split = Mapping[str, list[Example]]
COLUMNS = {"tagging": 2, "classification": 2, "transduction": 3}


@dataclass(frozen=True)
class Corpus:
    """One family's data."""

    stage0: Split
    """By language: what the model of all languages is trained on."""
    new: Split
    """By language: what an update brings. None of it is in stage 0."""
    dev: Split
    """By language: what is chosen by."""
    test: Split
    """By language: what is measured on."""
    distances: Float[np.ndarray, "l l"]
    """Between the languages, in the family's order."""
    fingerprint: str
    """Of all files."""


def read_corpus(family: Family, size: Size, shared: Path | None) -> Corpus:
    """The languages' files, and the table of distances.

    Training lines are put into an order that depends on the language alone and divided: the first
    `per_language` (at most half) are stage 0, then up to `new_rows` are new. Lines that occur twice count once; a line
    that is in training is left out of the other files. A language without a development file (Galician) has the last
    lines of the training file instead; a family that is `held_out` has its test lines from there, too.

    Raises:
      UserError: there is no folder, file or table, or a line is not what it should be.
    """
    if shared is None or not (shared / "data" / family.data).is_dir():
        raise UserError(
            f"the study needs shared/data/{family.data}: set ZOO_SHARED, or use --quick, which makes up its data"
        )
    folder, hashed = shared / "data" / family.data, hashlib.blake2b(digest_size=8)
    parts: dict[str, dict[str, list[Example]]] = {name: {} for name in ("stage0", "new", "dev", "test")}
    for language in family.languages:
        train = _lines(folder / f"{language}.train.tsv", family, hashed)
        order = np.random.default_rng(zlib.crc32(language.encode())).permutation(len(train))
        train = [train[number] for number in order]
        if family.held_out:
            train, rest = train[: -size.dev - family.test], train[-size.dev - family.test :]
            dev, test = rest[: size.dev], rest[size.dev :]
        else:
            seen = set(train)
            test = [one for one in _lines(folder / f"{language}.test.tsv", family, hashed) if one not in seen]
            if (folder / f"{language}.dev.tsv").is_file():
                dev = [one for one in _lines(folder / f"{language}.dev.tsv", family, hashed) if one not in seen]
            else:
                train, dev = train[: -size.dev], train[-size.dev :]
        first = min(family.per_language, len(train) // 2)
        parts["stage0"][language], parts["new"][language] = train[:first], train[first : first + size.new_rows]
        parts["dev"][language], parts["test"][language] = dev[: size.dev], test[: family.test]
    table = shared / "data" / "uriel" / f"dist_{family.data}_syntax_knn_cosine.tsv"
    distances = read_distances(table, family.languages)
    hashed.update(np.ascontiguousarray(distances).tobytes())
    return Corpus(**parts, distances=distances, fingerprint=hashed.hexdigest())


def _lines(path: Path, family: Family, hashed) -> list[Example]:
    """Different lines in their order, in Unicode's form NFD for transduction and NFC otherwise."""
    if not path.is_file():
        raise UserError(f"shared/data/{family.data}/{path.name} is missing")
    data = path.read_bytes()
    hashed.update(data)
    form: Literal["NFC", "NFD"] = "NFD" if family.name == "transduction" else "NFC"
    found: dict[Example, None] = {}
    for number, line in enumerate(data.decode("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        columns = tuple(unicodedata.normalize(form, cell) for cell in line.rstrip("\r").split("\t"))
        wrong = len(columns) != COLUMNS[family.name]
        if not wrong and family.name == "tagging":
            wrong = len(columns[0].split(" ")) != len(columns[1].split(" "))
        if wrong:
            raise UserError(f"{family.data}/{path.name}, line {number}: not the columns of {family.name}")
        found[columns] = None
    return list(found)


def made_up_corpus(family: Family, size: Size) -> Corpus:
    """Six languages in three pairs, for tests and --quick.

    A language's words are a stem and an ending; endings tell the tag, the sentiment or the features. The two of a pair
    share most endings; all share a few.
    """
    draw, count = np.random.default_rng(0), len(family.languages)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]

    def word(least: int) -> str:
        return "".join(draw.choice(syllables, size=least + int(draw.integers(2))))

    endings: list[list[str]] = []
    for number in range(count):
        own = [word(1) for _ in range(6)]
        if number:
            own[:1] = endings[0][:1]
        if number % 2:
            own[:5] = endings[number - 1][:5]
        endings.append(own)
    parts: dict[str, dict[str, list[Example]]] = {name: {} for name in ("stage0", "new", "dev", "test")}
    wanted = {"stage0": family.per_language, "new": size.new_rows, "dev": size.dev, "test": family.test}
    for language, own in zip(family.languages, endings, strict=True):
        for name, rows in wanted.items():
            parts[name][language] = [_made_up(family, own, word, draw) for _ in range(rows)]
    pair = np.arange(count) // 2
    distances = np.where(pair[:, None] == pair[None], 0.1, 0.5 + 0.02 * np.abs(pair[:, None] - pair[None]))
    np.fill_diagonal(distances, 0.0)
    return Corpus(**parts, distances=distances, fingerprint=f"made up: {family.name}")


def _made_up(family: Family, endings: list[str], word, draw: np.random.Generator) -> Example:
    tags = ("NOUN", "VERB", "ADJ", "ADV", "PRON", "PUNCT")
    chosen = draw.integers(len(endings), size=4)
    match family.name:
        case "tagging":
            words = [word(1) + "-" + endings[kind] for kind in chosen]
            return " ".join(words), " ".join(tags[kind] for kind in chosen)
        case "classification":
            kind = int(chosen[0]) % 3
            others = [word(1) for _ in range(3)]
            return ("negative", "neutral", "positive")[kind], " ".join([*others, endings[kind]])
    lemma, kind = word(2), int(chosen[0])
    return lemma, lemma + endings[kind], f"{tags[kind]};SG"
