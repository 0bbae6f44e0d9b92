"""The networks of the arms: an encoder and a head, with one interface for training and for scoring."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Key

from experiments.relation_extraction.arms import Arm
from experiments.relation_extraction.bag_heads import (
    AtLeastOneHead,
    AttentionHead,
    AverageHead,
    MultilingualHead,
    SentenceVector,
)
from experiments.relation_extraction.heads import PassageHead, binary_loss, softmax_loss
from experiments.relation_extraction.inputs import Batch, Layout
from experiments.relation_extraction.pcnn import Pcnn, PcnnConfig
from experiments.relation_extraction.reader import Relations
from zoo.models.bert import Bert
from zoo.training.losses import LossSums

FROZEN = ("encoder/head",)
"""What guesses masked tokens, or pools: these arms do not read it."""


class Network(Protocol):
    """What training asks of an arm."""

    def loss(self, batch: Batch, rng: Key[Array, ""] | None) -> Float32[Array, ""]:
        """Sum over the bags of the batch, in nats; `rng` turns dropout on."""
        ...

    def scores(self, batch: Batch) -> Float32[Array, "bags relations"]:
        """Larger = surer."""
        ...


class PassageNetwork(nnx.Module):
    """PARE: one row for each bag. Loss: sum of binary cross-entropies."""

    def __init__(
        self,
        encoder: Bert,
        relations: Relations,
        arm: Arm,
        shares: Float[np.ndarray, "relations"] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        self.encoder, self.blocks, self.see_padding = encoder, arm.blocks, arm.see_padding
        width, na = encoder.config.embed_dim, relations.na if arm.own_na else None
        self.head = PassageHead(len(relations), width, na=na, shares=shares, execution=encoder.execution, rngs=rngs)

    def loss(self, batch: Batch, rng: Key[Array, ""] | None) -> Float32[Array, ""]:
        return binary_loss(self._logits(batch, rng), jnp.asarray(batch.labels), jnp.asarray(batch.weights))

    def scores(self, batch: Batch) -> Float32[Array, "bags relations"]:
        """Logits, whose sigmoids are the probabilities."""
        return self._logits(batch, None)

    def _logits(self, batch: Batch, rng: Key[Array, ""] | None) -> Float32[Array, "bags relations"]:
        hidden = encoded(self.encoder, batch, rng, blocks=self.blocks)
        return self.head(hidden, None if self.see_padding else jnp.asarray(batch.segment_ids) > 0)


class SentenceNetwork(nnx.Module):
    """One row for each sentence, a vector of each, and a head for the bag. Loss: softmax cross-entropy."""

    def __init__(self, encoder: Bert | Pcnn, relations: Relations, arm: Arm, languages: int, *, rngs: nnx.Rngs):
        self.encoder, self.languages = encoder, languages
        if isinstance(encoder, Bert):
            self.vector: Any = SentenceVector(encoder.config.embed_dim, execution=encoder.execution, rngs=rngs)
            width = 2 * encoder.config.embed_dim
        else:
            self.vector, width = None, encoder.width
        count = len(relations)
        match arm.head:
            case "attention":
                self.head: Any = AttentionHead(count, width, detached=arm.detached, rngs=rngs)
            case "average":
                self.head = AverageHead(count, width, rngs=rngs)
            case "at least one":
                self.head = AtLeastOneHead(count, width, rngs=rngs)
            case "mnre":
                self.head = MultilingualHead(count, width, languages, rngs=rngs)
            case _:
                raise ValueError(f"{arm.name}: {arm.head!r} is no head for sentences")

    def loss(self, batch: Batch, rng: Key[Array, ""] | None) -> Float32[Array, ""]:
        first, second = (None, None) if rng is None else jax.random.split(rng)
        vectors, relation = self._vectors(batch, first), jnp.asarray(batch.relation)
        if isinstance(self.head, MultilingualHead):
            logits = self.head.training_logits(*self._by_language(vectors, batch), relation)
        else:
            logits = self.head.training_logits(vectors, jnp.asarray(batch.present), relation, second)
        return softmax_loss(logits, relation, jnp.asarray(batch.weights))

    def scores(self, batch: Batch) -> Float32[Array, "bags relations"]:
        """Probabilities, each relation's with its own query."""
        vectors = self._vectors(batch, None)
        if isinstance(self.head, MultilingualHead):
            return self.head.scores(*self._by_language(vectors, batch))
        return self.head.scores(vectors, jnp.asarray(batch.present))

    def _vectors(self, batch: Batch, rng: Key[Array, ""] | None) -> Array:
        markers = jnp.asarray(batch.markers)
        if isinstance(self.encoder, Pcnn):
            vectors = self.encoder(jnp.asarray(batch.tokens), markers, jnp.asarray(batch.segment_ids) > 0)
        else:
            vectors = self.vector(encoded(self.encoder, batch, rng, blocks=False), markers)
        return vectors.reshape(*batch.present.shape, -1)

    def _by_language(self, vectors: Array, batch: Batch) -> tuple[Array, Array]:
        """(vectors [bags, languages, slots, e], whether the sentence is there and of that language)."""
        spoken = jnp.asarray(batch.languages)[:, None] == jnp.arange(self.languages)[None, :, None]
        shape = (len(vectors), self.languages, *vectors.shape[1:])
        return jnp.broadcast_to(vectors[:, None], shape), spoken & jnp.asarray(batch.present)[:, None]


def encoded(encoder: Bert, batch: Batch, rng: Key[Array, ""] | None, *, blocks: bool) -> Array:
    """Hidden states [rows, t, d]; blocks: a token sees its own sentence only, whose positions begin anew."""
    segments = jnp.asarray(batch.segment_ids)
    tokens = jnp.asarray(batch.tokens)
    if blocks:
        return encoder(tokens, position_ids=jnp.asarray(batch.positions), segment_ids=segments, rng=rng)
    return encoder(tokens, attention_mask=segments > 0, rng=rng)


def layout_of(arm: Arm) -> Layout:
    """How the arm reads its bags."""
    return Layout(arm.head == "passage", full_length=arm.see_padding)


def pcnn_of(encoder: Bert, *, rngs: nnx.Rngs) -> Pcnn:
    """A PCNN whose words are those of an encoder, as PCNN's began with word vectors that were learnt elsewhere."""
    config = encoder.config
    made = Pcnn(PcnnConfig(config.vocab_size, word_dim=config.embed_dim), rngs=rngs)
    made.word[...] = encoder.embedder.embedding[...].astype(made.word[...].dtype)
    return made


def network_of(
    arm: Arm,
    encoder: Bert,
    relations: Relations,
    languages: int,
    seed: int,
    shares: Float[np.ndarray, "relations"] | None = None,
) -> Network:
    """The arm's network, all of it but the encoder with random weights. shares: see `PassageHead`."""
    rngs = nnx.Rngs(seed)
    if arm.head == "passage":
        return PassageNetwork(encoder, relations, arm, shares, rngs=rngs)
    reads = pcnn_of(encoder, rngs=rngs) if arm.encoder == "pcnn" else encoder
    return SentenceNetwork(reads, relations, arm, languages, rngs=rngs)


def loss_sums(model: Any, batch: Batch, *, rng: Key[Array, ""] | None = None) -> LossSums:
    """For `zoo.training.step`: the mean over the bags that count is what is minimised."""
    zero = jnp.zeros((), jnp.float32)
    return LossSums(model.loss(batch, rng), zero, jnp.sum(jnp.asarray(batch.weights)))
