"""The texts of a study: the novels that are trained on and those that are only measured on, one tokenizer for both."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from experiments.likelihood_vs_position.texts import check_setting, limited, read_documents
from experiments.long_context_recall.haystacks import Haystack, tokenised
from experiments.long_context_recall.needles import AFTER, BEFORE, NEEDLE, QUESTION
from experiments.long_context_recall.training.curriculum import Workload
from experiments.long_context_recall.words import made_up_text
from experiments.shared_folder import TRAINING_NOVELS
from zoo.data import Tokenizer, load_tokenizer, train_tokenizer

TEMPLATE_COPIES = 500
"""Of the wording of needle and question in the tokenizer's text, so that its words are tokens, as in a tokenizer of a
usual size: otherwise a question would be longer than the window."""
MADE_UP_SEED = 1
"""The haystack of the tests has another (`haystacks.haystack`)."""


def prepare(out: Path, workload: Workload, shared: Path | None) -> None:
    """Makes tokenizer and training text in the folder `out`, once. Raises `UserError` if it holds those of another text
    or of other sizes."""
    sizes = {name: asdict(workload)[name] for name in ("vocab_size", "train_bytes", "tokenizer_bytes")}
    check_setting(out, {"text": "made up" if shared is None else "novels", **sizes})
    if (out / "text.npz").is_file():
        return
    paragraphs = training_paragraphs(workload, shared)
    template = "\n".join(part.format(key="", value="", question="") for part in (BEFORE, NEEDLE, QUESTION, AFTER))
    texts = ["\n\n".join(limited(paragraphs, workload.tokenizer_bytes)), *[template] * TEMPLATE_COPIES, "0123456789"]
    tokenizer = train_tokenizer(texts, workload.vocab_size)
    tokenizer.save(out / "tokenizer")
    hay = tokenised("training text", paragraphs, tokenizer)
    unfinished = out / "unfinished.npz"
    np.savez(unfinished, ids=hay.ids, ends=hay.ends)
    unfinished.rename(out / "text.npz")


def training_paragraphs(workload: Workload, shared: Path | None) -> tuple[str, ...]:
    """Of the novels in `shared`; made here without it."""
    if shared is None:
        return tuple(made_up_text(MADE_UP_SEED, workload.train_bytes))
    found = (
        " ".join(part.split())
        for book in read_documents([str(shared / TRAINING_NOVELS)])
        for part in book.split("\n\n")
    )
    return tuple(limited((part for part in found if part), workload.train_bytes))


def read_training(out: Path) -> tuple[Tokenizer, Haystack]:
    """What `prepare` left in a folder."""
    with np.load(out / "text.npz", allow_pickle=False) as file:
        return load_tokenizer(out / "tokenizer"), Haystack("training text", (), file["ids"], file["ends"])


def passages(hay: Haystack, bos_id: int, count: int, length: int) -> Int32[np.ndarray, "rows length1"]:
    """So many passages of a text, evenly spaced, <bos> before each."""
    starts = np.linspace(0, len(hay.ids) - length, count).astype(int)
    return np.stack([np.concatenate([[bos_id], hay.ids[at : at + length]]) for at in starts]).astype(np.int32)


def size_of(out: Path) -> str:
    """One line about the training text."""
    setting = json.loads((out / "setting.json").read_text())
    with np.load(out / "text.npz", allow_pickle=False) as file:
        return f"{setting['text']}, {len(file['ids']):,} tokens of {setting['vocab_size']:,}"
