"""Which corpus: one that is known by name, a folder, files one by one, or one that is made up."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from experiments.relation_extraction.bags import make_bags
from experiments.relation_extraction.corpus import Corpus, default_data, files_of, read_corpus, read_files
from experiments.relation_extraction.made_up import made_up
from experiments.relation_extraction.reader import NA, Relations, languages_of
from experiments.relation_extraction.relx import read_relx
from experiments.relation_extraction.splits import divided
from zoo.errors import UserError

FOLDERS = {"gids": "gids_dsre", "indore": "indore_dsre", "relx": "relx_sample"}
"""Names of data sets, and their folders in `data` of the optional folder `shared`."""
MADE_UP = "made up"
RELX_LANGUAGES = ("en", "de", "es", "fr", "tr")
RELX_SHARES = (0.6, 0.15, 0.25)
"""Of its pairs, for train, val and test."""


@dataclass(frozen=True)
class Dataset:
    """What to read."""

    name: str
    """gids, indore, relx, made up, a folder, or "files"."""
    relations: str | None = None
    """Of "files": rel2id.json."""
    train: tuple[str, ...] = ()
    """Of "files"."""
    val: tuple[str, ...] = ()
    """Of "files"."""
    test: tuple[str, ...] = ()
    """Of "files"."""

    @property
    def size(self) -> str:
        """Name of its sizes where the encoder is our own."""
        return self.name if self.name in FOLDERS else "quick" if self.name == MADE_UP else "own"

    @property
    def title(self) -> str:
        """As a report and folders call it, without the path."""
        return "made-up" if self.name == MADE_UP else Path(self.name).name

    @property
    def files(self) -> list[Path]:
        """All that are read, in order. `UserError` if one is missing."""
        if self.name == MADE_UP:
            return []
        if self.name == "files":
            found = [Path(path) for path in (self.relations or "", *self.train, *self.val, *self.test)]
        elif self.name == "relx":
            found = [default_data() / FOLDERS["relx"] / f"RELX_{language}.txt" for language in RELX_LANGUAGES]
        else:
            folder = default_data() / FOLDERS[self.name] if self.name in FOLDERS else Path(self.name)
            if not folder.is_dir():
                known = ", ".join(FOLDERS)
                raise UserError(f"--dataset {self.name}: neither one of {known} nor a folder of a corpus ({folder})")
            found = list(files_of(folder))
        for path in found:
            if not path.is_file():
                raise UserError(f"{path}: no such file")
        return found

    def fingerprint(self) -> str:
        """Of the bytes of all files, so that results are not mixed with those of other data."""
        digest = hashlib.blake2b(self.title.encode(), digest_size=8)
        for path in self.files:
            digest.update(hashlib.blake2b(path.read_bytes()).digest())
        return digest.hexdigest()


def read_dataset(dataset: Dataset) -> Corpus:
    """The corpus. Raises `UserError` for what is missing or wrong, with file and line."""
    if dataset.name == MADE_UP:
        return made_up()
    files = dataset.files
    if dataset.name == "relx":
        return _relx(files)
    if dataset.name == "files":
        parts = ([Path(path) for path in part] for part in (dataset.train, dataset.val, dataset.test))
        return read_files("files", files[0], *parts)
    return read_corpus(files[0].parent)


def speaks(corpus: Corpus) -> bool:
    """Whether its lines name their language."""
    return bool(languages_of(one for bag in corpus.train for one in bag.instances))


def _relx(files: list[Path]) -> Corpus:
    """The parallel sentences of all languages in one bag of each pair, divided by pair."""
    instances = [one for path, language in zip(files, RELX_LANGUAGES) for one in read_relx(path, language)]
    relations = Relations((NA, *sorted({one.relation for one in instances} - {NA})))
    parts = divided(instances, RELX_SHARES)
    return Corpus("relx", relations, *(make_bags(parts[part]) for part in ("train", "val", "test")))
