"""The text of the study: novels to train on and other novels to measure on, one tokenizer for both."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from experiments.gemma2_ablations.arms import Workload
from experiments.likelihood_vs_position.rows import Rows, passages
from experiments.likelihood_vs_position.texts import (
    Texts,
    check_setting,
    default_texts,
    joined,
    limited,
    read_documents,
    write_texts,
)
from experiments.long_context_recall.words import made_up_text
from zoo.data import train_tokenizer
from zoo.errors import UserError

CHUNK = 4096
"""Characters that are tokenised at a time, about; the tokenizer sees pieces of all books."""


def prepare(out: Path, workload: Workload) -> None:
    """Makes tokenizer and token ids in the folder `out`, once.

    Raises:
      UserError: there are no novels (a workload that asks for them), or the folder belongs to another text.
    """
    sizes = {name: asdict(workload)[name] for name in ("novels", "vocab_size", "train_bytes", "tokenizer_bytes")}
    if workload.novels and not (out / "texts.npz").is_file():
        check_novels()
    check_setting(out, sizes)
    if (out / "texts.npz").is_file():
        return
    train, held_out = _texts(workload)
    chunks = list(limited(chunks_of(train), workload.train_bytes))
    every = max(1, sum(map(len, chunks)) // workload.tokenizer_bytes)
    tokenizer = train_tokenizer(chunks[::every], workload.vocab_size)
    source = "novels; measured on other novels" if workload.novels else "sentences that were made up here"
    texts = Texts(joined(chunks, tokenizer), (joined(chunks_of(held_out), tokenizer),), tokenizer.bos_id, source)
    write_texts(texts, out / "texts.npz")


def check_novels() -> None:
    """Raises `UserError` if there are none."""
    if not default_texts()[0]:
        raise UserError(
            "the study reads novels (data/eltec_eng_novels), and there is no folder `shared` with them beside the "
            "repository: name it in ZOO_SHARED, or give --quick, which makes its text itself"
        )


def _texts(workload: Workload) -> tuple[list[str], list[str]]:
    """(text to train on, text to measure on)."""
    if workload.novels:
        train, held_out = (read_documents(files) for files in default_texts())
        return train, held_out
    made = workload.train_bytes
    return ["\n".join(made_up_text(1, made))], ["\n".join(made_up_text(2, made // 4))]


def chunks_of(books: Iterable[str]) -> Iterable[str]:
    """Pieces of about `CHUNK` characters that end with a line."""
    for book in books:
        start = 0
        while start < len(book):
            end = book.find("\n", start + CHUNK)
            end = len(book) if end < 0 else end + 1
            yield book[start:end]
            start = end


def test_rows(texts: Texts, workload: Workload) -> Rows:
    """`workload.test_rows` passages of the held-out text, evenly spread, <bos> before each; the same for all runs.
    Raises `UserError` where there are fewer."""
    rows, _ = passages(texts.held_out, workload.sequence_length, workload.test_rows, texts.bos_id)
    if len(rows) < workload.test_rows:
        raise UserError(f"the held-out text has {len(rows)} passages, and {workload.test_rows} are measured on")
    return rows


def probe_rows(rows: Rows, count: int) -> Rows:
    """`count` of the rows, evenly spread."""
    return rows[np.arange(count) * len(rows) // count]


def unigram_loss(texts: Texts, rows: Rows, vocab_size: int) -> float:
    """Nats per token of the rows (<bos> apart) under -log((n_v + 1) / sum(n + 1)), n the counts of the training text:
    what a model has that knows how frequent tokens are, and nothing else."""
    counts = np.bincount(texts.train, minlength=vocab_size) + 1.0
    return float(-np.log(counts / counts.sum())[rows[:, 1:]].mean())


def fingerprint(texts: Texts) -> str:
    """A digest of all token ids: results of different texts are not compared."""
    digest = hashlib.blake2b(digest_size=8)
    for ids in (texts.train, *texts.held_out):
        digest.update(np.ascontiguousarray(ids, "<i4").tobytes())
    return digest.hexdigest()
