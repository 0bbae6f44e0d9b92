"""PARE's head on the states of a jointly encoded passage, and the two losses of the field.

Source: "PARE: A Simple and Strong Baseline for Monolingual and Multilingual Distantly Supervised Relation Extraction"
(ACL 2022, arXiv 2110.07415) and the authors' code (dair-iitd/DSRE).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from zoo.nn import Execution
from zoo.nn.parameters import fan_in_normal, parameter, precision_of


def relation_attention(
    hidden: Float[Array, "b t d"], queries: Float[Array, "r d"], visible: Bool[Array, "b t"] | None = None
) -> Float[Array, "b r d"]:
    """One vector of a passage for each relation, z_r = sum_t a_rt H_t with a_r = softmax_t(H_t . q_r).

    There is no 1 / sqrt(d). The authors' softmax runs over padding as well, which `visible` leaves out.

    Args:
      hidden: H, states of the passage's tokens.
      queries: q, one for each relation.
      visible: what takes part; None = everything, which is the authors' code. A row where nothing does, gives 0.
    """
    precision = precision_of(hidden.dtype)
    scores = jnp.einsum("btd,rd->brt", hidden, queries.astype(hidden.dtype), precision=precision).astype(jnp.float32)
    seen = jnp.ones(hidden.shape[:2], bool) if visible is None else visible
    weights = masked_softmax(scores, seen[:, None, :]).astype(hidden.dtype)
    return jnp.einsum("brt,btd->brd", weights, hidden, precision=precision)


def masked_softmax(scores: Float[Array, "*n s"], present: Bool[Array, "*#n s"]) -> Float32[Array, "*n s"]:
    """softmax over what is present, 0 elsewhere; 0 everywhere where nothing is (rows that fill up a batch)."""
    # Not -inf: the gradient of a row where nothing is present would be NaN.
    scores = jnp.where(present, scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    return jnp.where(present, jax.nn.softmax(scores, axis=-1), 0)


class PassageHead(nnx.Module):
    """logit_r = z_r . w + b with z of `relation_attention`: one scorer that all relations share.

    With `na` the class of that number has a scorer of its own, as the authors have it on the New York Times corpora.
    With `shares`, the part of the training bags that have each relation, b begins at the log odds of their mean (of
    `NA`'s own share where it has a scorer of its own): else the first steps are spent on making everything unlikely.
    """

    def __init__(
        self,
        num_relations: int,
        width: int,
        *,
        na: int | None = None,
        shares: Float[np.ndarray, "r"] | None = None,
        execution: Execution | None = None,
        rngs: nnx.Rngs,
    ):
        if na is not None and not 0 <= na < num_relations:
            raise ValueError(f"na={na} is none of {num_relations} relations")
        dtype = (execution or Execution()).weight_dtype
        scorers = 1 if na is None else 2
        self.na = na
        self.queries = parameter(
            rngs, (num_relations, width), (None, "embed"), jax.nn.initializers.glorot_normal(), dtype
        )
        self.scorer = parameter(rngs, (scorers, width), (None, "embed"), fan_in_normal(width), dtype)
        odds = np.zeros(scorers) if shares is None else log_odds(shares, na)
        self.scorer_bias = parameter(rngs, (scorers,), (None,), lambda *_: jnp.asarray(odds, jnp.float32), dtype)

    def __call__(
        self, hidden: Float[Array, "b t d"], visible: Bool[Array, "b t"] | None = None
    ) -> Float32[Array, "b r"]:
        """Logits of all relations; their sigmoids are the probabilities. Arguments as for `relation_attention`."""
        pooled = relation_attention(hidden, self.queries[...], visible).astype(jnp.float32)
        scorer, bias = self.scorer[...].astype(jnp.float32), self.scorer_bias[...].astype(jnp.float32)
        logits = jnp.einsum("brd,sd->brs", pooled, scorer, precision=jax.lax.Precision.HIGHEST) + bias
        if self.na is None:
            return logits[..., 0]
        return logits[..., 0].at[:, self.na].set(logits[:, self.na, 1])


def log_odds(shares: Float[np.ndarray, "r"], na: int | None = None) -> Float[np.ndarray, "s"]:
    """log(p / (1 - p)) of the mean share p; with `na`, of all others' mean and of `NA`'s own."""
    parts = [shares] if na is None else [np.delete(shares, na), shares[na]]
    # A relation that every bag has, or none, would begin at infinity.
    means = np.clip([np.mean(part) for part in parts], 1e-4, 1 - 1e-4)
    return np.log(means / (1 - means))


def binary_loss(
    logits: Float[Array, "b r"],
    labels: Bool[Array, "b r"] | Float[Array, "b r"],
    weights: Float[Array, "b"] | None = None,
) -> Float32[Array, ""]:
    """Sum over bags and relations of -y log p - (1 - y) log(1 - p), p = sigmoid(logit): binary cross-entropy in nats.

    A sum, as in PARE. `NA` is an output like others, whose label is 1 in bags of no relation.

    Args:
      weights: of bags; 0 leaves one out (rows that fill up a batch). Default 1.
    """
    logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
    losses = jnp.sum(jax.nn.softplus(logits) - labels * logits, axis=-1)
    return jnp.sum(losses if weights is None else losses * weights)


def softmax_loss(
    logits: Float[Array, "b r"], relation: Int[Array, "b"], weights: Float[Array, "b"] | None = None
) -> Float32[Array, ""]:
    """Sum over bags of -log softmax(logits)[relation], in nats: bags of one relation each, OpenNRE's training.

    Args:
      weights: of bags; 0 leaves one out. Default 1.
    """
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), relation[:, None], axis=-1)[:, 0]
    return -jnp.sum(chosen if weights is None else chosen * weights)
