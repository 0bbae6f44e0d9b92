"""Softmax regression of dense rows with weights of examples; numpy, and scipy's L-BFGS."""

from typing import NamedTuple

import numpy as np
import scipy.optimize
from jaxtyping import Float, Float64, Int


class Logistic(NamedTuple):
    """Of standardised rows: logits = (x - mean) / scale @ weights + biases."""

    mean: Float64[np.ndarray, " d"]
    scale: Float64[np.ndarray, " d"]
    weights: Float64[np.ndarray, "d c"]
    biases: Float64[np.ndarray, " c"]

    def logits(self, rows: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n c"]:
        """Of every class."""
        return (np.asarray(rows, np.float64) - self.mean) / self.scale @ self.weights + self.biases


def balanced_weights(labels: Int[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """n / (number of classes * number of the example's class): every class weighs the same, and the mean is 1."""
    counts = np.bincount(labels)
    return len(labels) / (np.count_nonzero(counts) * counts[labels])


def fit_logistic(
    rows: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    penalty: float = 1e-2,
    weights: Float[np.ndarray, " n"] | None = None,
    max_steps: int = 500,
) -> Logistic:
    """Minimises  sum_i weights_i * -log softmax(logits_i)[label_i] / n + penalty/2 |W|^2;  biases have no penalty.

    `weights=balanced_weights(labels)` is the rebalanced regression. Labels are 0, 1, ... and all finite rows do; a
    constant column is left as it is.
    """
    rows, labels = np.asarray(rows, np.float64), np.asarray(labels)
    count, dim, num_classes = *rows.shape, int(labels.max()) + 1
    weights = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1)
    x = np.concatenate([(rows - mean) / scale, np.ones((count, 1))], axis=1)
    targets = np.eye(num_classes)[labels]

    def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(dim + 1, num_classes)
        logits = x @ w
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        gradient = x.T @ ((np.exp(log_p) - targets) * weights[:, None]) / count
        gradient[:-1] += penalty * w[:-1]
        value = -weights @ np.sum(targets * log_p, axis=1) / count + 0.5 * penalty * np.sum(w[:-1] ** 2)
        return float(value), gradient.ravel()

    start = np.zeros((dim + 1) * num_classes)
    options = {"maxiter": max_steps, "ftol": 1e-12, "gtol": 1e-7}
    found = scipy.optimize.minimize(function, start, jac=True, method="L-BFGS-B", options=options)
    fitted = found.x.reshape(dim + 1, num_classes)
    return Logistic(mean, scale, fitted[:-1], fitted[-1])
