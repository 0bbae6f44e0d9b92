"""Distances between languages, and what is decided by them: shares of deltas, widths, groups.

Distances are 1 - cosine of URIEL's `syntax_knn` vectors (103 syntactic features, gaps filled in by neighbours), which
are in the folder `shared`. They are not the distances that lang2vec prints, which were not at hand.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from zoo.errors import UserError

Distances = Float[np.ndarray, "l l"]
GROUPS = ("updated", "related", "other")


def read_distances(path: Path, languages: Sequence[str]) -> Distances:
    """The table of a file, in the order of `languages`. Raises `UserError` if it lacks a language, is not square, not
    symmetric, or has a diagonal other than 0."""
    if not path.is_file():
        raise UserError(f"{path.name} is missing in shared/data/uriel: it has the distances between languages")
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = lines[0][1:]
    missing = [language for language in languages if language not in names]
    if missing:
        raise UserError(f"{path.name} has no language {missing[0]}")
    if [line[0] for line in lines[1:]] != names or any(len(line) != len(names) + 1 for line in lines[1:]):
        raise UserError(f"{path.name}: rows and columns are not the same languages")
    table = np.array([[float(cell) for cell in line[1:]] for line in lines[1:]])
    if not np.allclose(table, table.T) or not np.allclose(np.diag(table), 0) or (table < 0).any():
        raise UserError(f"{path.name} is no table of distances: need a symmetric one with 0 in its diagonal")
    index = [names.index(language) for language in languages]
    return table[np.ix_(index, index)]


def near(distances: Distances) -> float:
    """The lower quartile of all distances between two languages."""
    return float(np.quantile(distances[np.triu_indices(len(distances), 1)], 0.25))


def permuted(distances: Distances, seed: int) -> Distances:
    """The same table with the languages permuted: the same distances, between languages that they say nothing of. No
    language keeps its place."""
    draw = np.random.default_rng(seed)
    while True:
        order = draw.permutation(len(distances))
        if (order != np.arange(len(order))).all():
            return distances[np.ix_(order, order)]


def shares(distances: Distances, updated: Sequence[int], least: float) -> Float[np.ndarray, "l u"]:
    """Of the delta of updated language u that language l reads: exp(-distance / tau), tau = `near(distances)`; 0 where
    that is below `least`. An updated language reads all of its own. tau is set by the table alone, since no score of
    an updated language tells how far its delta should reach."""
    weights = np.exp(-distances[:, list(updated)] / near(distances))
    return np.where(weights < least, 0.0, weights)


def width_of(distances: Distances, updated: Sequence[int], widths: tuple[int, int]) -> int:
    """Width of a shared delta of the second reading: narrow where the other languages are far from the updated ones.

        q = (d - min) / (max - min)        width = widest * (narrowest / widest)^q, rounded

    d: mean distance of the updated languages to all others; min and max: the least and the largest mean distance that a
    single language has to all others. q is kept within 0 and 1.
    """
    others = [number for number in range(len(distances)) if number not in set(updated)]
    mean = float(distances[np.ix_(list(updated), others)].mean())
    each = distances.sum(1) / (len(distances) - 1)
    part = float(np.clip((mean - each.min()) / max(each.max() - each.min(), 1e-12), 0.0, 1.0))
    narrowest, widest = widths
    return round(widest * (narrowest / widest) ** part)


def nearest(distances: Distances, updated: Sequence[int]) -> Float[np.ndarray, "l"]:
    """Of each language to the nearest updated one."""
    return distances[:, list(updated)].min(1)


def groups(distances: Distances, updated: Sequence[int]) -> list[str]:
    """Of each language: updated; related, where it is at most `near(distances)` from an updated one; or other."""
    limit, found = near(distances), nearest(distances, updated)
    return [
        "updated" if number in set(updated) else "related" if found[number] <= limit else "other"
        for number in range(len(distances))
    ]


def slot_gates(weights: Float[np.ndarray, "l u"], width: int, slots: int) -> Float[np.ndarray, "l r"]:
    """Gates of the languages' bottlenecks: each updated language has `width` slots side by side, of `slots` in all."""
    gates = np.repeat(weights, width, axis=1)
    if gates.shape[1] > slots:
        raise ValueError(f"{weights.shape[1]} deltas of width {width} have no room in {slots} slots")
    return np.pad(gates, ((0, 0), (0, slots - gates.shape[1]))).astype(np.float32)


def first_slots(languages: int, width: int, slots: int) -> Float[np.ndarray, "l r"]:
    """Gates of one delta that all languages read: its first `width` slots are open, the others never move."""
    open_ones: Int[np.ndarray, "r"] = (np.arange(slots) < width).astype(np.int64)
    return np.broadcast_to(open_ones, (languages, slots)).astype(np.float32)
