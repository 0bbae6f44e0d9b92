"""All documents of a run, split into training and validation documents."""

import hashlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from zoo.data.chat import parse_conversation, text_of_conversation
from zoo.data.config import DataConfig
from zoo.data.interleaved import Interleaved, InterleavedDocuments, text_of_document
from zoo.data.labelled_images import LabelledImages
from zoo.data.media import LeftOut
from zoo.data.preferences import Preference, parse_preference
from zoo.data.prompted import Prompted, parse_prompted
from zoo.data.readers import Documents, Parse, open_documents, text_of
from zoo.data.rendering import check_contents
from zoo.data.sources import File, find_files, standard_library
from zoo.data.tasks import GeneratedDocuments
from zoo.errors import UserError


class DocumentView:
    """Chosen documents of some files, in a given order: what Grain needs of a source (`len` and indexing)."""

    def __init__(self, files: tuple[Documents, ...], indices: Int64[np.ndarray, " documents"]):
        self._files = files
        self._first = np.cumsum([0] + [len(file) for file in files])
        self.indices = indices
        """Numbers of the chosen documents, counted through all files."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        index = int(self.indices[position])
        file = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._files[file][index - int(self._first[file])]

    @property
    def num_bytes(self) -> int:
        """Size of the chosen documents as they lie in their (decompressed) files."""
        sizes = np.concatenate([file.sizes for file in self._files])
        return int(sizes[self.indices].sum())

    def reordered(self, order: Int64[np.ndarray, " documents"]) -> "DocumentView":
        """The same documents in another order."""
        return DocumentView(self._files, self.indices[order])


@dataclass(frozen=True)
class Source:
    """The documents that are drawn with one weight."""

    train: DocumentView
    validation: DocumentView
    """In the order of their hashes, so that its first documents are a fair sample."""
    weight: float


@dataclass(frozen=True)
class Corpus:
    """The documents of a run. They are read when they are asked for."""

    sources: tuple[Source, ...]
    description: str
    """One line: what was found."""
    fingerprint: str
    """Of the documents' names, sizes and split, and of the names and sizes of their media."""
    format: str
    left_out: LeftOut = field(default_factory=LeftOut)
    """The records whose media cannot be used, as far as this process has met them."""

    @property
    def num_train_documents(self) -> int:
        return sum(len(source.train) for source in self.sources)

    @property
    def num_validation_documents(self) -> int:
        return sum(len(source.validation) for source in self.sources)

    @property
    def train_bytes(self) -> int:
        """Size of the training documents; for JSON lines with their markup."""
        return sum(source.train.num_bytes for source in self.sources)

    def train_texts(self, max_bytes: int | None = None, seed: int = 0) -> Iterator[str]:
        """Training documents as text, in a random order that depends on `seed` only, until `max_bytes` of UTF-8 are
        given."""
        yield from (self.text(document) for document in self.sample(max_bytes, seed))

    def sample(self, max_bytes: int | None = None, seed: int = 0) -> Iterator[Any]:
        """As `train_texts`, but the documents as they are read: str, a conversation, or parts of which media are not
        read."""
        first = np.cumsum([0] + [len(source.train) for source in self.sources])
        given = 0
        for number in np.random.default_rng(seed).permutation(first[-1]):
            source = int(np.searchsorted(first, number, side="right")) - 1
            document = self.sources[source].train[int(number - first[source])]
            given += len(self.text(document).encode())
            yield document
            if max_bytes is not None and given >= max_bytes:
                return

    def text(self, document: Any) -> str:
        """The text of a document: itself, the contents of a conversation, or the texts among its parts."""
        if isinstance(document, Interleaved):
            return text_of_document(document)
        if isinstance(document, Preference | Prompted):
            return document.text
        return document if isinstance(document, str) else text_of_conversation(document)


def open_corpus(config: DataConfig) -> Corpus:
    """Finds, checks and splits the documents that `config` names.

    A document belongs to validation if a hash of (validation_seed, file name, number in the file) falls below
    `validation_fraction`: adding files moves no other document. Raises `UserError` for whatever cannot be read."""
    generated = config.task.name != "none"
    if config.format in _ONLY_JSON_LINES and not config.paths and not generated:
        what = _ONLY_JSON_LINES[config.format]
        raise UserError(f"format {config.format!r} needs paths of .jsonl {what}; there is no default corpus for it")
    parse: Parse = _PARSERS.get(config.format) or text_of(config.text_field)
    if generated:
        made: Documents = GeneratedDocuments(config.task, config.format)
        groups, passed_over = [[made]], 0
        title = f"{config.task.name}, operands 0 .. {config.task.largest}, {' '.join(config.task.operations)}"
    elif config.paths:
        found = [find_files(entry) for entry in config.paths]
        groups = [[_open(_supported(file, config), parse, config) for file in files] for files, _ in found]
        passed_over = sum(count for _, count in found)
        title = config.paths[0] if len(config.paths) == 1 else f"{config.paths[0]} and {len(config.paths) - 1} more"
    else:
        groups = [_open_standard_library(parse)]
        passed_over = 0
        title = f"source text of Python {sys.version.split()[0]}'s standard library (no tests, no generated tables)"
    for entry, group in zip(config.paths, groups, strict=False):
        if not any(len(file) for file in group):
            raise UserError("; ".join([f"{entry}: no document that is not empty", *_about_bad_media(group)]))

    weights = list(config.weights)
    if not weights:  # one source: every document once an epoch
        groups, weights = [_without_repeats(group for group in groups)], [1.0]
    kept = [(tuple(group), weight) for group, weight in zip(groups, weights, strict=True) if weight > 0]
    splits = _split([files for files, _ in kept], config)
    sources = tuple(
        Source(DocumentView(files, train), DocumentView(files, validation), weight)
        for (files, weight), (train, validation) in zip(kept, splits, strict=True)
    )
    bad = LeftOut({where: reason for files, _ in kept for where, reason in _bad_records(files).items()})
    description = _describe(title, sources, kept, passed_over)
    return Corpus(sources, description, _fingerprint(kept, splits), config.format, bad)


_ONLY_JSON_LINES = {
    "chat": "conversations",
    "interleaved": "documents",
    "labelled_images": "images with classes",
    "preference": "pairs of answers",
    "prompts": "prompts",
}
_PARSERS: dict[str, Parse] = {"chat": parse_conversation, "preference": parse_preference, "prompts": parse_prompted}


def _open(file: File, parse: Parse, config: DataConfig) -> Documents:
    if config.format == "labelled_images":
        return LabelledImages(file, config.images, config.media)
    if config.format != "interleaved" or file.kind != ".jsonl":
        return open_documents(file, parse, config.text_field)
    media = config.media

    def check(document: Interleaved) -> None:
        if media.check == "contents":
            check_contents(document, media)

    return InterleavedDocuments(file, media, config.text_field, check)


def _bad_records(files) -> dict[str, str]:
    """What is wrong with the records that were left out, by record."""
    found = [file.bad for file in files if isinstance(file, InterleavedDocuments)]
    return {where: reason for bad in found for where, reason in bad.items()}


def _about_bad_media(files) -> list[str]:
    bad = _bad_records(files)
    return [f"{len(bad):,} left out for bad media (the first: {next(iter(bad.values()))})"] if bad else []


def _open_standard_library(parse: Parse) -> list[Documents]:
    documents = []
    for file in standard_library():
        try:
            documents.append(open_documents(file, parse, "", whole=True))
        except UserError:  # a file of another encoding or without read permission: not the user's to mend
            continue
    return documents


def _supported(file: File, config: DataConfig) -> File:
    if config.format in (*_PARSERS, "labelled_images") and file.kind != ".jsonl":
        raise UserError(f"{file.path}: format {config.format!r} reads .jsonl files, not {file.kind}")
    return file


def _without_repeats(groups) -> list[Documents]:
    """A file that several entries name is read once."""
    unique: dict[Path, Documents] = {}
    for group in groups:
        for documents in group:
            unique.setdefault(documents.file.path.resolve(), documents)
    return list(unique.values())


def _split(groups: list[tuple[Documents, ...]], config: DataConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training, validation) document numbers of each group."""
    hashes = [
        np.concatenate([document_hashes(file.file.name, len(file), config.validation_seed) for file in group])
        for group in groups
    ]
    if config.validation_fraction == 0:
        return [(np.arange(len(h)), np.arange(0)) for h in hashes]
    held_out = [h < config.validation_fraction for h in hashes]
    total = sum(map(len, hashes))
    if total < 2:
        raise UserError(
            "validation needs at least 2 documents and there is 1; give more data, or set validation_fraction to 0"
        )
    for h, mask in zip(hashes, held_out, strict=True):
        if mask.all():  # every source must be able to give training rows
            mask[np.argmax(h)] = False
    if not any(mask.any() for mask in held_out):
        candidates = [(h.min(), group) for group, h in enumerate(hashes) if len(h) > 1]
        if not candidates:
            raise UserError("validation needs a path with at least 2 documents; or set validation_fraction to 0")
        group = min(candidates)[1]
        held_out[group][np.argmin(hashes[group])] = True
    order = [np.argsort(h, kind="stable") for h in hashes]
    return [(np.flatnonzero(~mask), o[mask[o]]) for mask, o in zip(held_out, order, strict=True)]


def document_hashes(name: str, count: int, seed: int) -> Float64[np.ndarray, " count"]:
    """Uniform numbers in [0, 1) for the documents 0 .. count-1 of a file: splitmix64 steps from a BLAKE2b key of
    (seed, name)."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little")
    with np.errstate(over="ignore"):
        z = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2**53


def _describe(title: str, sources: tuple[Source, ...], kept, passed_over: int) -> str:
    files = [file for group, _ in kept for file in group]
    train = sum(len(source.train) for source in sources)
    validation = sum(len(source.validation) for source in sources)
    megabytes = sum(int(file.sizes.sum()) for file in files) / 1e6
    parts = [_count(len(files), "file"), f"{megabytes:,.1f} MB" if megabytes >= 0.1 else f"{megabytes * 1e3:,.1f} kB"]
    parts.append(f"{_count(train + validation, 'document')} ({train:,} for training, {validation:,} for validation)")
    if skipped := sum(file.num_skipped for file in files):
        parts.append(f"{skipped:,} empty left out")
    parts += _about_bad_media(files)
    if passed_over:
        parts.append(f"{_count(passed_over, 'file')} of other kinds passed over")
    return f"{title}: " + ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _fingerprint(kept, splits) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for (group, weight), (train, _) in zip(kept, splits, strict=True):
        shares = math.frexp(weight)  # exact, unlike a printed float
        names = "\n".join(f"{file.file.name}\t{len(file)}\t{int(file.sizes.sum())}{_media(file)}" for file in group)
        digest.update(f"{shares}\n{names}\n".encode() + train.astype("<i8").tobytes())
    return digest.hexdigest()


def _media(file: Documents) -> str:
    return f"\t{file.media_digest}" if isinstance(file, InterleavedDocuments) else ""
