"""A corpus in a folder: rel2id.json, and train, val and test as .jsonl, .jsonl.gz or .txt (OpenNRE's own name)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.relation_extraction.bags import Bag, make_bags
from experiments.relation_extraction.reader import Relations, read_instances, read_relations
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
    relations = read_relations(_first(folder, "rel2id.json"))
    parts = [_first(folder, f"{part}.jsonl", f"{part}.jsonl.gz", f"{part}.txt") for part in ("train", "val", "test")]
    return Corpus(folder.name, relations, *(make_bags(read_instances(path, relations)) for path in parts))


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
    raise UserError(f"{folder}: no file {' or '.join(names)}")
