"""Subsets in which one class is rare."""

import numpy as np
from jaxtyping import Bool, Int

from zoo.errors import UserError

RATIOS = (2, 14, 50)
"""Negatives for each positive."""


def imbalanced(
    positive: Bool[np.ndarray, " n"], patients: np.ndarray, ratio: int, seed: int, fewest: int = 4
) -> Int[np.ndarray, " m"]:
    """Positions, in rising order, of a subset with `ratio` negatives for each positive.

    The class that there is too much of is thinned patient by patient, in an order that the seed gives, until the number
    is met (of the last patient only some images may stay); all of the other class stay, so that
    positives = floor(negatives / ratio). With one seed, positives that stay at a larger ratio stay at every smaller
    one, so that differences between ratios are paired.

    Raises UserError if fewer than `fewest` positives would be left.
    """
    if ratio < 1:
        raise ValueError(f"ratio {ratio}: at least 1")
    count = int(positive.sum())
    wanted = min(count, (len(positive) - count) // ratio)
    if wanted < fewest:
        raise UserError(
            f"1:{ratio} of {count} positive and {len(positive) - count} negative images leaves {wanted} positive ones; "
            f"at least {fewest} are needed"
        )
    chosen = _patient_by_patient(np.flatnonzero(positive), patients, wanted, seed)
    # Where positives are the scarce ones the negatives are thinned; else, rounding leaves fewer than `ratio` too many.
    negatives = np.flatnonzero(~positive)
    if wanted == count:
        negatives = _patient_by_patient(negatives, patients, wanted * ratio, seed)
    return np.sort(np.concatenate([chosen, negatives]))


def _patient_by_patient(places: np.ndarray, patients: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The first `count` of `places` with the patients in a random order."""
    names, patient = np.unique(patients[places], return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    rank = np.empty(len(names), int)
    rank[order] = np.arange(len(names))
    return places[np.argsort(rank[patient], kind="stable")][:count]
