"""Scores to probabilities, fitted on examples that were held out.

    p(class c | scores s) = softmax_c(scale * s_c + offset_c),   scale >= 0

With offsets, for two classes, this is Platt's sigmoid of s_1 - s_0 (Platt, 1999); without offsets it is temperature
scaling (Guo et al., arXiv 1706.04599). The negative log-likelihood is convex in (scale, offsets).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int


class Calibration(NamedTuple):
    """A scale and an offset for each class; the first offset is 0."""

    scale: float
    offsets: Float64[np.ndarray, " c"]


def fit_calibration(
    scores: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], *, with_offsets: bool = True
) -> Calibration:
    """The likeliest one, in float64 by scipy's L-BFGS-B.

    Targets are Platt's: (N_c + 1) / (N_c + K) for an example of class c, 1 / (N_c + K) for each other class, with K
    classes and N_c examples of c, so that separable classes do not make the scale infinite. With offsets, probabilities
    have the classes' shares among these examples: hold out examples at the shares that will be met. Raises ValueError
    for shapes that do not fit, scores that are not finite, or labels outside 0..K-1.
    """
    from scipy.optimize import Bounds, minimize

    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(f"scores {scores.shape} and labels {labels.shape}: [n, c] and [n] are needed, n above 0")
    if not np.isfinite(scores).all():
        raise ValueError("scores are not all finite")
    count, num_classes = scores.shape
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels {labels.min()}..{labels.max()} of {num_classes} classes")
    unit = float(np.std(scores - scores.mean(axis=1, keepdims=True))) or 1.0
    scores = scores / unit
    sizes = np.bincount(labels, minlength=num_classes)[labels]
    targets = np.repeat(1 / (sizes + num_classes)[:, None], num_classes, axis=1)
    targets[np.arange(count), labels] = (sizes + 1) / (sizes + num_classes)

    def function(point: np.ndarray) -> tuple[float, np.ndarray]:
        logits = point[0] * scores + np.concatenate([[0.0], point[1:]])
        log_p = _log_softmax(logits)
        error = (np.exp(log_p) - targets) / count
        gradient = np.concatenate([[np.sum(error * scores)], error.sum(axis=0)[1:]])
        return -float(np.sum(targets * log_p)) / count, gradient

    free = np.inf if with_offsets else 0.0
    low, high = np.r_[0.0, np.full(num_classes - 1, -free)], np.r_[np.inf, np.full(num_classes - 1, free)]
    start = np.r_[1.0, np.zeros(num_classes - 1)]
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000}
    found = minimize(function, start, jac=True, method="L-BFGS-B", bounds=Bounds(low, high), options=options)
    return Calibration(float(found.x[0]) / unit, np.r_[0.0, found.x[1:]])


def calibrated(calibration: Calibration, scores: Float[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
    """softmax(scale * scores + offsets)."""
    return np.exp(_log_softmax(calibration.scale * np.asarray(scores, np.float64) + calibration.offsets))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
