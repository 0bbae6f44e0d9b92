"""Test documents in batches of one document a row, and what a model says of them."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Float32

from zoo.data import Batch, DataConfig, LeftOut, Tokenizer, parse_interleaved
from zoo.data.log_mel import USM_SILENCE
from zoo.data.media_packing import (
    COORDINATES,
    IMAGES,
    MASK,
    MEL,
    PATCHES,
    MediaPredictions,
    make_media_batch,
)
from zoo.data.packing import PREDICTIONS

MEDIA = ("image", "audio", "video")
GREY = 128
"""8-bit pixels of an image that shows nothing."""


@dataclass(frozen=True)
class Scores:
    """What a model says of documents."""

    losses: Float32[np.ndarray, " n"]
    """Nats of the tokens that count, summed over each document."""
    counts: Float32[np.ndarray, " n"]
    """How many these are."""
    answers: Float32[np.ndarray, "n vocab"]
    """Logits of the first token that counts."""

    @property
    def nats(self) -> float:
        """Per token."""
        return float(self.losses.sum() / self.counts.sum())


def scores(
    model: nnx.Module,
    records: Sequence[dict[str, Any]],
    folder: Path,
    tokenizer: Tokenizer,
    data: DataConfig,
    *,
    blank: bool = False,
    rows: int = 32,
) -> Scores:
    """`records` with paths relative to `folder`; blank: grey images and silence of the same size instead of theirs."""
    graphdef, state = nnx.split(model)
    losses, counts, answers = [], [], []
    for batch, real in batches(records, folder, tokenizer, data, blank=blank, rows=rows):
        loss, count, answer = (np.asarray(value)[:real] for value in _scored(graphdef, state, batch))
        losses.append(loss)
        counts.append(count)
        answers.append(answer)
    return Scores(*(np.concatenate(parts) for parts in (losses, counts, answers)))


def batches(
    records: Sequence[dict[str, Any]],
    folder: Path,
    tokenizer: Tokenizer,
    data: DataConfig,
    *,
    blank: bool = False,
    rows: int = 32,
) -> Iterator[tuple[Batch, int]]:
    """(batch, its documents): all batches have the same shapes, the last one rows of padding."""
    elements = [_element(record, folder, tokenizer, data) for record in records]
    most = {key: max(len(element[key]) for element in elements) for key in elements[0]}
    # Few sizes, so that most kinds of documents share a compiled program.
    length = min(_rounded(most[PREDICTIONS], 32), data.sequence_length)
    patches, clips = _rounded(most.get(PATCHES, 0), 16), _rounded(most.get(MEL, 0), 2)
    media = replace(data.media, patches_per_row=patches, clips_per_row=clips)
    sizes = {PREDICTIONS: length}
    if media.patches_per_row:
        sizes |= dict.fromkeys((PATCHES, COORDINATES, IMAGES), media.patches_per_row)
    if media.clips_per_row:
        sizes |= dict.fromkeys((MEL, MASK), media.clips_per_row)
    for start in range(0, len(elements), rows):
        taken = elements[start : start + rows]
        if blank:
            taken = [_blank(element) for element in taken]
        yield make_media_batch([_row(element, sizes) for element in taken], rows, tokenizer.pad_id, media), len(taken)


def _rounded(count: int, least: int) -> int:
    """The next of 0, least, 2 * least, 4 * least and so on."""
    return least << max(0, math.ceil(math.log2(count / least))) if count else 0


def _element(record: dict[str, Any], folder: Path, tokenizer: Tokenizer, data: DataConfig) -> dict[str, np.ndarray]:
    document = parse_interleaved(record, "a test document", folder, data.media, data.text_field)
    assert document is not None
    element = MediaPredictions(tokenizer, data, LeftOut(), 1)(document)
    assert element is not None  # bad media stop the run
    return element


def _blank(element: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    values = {PATCHES: GREY, MEL: USM_SILENCE}
    return {key: np.full_like(found, values[key]) if key in values else found for key, found in element.items()}


def _row(element: dict[str, np.ndarray], sizes: dict[str, int]) -> dict[str, np.ndarray]:
    row = {}
    for key, size in sizes.items():
        found = element[key][:size]
        missing = size - len(found)
        row[key] = np.pad(found, ((0, missing), *[(0, 0)] * (found.ndim - 1)))
        row[f"{key}_segment_ids"] = np.pad(np.ones(len(found), np.int32), (0, missing))
        row[f"{key}_positions"] = np.pad(np.arange(len(found), dtype=np.int32), (0, missing))
    return row


@functools.partial(jax.jit, static_argnums=0)
def _scored(graphdef: Any, state: Any, batch: Batch) -> tuple[Any, Any, Any]:
    model: Any = nnx.merge(graphdef, state)
    hidden = model.hidden_states(
        batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids, media=batch.media
    )
    logits = model.logits(hidden)
    targets = jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
    losses = (jax.nn.logsumexp(logits, axis=-1) - targets) * batch.loss_weights
    first = jnp.argmax(batch.loss_weights, axis=1)
    answers = jnp.take_along_axis(logits, first[:, None, None], axis=1)[:, 0]
    return losses.sum(axis=1), batch.loss_weights.sum(axis=1), answers


def choices(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    """The first token of each answer. Which of them is likeliest is the answer of a model that may give no other, as
    long as no two are the same; ValueError if two are."""
    first = [tokenizer.encode(f" {word}")[0] for word in words]
    if len(set(first)) < len(first):
        raise ValueError(f"two of {', '.join(words)} begin with the same token: the tokenizer has too few")
    return first


def chosen(answers: Float[np.ndarray, "n vocab"], first: Sequence[int], words: Sequence[str]) -> list[str]:
    """The likeliest word of each row."""
    return [words[i] for i in np.argmax(answers[:, list(first)], axis=1)]


def without_media(record: dict[str, Any]) -> dict[str, Any]:
    """The document's texts alone."""
    return {**record, "content": [part for part in record["content"] if not set(MEDIA) & set(part)]}


def with_media_of(record: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The document with the media of another one of its form."""
    theirs = iter([part for part in other["content"] if set(MEDIA) & set(part)])
    return {**record, "content": [next(theirs) if set(MEDIA) & set(part) else part for part in record["content"]]}


def with_media_swapped(record: dict[str, Any]) -> dict[str, Any]:
    """The document with its first two parts in the other order."""
    first, second, *rest = record["content"]
    return {**record, "content": [second, first, *rest]}


def strangers(count: int, seed: int = 0) -> np.ndarray:
    """For each of `count` documents another one: a random order, in which each has its successor's."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, np.int64)
    other[order] = np.roll(order, 1)
    return other
