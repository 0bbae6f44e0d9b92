"""Who writes to which slot: specialisation of slots, and synchronisation of specialists, as numbers."""

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.shared_workspace import sort_of_clevr

ROLES = ("cls", "question", "asked", "also asked", "another object")
"""Tokens of Sort-of-CLEVR by what they are to the question. The last one is the mean over the objects that are not
asked about; "also asked" is the second object of a ternary question."""


def effective_writers(weights: Float[np.ndarray, "*b n"]) -> float:
    """exp(entropy of a slot's weights), the mean over all slots: 1 = one specialist writes, n = all do alike.

    Weights of a hard competition that is not renormalised are divided by their sum; slots to which nobody writes are
    left out. NaN where that leaves none.
    """
    total = weights.sum(-1)
    shares = weights[total > 0] / total[total > 0][..., None]
    if not len(shares):
        return float("nan")
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1)
    return float(np.exp(entropy).mean())


def slot_likeness(weights: Float[np.ndarray, "*b m n"]) -> float:
    """Mean cosine between the writers' weights of two slots: 1 = all slots hear the same specialists, 0 = each has
    writers of its own. NaN for a single slot."""
    slots = weights.shape[-2]
    if slots < 2:
        return float("nan")
    norms = np.sqrt((weights**2).sum(-1, keepdims=True))
    unit = weights / np.where(norms > 0, norms, 1)
    cosines = np.einsum("...mn,...kn->...mk", unit, unit)
    return float(cosines[..., ~np.eye(slots, dtype=bool)].mean())


def fixedness(weights: Float[np.ndarray, "b *s n"]) -> float:
    """How far a slot's writers are the same for all inputs: the mean over slots of 1 - I / log n with the information
    I = H(mean over b of the weights) - mean over b of H(weights). 1 = the input says nothing about who writes.

    Weights are divided by their sums first; where nobody writes, everybody counts alike.
    """
    count = weights.shape[-1]
    total = weights.sum(-1, keepdims=True)
    shares = np.where(total > 0, weights / np.where(total > 0, total, 1), 1 / count)
    information = _entropy(shares.mean(0)) - _entropy(shares).mean(0)
    return float(1 - information.mean() / np.log(count))


def _entropy(shares: Float[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b"]:
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1)


def asked_tokens(questions: Int[np.ndarray, "n 18"]) -> Int[np.ndarray, "n 2"]:
    """Tokens (2 + colour) of the objects that are asked about; -1 for the second one where there is none."""
    objects = sort_of_clevr.OBJECTS
    first, second = questions[:, :objects], questions[:, objects : 2 * objects]
    return 2 + np.stack([first.argmax(1), np.where(second.any(1), second.argmax(1), -3)], axis=1)


def by_role(
    weights: Float[np.ndarray, "n *s t"], questions: Int[np.ndarray, "n 18"]
) -> Float[np.ndarray, "kinds *s roles"]:
    """By kind of question, the mean weight of a token of each of `ROLES`; NaN for what a kind does not have."""
    asked, kinds = asked_tokens(questions), questions[:, 12:15].argmax(1)
    tokens = np.arange(weights.shape[-1])
    found = []
    for kind in range(len(sort_of_clevr.KINDS)):
        own, tokens_asked = weights[kinds == kind], asked[kinds == kind]
        others = (tokens >= 2) & (tokens != tokens_asked[:, :1]) & (tokens != tokens_asked[:, 1:])
        masks = [tokens[None] == role for role in (0, 1)]
        masks += [tokens == tokens_asked[:, :1], tokens == tokens_asked[:, 1:], others]
        spread = tuple(range(1, weights.ndim - 1))
        sums = [np.where(np.expand_dims(mask, spread), own, 0).sum(-1).mean(0) for mask in masks]
        counts = [mask.sum() / max(1, len(own)) for mask in np.broadcast_arrays(*masks)]
        found.append(np.stack([s / c if c else np.full_like(s, np.nan) for s, c in zip(sums, counts)], axis=-1))
    return np.stack(found)


def persistence(weights: Float[np.ndarray, "b t *s k"], at: Bool[np.ndarray, "b t"] | None = None) -> float:
    """Part of slots whose strongest writer is that of the step before; of the steps `at` only. NaN for none."""
    strongest = weights.argmax(-1)
    same = (strongest[:, 1:] == strongest[:, :-1]).reshape(*strongest[:, 1:].shape[:2], -1).mean(-1)
    chosen = same if at is None else same[at[:, 1:]]
    return float(chosen.mean()) if chosen.size else float("nan")


def agreement(weights: Float[np.ndarray, "*b m k"]) -> float:
    """Part of pairs of slots with the same strongest writer: slots that listen to the same unit at the same time. NaN
    for a single slot."""
    strongest = weights.argmax(-1)
    slots = strongest.shape[-1]
    if slots < 2:
        return float("nan")
    same = strongest[..., :, None] == strongest[..., None, :]
    return float(same[..., ~np.eye(slots, dtype=bool)].mean())


def synchrony(moves: Float[np.ndarray, "b t k"]) -> float:
    """Mean over sequences and pairs of units of the correlation, over time, of how far their states move in a step:
    1 = all units move at the same steps. Units that move alike at all steps (or not at all) count as 0."""
    centred = moves - moves.mean(1, keepdims=True)
    norms = np.sqrt((centred**2).sum(1))
    unit = centred / np.where(norms > 1e-9, norms, 1)[:, None]
    correlations = np.einsum("btk,btl->bkl", np.where(norms[:, None] > 1e-9, unit, 0), unit)
    return float(correlations[:, ~np.eye(moves.shape[-1], dtype=bool)].mean())


def collisions(velocities: Float[np.ndarray, "n t k 2"], masses: Float[np.ndarray, "n k"]) -> Bool[np.ndarray, "n t"]:
    """Frames since the one before which two balls exchanged momentum, and neither met anything else."""
    change = np.diff(velocities, axis=1) * masses[:, None, :, None]
    sums = np.abs(change[:, :, :, None] + change[:, :, None]).max(-1)
    moved = np.abs(change).max(-1) > 1e-9
    pair = (sums < 1e-9) & moved[..., None] & moved[:, :, None]
    found = (pair & ~np.eye(velocities.shape[2], dtype=bool)).any((-1, -2))
    return np.concatenate([np.zeros((len(velocities), 1), bool), found], axis=1)
