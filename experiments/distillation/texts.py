"""The texts of a study: what is trained on, one tokenizer for all runs, and the rows that are measured on at the end.

Measured are novels by authors that the training text does not have, and WikiText-2, which is another kind of text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from experiments.distillation.sizes import Size, data_of
from experiments.likelihood_vs_position.texts import check_setting, joined, read_documents
from experiments.long_context_recall.words import made_up_text
from experiments.shared_folder import TRAINING_NOVELS, default_shared
from zoo.data import Tokenizer, load_tokenizer, open_corpus, tokenizer_for
from zoo.errors import UserError

NOVELS, WIKITEXT = "novels", "wikitext2"
HELD_OUT = {
    NOVELS: ("data/eltec_eng_novels/valid.txt.xz", "data/eltec_eng_novels/test.txt.xz"),
    WIKITEXT: ("data/wikitext2_valid_test/valid.txt",),
}
"""Files of the folder `shared`, by what they are called in tables."""
SHARE = {NOVELS: 1.0, WIKITEXT: 0.5}
"""Of `Size.test_rows`."""
MADE_UP_FILES, MADE_UP_CHARACTERS = 24, 4_000
"""Of the text that takes the novels' place, each file a document."""

Rows = Int32[np.ndarray, "rows length"]


def shared_of(size: Size) -> Path | None:
    """The folder `shared` where a size has real text; None where it makes its own. Raises `UserError` if a file of it
    is missing."""
    if not size.novels:
        return None
    shared = default_shared()
    if shared is None:
        raise UserError("the study needs the folder `shared` beside the repository, or $ZOO_SHARED: see README.md")
    for file in (TRAINING_NOVELS, *(file for files in HELD_OUT.values() for file in files)):
        if not (shared / file).is_file():
            raise UserError(f"the study needs the file {file} of the folder `shared`, which is not there")
    return shared


def training_paths(out: Path, shared: Path | None) -> tuple[str, ...]:
    """What is trained on: the novels, or what `prepare` made."""
    return (str(out / "text"),) if shared is None else (str(shared / TRAINING_NOVELS),)


def prepare(out: Path, size: Size, shared: Path | None) -> None:
    """Makes the tokenizer and the rows to measure on in the folder `out`, once. Raises `UserError` if it holds those of
    another text or of other sizes."""
    check_setting(out, {"text": "made up" if shared is None else "novels", **size.data_settings()})
    if (out / "held_out.npz").is_file():
        return
    if shared is None:
        write_made_up(out / "text")
    data = data_of(size, training_paths(out, shared), 0, None)
    tokenizer = tokenizer_for(open_corpus(data), data)
    tokenizer.save(out / "tokenizer")
    rows: dict[str, Any] = {}
    for name, files in HELD_OUT.items():
        if shared is None:
            documents = list(made_up_text(len(rows) + MADE_UP_FILES, 2 * MADE_UP_CHARACTERS))
        else:
            documents = read_documents([str(shared / file) for file in files])
        count = round(size.test_rows * SHARE[name])
        rows[name] = passages(joined(documents, tokenizer), tokenizer.bos_id, count, size.sequence_length)
    unfinished = out / "unfinished.npz"
    np.savez(unfinished, **rows)
    unfinished.rename(out / "held_out.npz")


def write_made_up(folder: Path) -> None:
    """Simple sentences, the same on every machine, as files of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(MADE_UP_FILES):
        text = "\n\n".join(made_up_text(number, MADE_UP_CHARACTERS))
        (folder / f"{number:02}.txt").write_text(text + "\n", encoding="utf-8")


def passages(ids: Sequence[int] | np.ndarray, bos_id: int, count: int, length: int) -> Rows:
    """So many passages of a text, evenly spaced, <bos> before each: `length` tokens with it. Raises `UserError` if they
    would overlap."""
    ids = np.asarray(ids, np.int32)
    if len(ids) < count * (length - 1):
        raise UserError(f"the held-out text has {len(ids):,} tokens, too few for {count} rows of {length}")
    starts = np.linspace(0, len(ids) - (length - 1), count).astype(int)
    return np.stack([np.concatenate([[bos_id], ids[at : at + length - 1]]) for at in starts]).astype(np.int32)


def read_prepared(out: Path) -> tuple[Tokenizer, dict[str, Rows]]:
    """What `prepare` left in a folder: the tokenizer, and the rows by the name of their text."""
    with np.load(out / "held_out.npz", allow_pickle=False) as file:
        return load_tokenizer(out / "tokenizer"), {name: file[name] for name in file.files}
