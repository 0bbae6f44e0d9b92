"""What is measured of a classifier of a rare class: none of these is better for saying the common class always."""

import numpy as np
from jaxtyping import Bool, Float, Int


def balanced_accuracy(labels: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"]) -> float:
    """The mean over the classes that occur of the share of their examples that are found (recall)."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    return float(np.mean([np.mean(predictions[labels == label] == label) for label in np.unique(labels)]))


def roc_auc(positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """The probability that a positive's score is above a negative's, equal ones counted half (Mann and Whitney)."""
    positive, scores = _both_classes(positive, scores)
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    p = int(positive.sum())
    return float((rank[positive].sum() - p * (p + 1) / 2) / (p * (len(positive) - p)))


def pr_auc(positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """Average precision: sum over thresholds of precision times the gain of recall. Equal scores are one threshold.
    A score that knows nothing has about the share of positives."""
    hits, _, found = _above_thresholds(positive, scores)
    return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * hits / found))


def sensitivity_at_specificity(
    positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], specificity: float = 0.95
) -> float:
    """The largest share of positives with a score of at least t, over the thresholds t that have at least this share of
    the negatives below them; 0 if none has. No interpolation between thresholds."""
    hits, false, _ = _above_thresholds(positive, scores)
    allowed = 1 - false / false[-1] >= specificity - 1e-12
    return float(np.max(hits[allowed], initial=0) / hits[-1])


def expected_calibration_error(
    labels: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, "n c"], bins: int = 15
) -> float:
    """sum over bins of n_bin / n * |accuracy - confidence|, with the largest probability of each row as its confidence
    and bins (i/b, (i+1)/b] of equal width (Naeini et al., AAAI 2015; Guo et al., arXiv 1706.04599)."""
    confidence = np.max(probabilities, axis=1)
    right = np.argmax(probabilities, axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _above_thresholds(positive, scores):
    """Positives, negatives and all examples at or above each distinct score, from the highest down."""
    positive, scores = _both_classes(positive, scores)
    order = np.argsort(-scores, kind="stable")
    last_of_equal = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(positive[order])[last_of_equal]
    found = np.flatnonzero(last_of_equal) + 1
    return hits, found - hits, found


def _both_classes(positive, scores):
    positive, scores = np.asarray(positive, bool), np.asarray(scores, np.float64)
    if positive.shape != scores.shape or positive.ndim != 1:
        raise ValueError(f"labels {positive.shape} and scores {scores.shape}: [n] each")
    if not np.isfinite(scores).all():
        raise ValueError("scores are not all finite")
    if positive.all() or not positive.any():
        raise ValueError("both a positive and a negative example are needed")
    return positive, scores
