"""Long texts as token ids: a stream to train on, and whole documents that nothing is trained on."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from experiments.shared_folder import long_novels, named, training_novels
from zoo.data import Corpus, DataConfig, Tokenizer, open_corpus, train_tokenizer
from zoo.data.readers import open_documents, text_of
from zoo.data.sources import find_files
from zoo.errors import UserError

SEPARATOR = re.compile(r"^<\|book [^|\n]*\|>\n", re.MULTILINE)
"""The line before each book of a file that has several."""
TOKENIZER_BYTES = 5_000_000
"""The tokenizer is trained on so much text, at most."""

Ids = Int32[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Texts:
    """Everything that runs are trained and measured on."""

    train: Ids
    """All training documents, one after the other."""
    held_out: tuple[Ids, ...]
    """Documents to measure on."""
    bos_id: int
    """Token before every row."""
    source: str
    """One line: what the texts are."""


def default_texts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(files to train on, files to measure on): novels of the optional folder `shared`; both empty without it."""
    data, held_out = training_novels(), long_novels()
    return (data, held_out) if data and held_out else ((), ())


def read_documents(entries: Sequence[str]) -> list[str]:
    """The documents of files, folders or globs: the books of a file that has separators, else the whole file."""
    found = []
    for entry in entries:
        for file in find_files(entry)[0]:
            documents = open_documents(file, text_of("text"), "text", whole=True)
            found += [part for i in range(len(documents)) for part in SEPARATOR.split(documents[i]) if part.strip()]
    return found


def prepare(
    out: Path,
    data: tuple[str, ...],
    held_out: tuple[str, ...],
    *,
    vocab_size: int,
    most_bytes: int,
    setting: Mapping[str, Any],
) -> Texts:
    """Tokenizer and token ids of the texts, made once in the folder `out` and read again afterwards.

    data: files to train on; none: the source text of Python's standard library. held_out: files to measure on; none:
    the 5 % of the training documents that `zoo.data` holds out, one after the other, as one document. most_bytes: of
    the training text. setting: what runs of this folder must have in common besides the texts; JSON.

    Raises:
      UserError: the folder belongs to other texts or another setting; a file cannot be read.
    """
    corpus = open_corpus(DataConfig(paths=data, validation_fraction=0 if held_out else 0.05))
    documents = read_documents(held_out)
    digest = hashlib.blake2b("\0".join(documents).encode(), digest_size=16).hexdigest()
    check_setting(out, {"text": corpus.fingerprint, "held-out text": digest, **setting})
    if not (out / "texts.npz").is_file():
        tokenizer = train_tokenizer(corpus.train_texts(min(TOKENIZER_BYTES, most_bytes)), vocab_size)
        tokenizer.save(out / "tokenizer")
        documents = documents or ["\n".join(limited(_texts(corpus, "validation"), most_bytes))]
        described = functools.reduce(lambda text, entry: text.replace(entry, named(entry)), data, corpus.description)
        source = f"{described}; measured on " + (", ".join(map(named, held_out)) or "those for validation")
        streams = [joined(limited(_texts(corpus, "train"), most_bytes), tokenizer), *encoded(documents, tokenizer)]
        write_texts(Texts(streams[0], tuple(streams[1:]), tokenizer.bos_id, source), out / "texts.npz")
    return read_texts(out)


def check_setting(out: Path, setting: Mapping[str, Any]) -> None:
    """Keeps the setting in the folder; raises `UserError` if its runs were made with another one."""
    path, described = out / "setting.json", json.loads(json.dumps(setting))
    if not path.is_file():
        path.write_text(json.dumps(described, indent=1) + "\n")
    before = json.loads(path.read_text())
    for name, value in described.items():
        if before.get(name) != value:
            raise UserError(f"{out} holds runs with another {name}: give another --out, or remove it")


def keep_setting(out: Path, results: Path) -> None:
    """The setting of `out`, which `prepare` wrote, is that of the folder of results as well; raises `UserError` if
    those were made with another one."""
    results.mkdir(parents=True, exist_ok=True)
    check_setting(results, json.loads((out / "setting.json").read_text()))


def limited(texts: Iterable[str], most_bytes: int) -> Iterable[str]:
    """The first of them, until they have so many bytes; at least one."""
    given = 0
    for text in texts:
        yield text
        given += len(text.encode())
        if given >= most_bytes:
            return


def _texts(corpus: Corpus, split: str) -> Iterable[str]:
    for source in corpus.sources:
        view = getattr(source, split)
        yield from (SEPARATOR.sub("", corpus.text(view[i])) for i in range(len(view)))


def joined(texts: Iterable[str], tokenizer: Tokenizer) -> Ids:
    """The ids of all of them, one after the other."""
    return np.concatenate([np.asarray(tokenizer.encode(text), np.int32) for text in texts])


def encoded(documents: Sequence[str], tokenizer: Tokenizer) -> list[Ids]:
    """The ids of each document."""
    return [joined([document], tokenizer) for document in documents]


def write_texts(texts: Texts, path: Path) -> None:
    """One .npz file, whole or not at all."""
    unfinished = path.with_name("unfinished.npz")
    arrays: dict[str, Any] = {"train": texts.train, "bos_id": texts.bos_id, "source": texts.source}
    arrays |= {f"held_out_{number}": ids for number, ids in enumerate(texts.held_out)}
    np.savez(unfinished, **arrays)
    unfinished.rename(path)


def read_texts(out: Path) -> Texts:
    """What `prepare` left in a folder."""
    with np.load(out / "texts.npz", allow_pickle=False) as file:
        held_out = tuple(file[f"held_out_{number}"] for number in range(len(file.files) - 3))
        return Texts(file["train"], held_out, int(file["bos_id"]), str(file["source"]))
