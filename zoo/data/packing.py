"""From documents to packed rows.

A tokenised document is a list of *predictions*: with ids = <bos> d1 .. dn <eos> these are the n + 1 triples (input
ids[i], target ids[i+1], weight). Packers move triples about, never tokens, so wherever a document is cut its last
input keeps its target, and the weights of all rows sum to the number of predicted tokens. <eos> is a target only.

A document that goes on in another row, or in another piece, begins a new segment there, at position 0.
"""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int32

from zoo.data.batch import Batch
from zoo.data.chat import render_for_training
from zoo.data.tokenizer import Tokenizer

PREDICTIONS = "predictions"
PACKING_BINS = 64  # rows that first-fit fills at a time; 64 leave 5-10 % padding


def predictions(document: Any, tokenizer: Tokenizer) -> dict[str, Int32[np.ndarray, "n 3"]]:
    """The (input, target, weight) triples of a document: a text, or a conversation (weight 1 on the model's turns
    only)."""
    if isinstance(document, str):
        ids = np.array(tokenizer.encode(document, bos=True, eos=True), np.int32)
        weights = np.ones(len(ids), np.int32)
    else:
        ids, weights = (np.array(values, np.int32) for values in render_for_training(document, tokenizer))
    return {PREDICTIONS: np.stack([ids[:-1], ids[1:], weights[1:]], axis=1)}


def packed_rows(documents: grain.IterDataset, packing: str, length: int, seed: int | None) -> grain.IterDataset:
    """Rows of `length` predictions with their segment ids and positions. first_fit shuffles its bins if there is a
    seed."""
    if packing == "concat":
        return _JsonSafe(grain.experimental.ConcatThenSplitIterDataset(documents, length_struct={PREDICTIONS: length}))
    return grain.experimental.FirstFitPackIterDataset(
        grain.experimental.FlatMapIterDataset(documents, _Pieces(length)),
        length_struct={PREDICTIONS: length},
        num_packing_bins=PACKING_BINS,
        seed=0 if seed is None else seed,
        shuffle_bins=seed is not None,
    )


def make_batch(rows: Sequence[dict[str, np.ndarray]], batch_size: int, pad_id: int) -> Batch:
    """Stacks packed rows; fewer than `batch_size` are filled up with rows of padding."""
    missing = batch_size - len(rows)

    def stack(key: str) -> np.ndarray:
        values = np.stack([row[key] for row in rows])
        return np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)]) if missing else values

    triples, segment_ids = stack(PREDICTIONS), stack(f"{PREDICTIONS}_segment_ids")
    real = segment_ids > 0
    return Batch(
        tokens=np.where(real, triples[..., 0], pad_id).astype(np.int32),
        targets=np.where(real, triples[..., 1], pad_id).astype(np.int32),
        positions=stack(f"{PREDICTIONS}_positions"),
        segment_ids=segment_ids,
        loss_weights=(triples[..., 2] * real).astype(np.float32),
    )


class _Pieces(grain.experimental.FlatMapTransform):
    """Cuts the predictions of a document into pieces that fit a row."""

    max_fan_out = 2**31  # only random access needs a bound

    def __init__(self, length: int):
        self._length = length

    def flat_map(self, element: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        triples = element[PREDICTIONS]
        return [{PREDICTIONS: triples[i : i + self._length]} for i in range(0, len(triples), self._length)]


class _JsonSafe(grain.IterDataset):
    """Concat-then-split whose state survives JSON, in which checkpoints hold it.

    Grain 0.2.18 compares slices with the tuple (-1, -1); read back from JSON they are lists, the comparison fails,
    and the document at which a state without remainder was saved is lost."""

    def __iter__(self) -> grain.DatasetIterator:
        return _JsonSafeIterator(self._parent.__iter__())


class _JsonSafeIterator(grain.DatasetIterator):
    def __next__(self):
        return next(self._parent)

    def get_state(self) -> dict[str, Any]:
        return self._parent.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        slices = {key: tuple(value) for key, value in state["remainder_slices"].items()}
        self._parent.set_state({**state, "remainder_slices": slices})
