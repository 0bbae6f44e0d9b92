"""What a twin head must beat, on the same network: other thresholds and other losses.

Rebalanced logistic regression is in `logistic.py`. A threshold is found on held-out examples, never on test examples.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def prior_corrected(
    logits: Float[np.ndarray, "n c"],
    training_prior: Float[np.ndarray, " c"],
    target_prior: Float[np.ndarray, " c"] | None = None,
) -> Float[np.ndarray, "n c"]:
    """logits - log(training prior) + log(target prior), by default that of equal classes.

    The posterior under other priors if p(x | class) stays (Saerens, Latinne and Decaestecker, 2002); for equal classes,
    the logit adjustment after training of Menon et al. (arXiv 2007.07314) with tau = 1.
    """
    training = np.asarray(training_prior, np.float64)
    target = np.full(len(training), 1 / len(training)) if target_prior is None else np.asarray(target_prior, np.float64)
    for name, prior in (("training", training), ("target", target)):
        if not (prior > 0).all() or abs(prior.sum() - 1) > 1e-6:
            raise ValueError(f"{name} prior {prior.tolist()}: shares above 0 with the sum 1")
    return np.asarray(logits) - np.log(training) + np.log(target)


def best_threshold(positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """The threshold of `score > threshold` with the best balanced accuracy on these (held-out) examples: of all that
    are half-way between two neighbouring scores or beyond an end; of equally good ones the middle one."""
    positive, scores = np.asarray(positive, bool), np.asarray(scores, np.float64)
    if positive.all() or not positive.any():
        raise ValueError("both a positive and a negative example are needed")
    levels = np.unique(scores)
    middles = np.concatenate([[levels[0] - 1], (levels[1:] + levels[:-1]) / 2, [levels[-1] + 1]])
    found = 1 - np.searchsorted(np.sort(scores[positive]), middles, side="right") / positive.sum()
    refused = np.searchsorted(np.sort(scores[~positive]), middles, side="right") / (~positive).sum()
    best = np.flatnonzero(found + refused >= (found + refused).max() - 1e-12)
    return float(middles[best[len(best) // 2]])


def class_weights(labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " c"]:
    """n / (c * n_class) of the training set, for the losses below: it does not change from batch to batch."""
    counts = np.bincount(labels)
    if not counts.all():
        raise ValueError(f"classes have {counts.tolist()} examples; each needs one")
    return (len(labels) / (len(counts) * counts)).astype(np.float32)


def weighted_cross_entropy(
    logits: Float[Array, "n c"], labels: Int[Array, " n"], weights: Float[Array | np.ndarray, " c"] | None = None
) -> Float[Array, ""]:
    """The mean of weights[label] * -log softmax(logits)[label]; plain cross-entropy without weights."""
    return focal_loss(logits, labels, gamma=0.0, weights=weights)


def focal_loss(
    logits: Float[Array, "n c"],
    labels: Int[Array, " n"],
    gamma: float = 2.0,
    weights: Float[Array | np.ndarray, " c"] | None = None,
) -> Float[Array, ""]:
    """The mean of weights[label] * (1 - p)^gamma * -log p, p = softmax(logits)[label] (Lin et al., arXiv 1708.02002,
    equation 5, with a softmax)."""
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
    loss = -log_p
    if gamma:
        # 1 - exp(log p) would lose all digits where p is close to 1, and 0^gamma has no derivative for gamma < 1.
        loss *= jnp.maximum(-jnp.expm1(log_p), jnp.finfo(log_p.dtype).tiny) ** gamma
    if weights is not None:
        loss *= jnp.asarray(weights)[labels]
    return jnp.mean(loss)
