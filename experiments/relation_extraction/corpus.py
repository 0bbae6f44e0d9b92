"""A corpus in a folder: rel2id.json, and train, val and test as .jsonl, .jsonl.gz or .txt (OpenNRE's own name).

OpenNRE's files may begin with the name of the corpus: nyt10m_rel2id.json, nyt10m_train.txt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.relation_extraction.bags import Bag, make_bags
from experiments.relation_extraction.reader import Relations, read_instances, read_relations
from experiments.relation_extraction.splits import PARTS
from experiments.shared_folder import default_shared
from zoo.errors import UserError

CORPORA = ("gids_dsre", "indore_dsre")
"""Of the optional folder `shared`, in its folder `data`: GIDS (English) and IndoRE (English, Hindi, Telugu)."""


@dataclass(frozen=True)
class Corpus:
    """Bags to train on, to choose by and to test on."""

    name: str
    """Of its folder."""
    relations: Relations
    """The classes."""
    train: list[Bag]
    """For training."""
    val: list[Bag]
    """For every choice."""
    test: list[Bag]
    """For the figures."""


def read_corpus(folder: Path) -> Corpus:
    """The corpus of a folder. Raises `UserError` for what is missing, and for what `read_instances` does."""
    relations, *parts = files_of(folder)
    return read_files(folder.name, relations, *([part] for part in parts))


def read_files(name: str, relations: Path, train: list[Path], val: list[Path], test: list[Path]) -> Corpus:
    """The corpus of these files. Raises what `read_relations` and `read_instances` do."""
    known = read_relations(relations)
    return Corpus(name, known, *(make_bags(read_instances(paths, known)) for paths in (train, val, test)))


def files_of(folder: Path) -> tuple[Path, Path, Path, Path]:
    """(relations, train, val, test) of a folder. `UserError` for what is missing, or is there more than once."""
    train, val, test = (_first(folder, f"{part}.jsonl", f"{part}.jsonl.gz", f"{part}.txt") for part in PARTS)
    return _first(folder, "rel2id.json"), train, val, test


def default_data() -> Path:
    """data/ of the optional folder `shared`: $ZOO_SHARED, or beside the repository. `UserError` if there is none."""
    shared = default_shared()
    if shared is None or not (shared / "data").is_dir():
        raise UserError("no folder shared/data: name the folders of corpora with --data, or set ZOO_SHARED")
    return shared / "data"


def default_folders() -> Sequence[Path]:
    """Those of `CORPORA` that are there."""
    return [default_data() / name for name in CORPORA if (default_data() / name).is_dir()]


def _first(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    prefixed = [path for name in names for path in sorted(folder.glob(f"*_{name}"))]
    if len(prefixed) > 1:
        raise UserError(f"{folder}: {prefixed[0].name} and {prefixed[1].name} are both there; name files one by one")
    if prefixed:
        return prefixed[0]
    raise UserError(f"{folder}: no file {' or '.join(names)}")
