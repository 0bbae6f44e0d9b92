"""Logistic regression on sparse rows by L-BFGS (Liu and Nocedal, Mathematical Programming 45, 1989); numpy only."""

from collections import deque
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from experiments.relation_extraction.features import Rows

MEMORY = 6
"""Steps whose curvature L-BFGS remembers."""


def fit(
    rows: Rows, labels: Bool[np.ndarray, "rows out"], penalty: float, steps: int = 40
) -> Float[np.ndarray, "width out"]:
    """Weights of one logistic regression for each column of `labels`, all fitted together.

        minimise  sum over rows and columns of log(1 + exp(-y x . w)) + penalty / 2 * sum w^2,    y = 1 or -1

    The first column of `rows`, the constant, has no penalty. Computed in float32.
    """
    turned, targets = rows.transposed(), labels.astype(np.float32)
    shape = (rows.width, labels.shape[1])
    penalties = np.full((rows.width, 1), penalty, np.float32)
    penalties[0] = 0

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        logits = rows.times(weights)
        value = np.logaddexp(0, logits).sum(dtype=float) - logits[labels].sum(dtype=float)
        gradient = turned.times(probabilities(logits) - targets)
        return value + 0.5 * float((penalties * weights**2).sum(dtype=float)), (gradient + penalties * weights).ravel()

    return minimised(loss, np.zeros(shape, np.float32).ravel(), steps).reshape(shape)


def probabilities(logits: Float[np.ndarray, "rows out"]) -> Float[np.ndarray, "rows out"]:
    """1 / (1 + exp(-logit))."""
    return np.exp(-np.logaddexp(0, -logits))


def minimised(
    function: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, steps: int, tolerance: float = 1e-4
) -> np.ndarray:
    """The point that L-BFGS reaches from `start`, for a smooth convex function that returns (value, gradient).

    Stops after `steps`, where the gradient's largest entry is below `tolerance` times what it was, or where no shorter
    step lowers the value (rounding).
    """
    point, (value, gradient) = start, function(start)
    enough = tolerance * np.abs(gradient).max()
    pairs: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=MEMORY)
    for _ in range(steps):
        if np.abs(gradient).max() <= enough:
            break
        direction = -_times_inverse_curvature(gradient, pairs)
        slope = float(direction @ gradient)
        length = 1.0 if pairs else 1 / max(float(np.linalg.norm(gradient)), 1e-12)
        for _ in range(20):
            new = point + length * direction
            new_value, new_gradient = function(new)
            if new_value <= value + 1e-4 * length * slope:
                break
            length /= 2
        else:
            break
        step, change = new - point, new_gradient - gradient
        if step @ change > 1e-10 * (change @ change):
            pairs.append((step, change))
        point, value, gradient = new, new_value, new_gradient
    return point


def _times_inverse_curvature(gradient: np.ndarray, pairs: deque[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """L-BFGS's estimate of the inverse Hessian times the gradient, by its two loops."""
    if not pairs:
        return gradient
    result, shares = gradient.copy(), []
    for step, change in reversed(pairs):
        share = (step @ result) / (step @ change)
        shares.append(share)
        result -= share * change
    step, change = pairs[-1]
    result *= (step @ change) / (change @ change)
    for (step, change), share in zip(pairs, reversed(shares)):
        result += (share - (change @ result) / (step @ change)) * step
    return result
