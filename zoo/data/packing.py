"""From documents to packed rows.

A tokenised document is a list of *predictions*: with ids = <bos> d1 .. dn <eos> these are the n + 1 triples (input
ids[i], target ids[i+1], weight). Packers move triples about, never tokens, so wherever a document is cut its last
input keeps its target, and the weights of all rows sum to the number of predicted tokens. <eos> is a target only.

For masked tokens they are the n + 2 triples (ids[i], ids[i], weight): a model reads <eos> too, and guesses what stands
where it is.

A document that goes on in another row, or in another piece, begins a new segment there, at position 0.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int32

from zoo.data.batch import Batch
from zoo.data.chat import render_for_training
from zoo.data.interleaved import Interleaved
from zoo.data.rendering import render_text
from zoo.data.tokenizer import Tokenizer
from zoo.data.wordpiece_tokenizer import UNKNOWN

PREDICTIONS = "predictions"
PACKING_BINS = 64  # rows that first-fit fills at a time; 64 leave 5-10 % padding


def predictions(document: Any, tokenizer: Tokenizer) -> dict[str, Int32[np.ndarray, "n 3"]]:
    """The (input, target, weight) triples of a document: a text, a conversation (weight 1 on the model's turns only),
    or the texts of an interleaved document (`zoo.data.media_packing` has the whole)."""
    if isinstance(document, Interleaved):
        ids, weights = (np.array(values, np.int32) for values in render_text(document, tokenizer))
    elif isinstance(document, str):
        ids = np.array(tokenizer.encode(document, bos=True, eos=True), np.int32)
        weights = np.ones(len(ids), np.int32)
    else:
        ids, weights = (np.array(values, np.int32) for values in render_for_training(document, tokenizer))
    return {PREDICTIONS: np.stack([ids[:-1], ids[1:], weights[1:]], axis=1)}


def masked_predictions(document: str, tokenizer: Tokenizer) -> dict[str, Int32[np.ndarray, "n 3"]]:
    """The (input, target, weight) triples of a text whose tokens are to be guessed where they are masked: every token
    is its own target, of weight 0 if it is never masked (BOS, EOS and the unknown token)."""
    ids = np.array(tokenizer.encode(document, bos=True, eos=True), np.int32)
    never = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.id_of(UNKNOWN)]
    weights = ~np.isin(ids, [id for id in never if id is not None])
    return {PREDICTIONS: np.stack([ids, ids, weights.astype(np.int32)], axis=1)}


def predictions_of(format: str) -> Callable[..., dict[str, Int32[np.ndarray, "n 3"]]]:
    """The function `(document, tokenizer) -> triples` for a format (`DataConfig.format`)."""
    return masked_predictions if format == "masked" else predictions


def packed_rows(
    documents: grain.IterDataset,
    packing: str,
    length: int,
    seed: int | None,
    *,
    others: Mapping[str, int] | None = None,
    bins: int = PACKING_BINS,
) -> grain.IterDataset:
    """Rows of `length` predictions with their segment ids and positions. first_fit shuffles its bins if there is a
    seed, and keeps what else a document has beside its predictions, of `others[name]` entries at most in a row."""
    if packing == "single":
        return grain.experimental.FlatMapIterDataset(documents, _Pieces(length)).map(functools.partial(_alone, length))
    if packing == "concat":
        return _JsonSafe(grain.experimental.ConcatThenSplitIterDataset(documents, length_struct={PREDICTIONS: length}))
    return grain.experimental.FirstFitPackIterDataset(
        grain.experimental.FlatMapIterDataset(documents, _Pieces(length)),
        length_struct={PREDICTIONS: length, **(others or {})},
        num_packing_bins=bins,
        seed=0 if seed is None else seed,
        shuffle_bins=seed is not None,
    )


def _alone(length: int, document: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A row of one document, which is padded with zeros."""
    rows = document[PREDICTIONS]
    count, missing = len(rows), length - len(rows)
    return {
        PREDICTIONS: np.pad(rows, ((0, missing), (0, 0))),
        f"{PREDICTIONS}_segment_ids": np.repeat(np.array([1, 0], np.int32), (count, missing)),
        f"{PREDICTIONS}_positions": np.pad(np.arange(count, dtype=np.int32), (0, missing)),
    }


def stack_rows(rows: Sequence[dict[str, np.ndarray]], key: str, batch_size: int) -> np.ndarray:
    """One entry of all rows [batch_size, ...]; missing rows are zeros."""
    values = np.stack([row[key] for row in rows])
    missing = batch_size - len(rows)
    return np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)]) if missing else values


def make_batch(rows: Sequence[dict[str, np.ndarray]], batch_size: int, pad_id: int) -> Batch:
    """Stacks packed rows; fewer than `batch_size` are filled up with rows of padding."""

    def stack(key: str) -> np.ndarray:
        return stack_rows(rows, key, batch_size)

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
    """Cuts the predictions of a document into pieces that fit a row. One that has anything else fits as it is."""

    max_fan_out = 2**31  # only random access needs a bound

    def __init__(self, length: int):
        self._length = length

    def flat_map(self, element: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        triples = element[PREDICTIONS]
        starts = range(0, len(triples), self._length)
        return [{**element, PREDICTIONS: triples[start : start + self._length]} for start in starts]


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
