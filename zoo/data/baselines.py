"""What knowing only frequencies is worth: the figures that a trained model must clearly beat."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from zoo.data.batch import Batch
from zoo.data.corpus import Corpus
from zoo.data.packing import PREDICTIONS, predictions_of
from zoo.data.tokenizer import Tokenizer

SAMPLE_BYTES = 2_000_000


@dataclass(frozen=True)
class Baselines:
    """Cross-entropies of two models without context, on the tokens that a validation predicts."""

    unigram_nats_per_token: float
    """Of the token frequencies; comparable with the loss."""
    unigram_bits_per_byte: float
    """The same in bits per byte of text."""
    byte_unigram_bits_per_byte: float
    """Of the byte frequencies."""


@dataclass(frozen=True)
class Unigram:
    """What guessing by token frequencies alone is worth on a validation's targets."""

    nats_per_token: float
    """Cross-entropy under the frequencies."""
    accuracy: float
    """Share of the targets that are the most frequent token."""


def baselines(
    corpus: Corpus, tokenizer: Tokenizer, validation: Sequence[Batch], sample_bytes: int = SAMPLE_BYTES
) -> Baselines:
    """Cross-entropy H = -sum_v n_v log q_v / sum_v n_v of the validation's weighted targets, counted n_v, under
    q_v = (c_v + 1) / (sum c + V), where c_v are counts in a sample of the training documents; once over tokens and once
    over the bytes they stand for. Image codes are left out. Raises ValueError if the validation predicts no text."""
    validation_counts, train_counts = _both_counts(corpus, tokenizer, validation, sample_bytes)
    nats = _cross_entropy_sum(validation_counts, train_counts)
    histogram = _byte_histograms(tokenizer, np.flatnonzero(validation_counts + train_counts))
    validation_bytes, train_bytes = (histogram(counts) for counts in (validation_counts, train_counts))
    byte_nats = _cross_entropy_sum(validation_bytes, train_bytes)
    num_bytes = max(int(validation_bytes.sum()), 1)
    return Baselines(
        unigram_nats_per_token=nats / int(validation_counts.sum()),
        unigram_bits_per_byte=nats / math.log(2) / num_bytes,
        byte_unigram_bits_per_byte=byte_nats / math.log(2) / num_bytes,
    )


def unigram(
    corpus: Corpus, tokenizer: Tokenizer, validation: Sequence[Batch], sample_bytes: int = SAMPLE_BYTES
) -> Unigram:
    """The cross-entropy over tokens as in `baselines`, and the accuracy of always saying the token that is the most
    frequent one in the sample. For tokenizers whose tokens have no bytes. Raises as `baselines`."""
    validation_counts, train_counts = _both_counts(corpus, tokenizer, validation, sample_bytes)
    total = int(validation_counts.sum())
    return Unigram(
        nats_per_token=_cross_entropy_sum(validation_counts, train_counts) / total,
        accuracy=int(validation_counts[train_counts.argmax()]) / total,
    )


def _both_counts(
    corpus: Corpus, tokenizer: Tokenizer, validation: Sequence[Batch], sample_bytes: int
) -> tuple[Int64[np.ndarray, " vocab"], Int64[np.ndarray, " vocab"]]:
    """How often each token is a weighted target of the validation, and of a sample of the training documents."""
    validation_counts = np.zeros(tokenizer.vocab_size, np.int64)
    for batch in validation:
        validation_counts += _counts(np.asarray(batch.targets), np.asarray(batch.loss_weights), tokenizer.vocab_size)
    if not validation_counts.any():
        raise ValueError("the validation predicts no token")
    train_counts, predictions = np.zeros(tokenizer.vocab_size, np.int64), predictions_of(corpus.format)
    for document in corpus.sample(sample_bytes):
        _, targets, weights = predictions(document, tokenizer)[PREDICTIONS].T
        train_counts += _counts(targets, weights, tokenizer.vocab_size)
    return validation_counts, train_counts


def batch_bytes(batch: Batch, tokenizer: Tokenizer) -> int:
    """Bytes of the text that the weighted targets of a batch stand for: what bits per byte divide by."""
    targets = np.asarray(batch.targets)[np.asarray(batch.loss_weights) > 0]
    return int(tokenizer.token_bytes()[targets[targets < tokenizer.vocab_size]].sum())


def _counts(targets: np.ndarray, weights: np.ndarray, vocab_size: int) -> Int64[np.ndarray, " vocab"]:
    # Beyond the vocabulary lie the codes of images.
    return np.bincount(targets[(weights > 0) & (targets < vocab_size)], minlength=vocab_size)


def _cross_entropy_sum(counts: Int64[np.ndarray, " v"], model_counts: Int64[np.ndarray, " v"]) -> float:
    log_q: Float64[np.ndarray, " v"] = np.log((model_counts + 1.0) / (model_counts.sum() + len(model_counts)))
    return float(-(counts * log_q).sum())


def _byte_histograms(tokenizer: Tokenizer, used: np.ndarray):
    """A function from token counts to byte counts [256], for counts that are zero off `used`."""
    strings = tokenizer.token_strings()
    rows = np.stack([np.bincount(np.frombuffer(strings[id], np.uint8), minlength=256) for id in used])
    return lambda counts: counts[used] @ rows
