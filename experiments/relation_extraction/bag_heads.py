"""Heads on sentences that were encoded alone: what PARE is compared with.

x_j is the vector of sentence j of a bag, made of its two entities' markers. All heads score with logits(s) = W s + b
and are trained with a softmax on bags of one relation each; they differ in how they make one vector or score of a bag.

* selective attention (Lin et al., ACL 2016): s = sum_j a_j x_j, a = softmax_j(x_j . W_r) of relation r
* average: s = mean_j x_j
* at least one (Zeng et al., EMNLP 2015): the sentence that is surest of the relation
* MNRE (Lin, Liu and Sun, ACL 2017): attention with queries Q_rk of relation r and language k, in every other language

In training r is the bag's relation. In testing every relation has its own s_r, and the score of r is its probability
softmax(W s_r + b)_r (OpenNRE). Present is False for sentences and languages that only fill up an array.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from experiments.relation_extraction.heads import masked_softmax
from zoo.nn import Execution
from zoo.nn.dropout import dropped
from zoo.nn.parameters import fan_in_normal, parameter, precision_of, project

HIGHEST = jax.lax.Precision.HIGHEST


class SentenceVector(nnx.Module):
    """x = A [H_head; H_tail] + a with the states of the two opening markers (OpenNRE's BERTEntityEncoder)."""

    def __init__(self, width: int, *, execution: Execution | None = None, rngs: nnx.Rngs):
        dtype = (execution or Execution()).weight_dtype
        self.kernel = parameter(rngs, (2 * width, 2 * width), ("embed", None), fan_in_normal(2 * width), dtype)
        self.bias = parameter(rngs, (2 * width,), ("norm",), jax.nn.initializers.zeros, dtype)

    def __call__(self, hidden: Float[Array, "n t d"], markers: Int[Array, "n 2"]) -> Float[Array, "n e"]:
        """One vector of each row; markers: where the head's and the tail's opening marker stand."""
        states = jnp.take_along_axis(hidden, markers[:, :, None], axis=1)
        states = states.reshape(len(hidden), -1)
        return project("nd,de->ne", states, self.kernel[...]) + self.bias[...].astype(hidden.dtype)


class _Classifier(nnx.Module):
    """W and b, and the dropout of the bag's vector in training (0.5 in OpenNRE)."""

    def __init__(
        self,
        num_relations: int,
        width: int,
        *,
        dropout: float = 0.5,
        execution: Execution | None = None,
        rngs: nnx.Rngs,
    ):
        dtype = (execution or Execution()).weight_dtype
        self.dropout = dropout
        self.kernel = parameter(rngs, (num_relations, width), (None, "embed"), fan_in_normal(width), dtype)
        self.bias = parameter(rngs, (num_relations,), (None,), jax.nn.initializers.zeros, dtype)

    def _logits(self, vectors: Float[Array, "*n e"]) -> Float32[Array, "*n r"]:
        kernel, bias = self.kernel[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        return jnp.einsum("...e,re->...r", vectors.astype(jnp.float32), kernel, precision=HIGHEST) + bias

    def _noisy(self, vectors: Float[Array, "b e"], rng: Key[Array, ""] | None) -> Float[Array, "b e"]:
        keys = None if rng is None else jax.random.split(rng, len(vectors))
        return dropped(vectors[:, None], self.dropout, keys)[:, 0]


class AttentionHead(_Classifier):
    """Selective attention; the query of a relation is its row of W. `detached`: no gradient through it (DiS-ReX)."""

    def __init__(self, num_relations: int, width: int, *, detached: bool = False, **settings):
        super().__init__(num_relations, width, **settings)
        self.detached = detached

    def training_logits(
        self,
        x: Float[Array, "b s e"],
        present: Bool[Array, "b s"],
        relation: Int[Array, "b"],
        rng: Key[Array, ""] | None = None,
    ) -> Float32[Array, "b r"]:
        """W s + b, where s attends with the query of the bag's own relation. rng: turns dropout on."""
        queries = self.kernel[...][relation]
        queries = jax.lax.stop_gradient(queries) if self.detached else queries
        weights = masked_softmax(
            jnp.einsum("bse,be->bs", x, queries.astype(x.dtype), precision=precision_of(x.dtype)), present
        )
        vectors = jnp.einsum("bs,bse->be", weights.astype(x.dtype), x, precision=precision_of(x.dtype))
        return self._logits(self._noisy(vectors, rng))

    def scores(self, x: Float[Array, "b s e"], present: Bool[Array, "b s"]) -> Float32[Array, "b r"]:
        """softmax(W s_r + b)_r, each relation with its own query."""
        queries = self.kernel[...].astype(x.dtype)
        weights = masked_softmax(
            jnp.einsum("bse,re->brs", x, queries, precision=precision_of(x.dtype)), present[:, None]
        ).astype(x.dtype)
        vectors = jnp.einsum("brs,bse->bre", weights, x, precision=precision_of(x.dtype))
        return _diagonal(jax.nn.softmax(self._logits(vectors)))


class AverageHead(_Classifier):
    """The mean of the sentences."""

    def training_logits(
        self,
        x: Float[Array, "b s e"],
        present: Bool[Array, "b s"],
        relation: Int[Array, "b"],
        rng: Key[Array, ""] | None = None,
    ) -> Float32[Array, "b r"]:
        """W s + b; the relation is not used. rng: turns dropout on."""
        return self._logits(self._noisy(_mean(x, present), rng))

    def scores(self, x: Float[Array, "b s e"], present: Bool[Array, "b s"]) -> Float32[Array, "b r"]:
        """softmax(W s + b)."""
        return jax.nn.softmax(self._logits(_mean(x, present)))


class AtLeastOneHead(_Classifier):
    """The sentence that is surest of the relation stands for the bag."""

    def training_logits(
        self,
        x: Float[Array, "b s e"],
        present: Bool[Array, "b s"],
        relation: Int[Array, "b"],
        rng: Key[Array, ""] | None = None,
    ) -> Float32[Array, "b r"]:
        """W x_j + b of the sentence with the largest probability of the bag's own relation. rng: turns dropout on."""
        own = jnp.take_along_axis(jax.nn.log_softmax(self._logits(x)), relation[:, None, None], axis=-1)[..., 0]
        surest = jnp.argmax(jnp.where(present, own, -jnp.inf), axis=-1)
        chosen = jnp.take_along_axis(x, surest[:, None, None], axis=1)[:, 0]
        return self._logits(self._noisy(chosen, rng))

    def scores(self, x: Float[Array, "b s e"], present: Bool[Array, "b s"]) -> Float32[Array, "b r"]:
        """max_j softmax(W x_j + b)."""
        return jnp.max(jnp.where(present[..., None], jax.nn.softmax(self._logits(x)), 0), axis=1)


class MultilingualHead(_Classifier):
    """MNRE as DiS-ReX has it: relation-and-language queries, applied within each language and across all.

    s_lk = sum_j softmax_j(x_lj . Q_rk) x_lj,    logits = sum over present l and all k of W s_lk + b + Q_.k s_lk
    """

    def __init__(
        self,
        num_relations: int,
        width: int,
        num_languages: int,
        *,
        execution: Execution | None = None,
        rngs: nnx.Rngs,
    ):
        # There is no dropout in the authors' code.
        super().__init__(num_relations, width, dropout=0.0, execution=execution, rngs=rngs)
        dtype = (execution or Execution()).weight_dtype
        shape, axes = (num_relations, num_languages, width), (None, None, "embed")
        self.queries = parameter(
            rngs, shape, axes, jax.nn.initializers.normal((2 / (num_relations + width)) ** 0.5), dtype
        )

    def training_logits(
        self, x: Float[Array, "b l s e"], present: Bool[Array, "b l s"], relation: Int[Array, "b"]
    ) -> Float32[Array, "b r"]:
        """Logits with the queries of the bag's own relation."""
        own = self.queries[...][relation].astype(x.dtype)
        weights = masked_softmax(
            jnp.einsum("blse,bke->blks", x, own, precision=precision_of(x.dtype)), present[:, :, None]
        ).astype(x.dtype)
        vectors = jnp.einsum("blks,blse->blke", weights, x, precision=precision_of(x.dtype))
        return self._summed(vectors[:, None], present)[:, 0]

    def scores(self, x: Float[Array, "b l s e"], present: Bool[Array, "b l s"]) -> Float32[Array, "b r"]:
        """softmax(logits with the queries of r)_r."""
        queries = self.queries[...].astype(x.dtype)
        weights = masked_softmax(
            jnp.einsum("blse,qke->bqlks", x, queries, precision=precision_of(x.dtype)), present[:, None, :, None]
        ).astype(x.dtype)
        vectors = jnp.einsum("bqlks,blse->bqlke", weights, x, precision=precision_of(x.dtype))
        return _diagonal(jax.nn.softmax(self._summed(vectors, present)))

    def _summed(self, vectors: Float[Array, "b q l k e"], present: Bool[Array, "b l s"]) -> Float32[Array, "b q r"]:
        queries, vectors = self.queries[...].astype(jnp.float32), vectors.astype(jnp.float32)
        logits = self._logits(vectors) + jnp.einsum("bqlke,rke->bqlkr", vectors, queries, precision=HIGHEST)
        spoken = present.any(-1)[:, None, :, None, None]
        return jnp.sum(jnp.where(spoken, logits, 0), axis=(2, 3))


def _mean(x: Float[Array, "b s e"], present: Bool[Array, "b s"]) -> Float[Array, "b e"]:
    return jnp.sum(jnp.where(present[..., None], x, 0), axis=1) / jnp.maximum(present.sum(1, keepdims=True), 1)


def _diagonal(probabilities: Float[Array, "b r r"]) -> Float[Array, "b r"]:
    return jnp.diagonal(probabilities, axis1=1, axis2=2)
