"""The loss of a model that guesses masked tokens (BERT, arXiv 1810.04805, sections 3.1 and A.1)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int32, Key

from zoo.parallel import axis_divisions
from zoo.training.losses import LossSums, chunked_cross_entropy
from zoo.training.output_head import float32_product

if TYPE_CHECKING:
    from zoo.data import Batch

MASKED_SHARE = 0.15
"""Part of a row's tokens that are guessed."""
AS_MASK, AS_RANDOM = 0.8, 0.1
"""Parts of those that are read as the mask token, and as any token of the vocabulary; the rest is read as it is."""


class MaskedModel(Protocol):
    """What the loss asks of a model (`zoo.models.Bert`)."""

    @property
    def config(self) -> Any:
        """With vocab_size and mask_token_id."""

    def __call__(self, input_ids: Any, *, position_ids: Any, segment_ids: Any, rng: Any) -> Any:
        """Tokens [B, T] to [B, T, D]; `rng` turns dropout on."""

    def masked_features(self, hidden: Any) -> Any:
        """[B, K, D], which the output layer reads."""

    def output_layer(self) -> Any:
        """(E [V, D], bias [V]) of the logits f . E^T + bias, in the compute dtype."""


class MaskedTokens(NamedTuple):
    """What a model reads, and what it has to guess."""

    tokens: Int32[Array, "B T"]
    """The batch's tokens with some of them replaced."""
    places: Int32[Array, "B K"]
    """Indices of the tokens to be guessed in their rows, in no order."""
    weights: Float32[Array, "B K"]
    """1; 0 at places that a row has too many."""


def mask_tokens(
    tokens: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    vocab_size: int,
    mask_token_id: int,
    rng: Key[Array, ""],
) -> MaskedTokens:
    """Draws max(1, round(0.15 n)) of the n tokens of each row whose weight is above 0, all equally likely.

    Of these 80 % are replaced by the mask token, 10 % by a token drawn from the whole vocabulary, and 10 % stay. Every
    row has K = ceil(0.15 T) places, the first so many of them with weight 1. The same key gives the same draw.
    """
    of_place, of_kind, of_token = jax.random.split(rng, 3)
    allowed = weights > 0
    length = tokens.shape[1]
    scores = jnp.where(allowed, jax.random.uniform(of_place, tokens.shape), -1.0)
    count = math.ceil(MASKED_SHARE * length)
    places = jax.lax.top_k(scores, count)[1]
    available = jnp.sum(allowed, axis=1)
    wanted = jnp.where(available > 0, jnp.maximum(1, jnp.round(MASKED_SHARE * available)), 0)
    chosen = jnp.arange(count)[None] < wanted[:, None]

    own = jnp.take_along_axis(tokens, places, axis=1)
    kind = jax.random.uniform(of_kind, places.shape)
    drawn = jax.random.randint(of_token, places.shape, 0, vocab_size, tokens.dtype)
    read = jnp.where(kind < AS_MASK, jnp.asarray(mask_token_id, tokens.dtype), drawn)
    read = jnp.where(chosen & (kind < AS_MASK + AS_RANDOM), read, own)
    rows = jnp.arange(len(tokens))[:, None]
    return MaskedTokens(tokens.at[rows, places].set(read), places, chosen.astype(jnp.float32))


def masked_token_loss(
    model: MaskedModel, batch: Batch, *, z_loss: float = 0.0, chunk_tokens: int | None = None, rng: Any = None
) -> LossSums:
    """The cross-entropy of the masked tokens of a batch of the format "masked", summed over them.

        weight = number of masked tokens, so that loss / weight is in nats per masked token

    Masks are drawn from `rng`, a key that differs in every step, which also turns on dropout. Without it, in
    validation, they depend on the batch's tokens only, and metrics has masked_accuracy, the number of masked tokens
    that have the highest logit. `z_loss` and `chunk_tokens` are those of `zoo.training.losses.next_token_loss`.
    """
    tokens, config = jnp.asarray(batch.tokens), model.config
    # Batches that are alike would have the same places masked, were the key a constant.
    key = jax.random.fold_in(jax.random.key(0), jnp.sum(tokens)) if rng is None else jax.random.fold_in(rng, 0)
    with jax.named_scope("mask"):
        masked = mask_tokens(
            tokens,
            jnp.asarray(batch.loss_weights),
            vocab_size=config.vocab_size,
            mask_token_id=config.mask_token_id,
            rng=key,
        )
    noise = None if rng is None else jax.random.fold_in(rng, 1)
    hidden = model(masked.tokens, position_ids=batch.positions, segment_ids=batch.segment_ids, rng=noise)
    features = model.masked_features(jnp.take_along_axis(hidden, masked.places[..., None], axis=1))
    features, table = with_bias(features, *model.output_layer())
    targets = jnp.take_along_axis(jnp.asarray(batch.targets), masked.places, axis=1)
    sums = chunked_cross_entropy(
        features,
        table,
        targets,
        masked.weights,
        z_loss=z_loss,
        chunk_length=None if chunk_tokens is None else max(1, chunk_tokens // len(tokens)),
    )
    if rng is not None:
        return sums
    right = jnp.sum(masked.weights * (highest(features, table) == targets))
    return sums._replace(metrics={"masked_accuracy": right})


def with_bias(
    features: Float[Array, "B K D"], table: Float[Array, "V D"], bias: Float[Array, "V"]
) -> tuple[Float[Array, "B K E"], Float[Array, "V E"]]:
    """(f, E) with f . E^T = features . table^T + bias: one more column, of ones in f and of the bias in E.

    `chunked_cross_entropy` knows no bias. Where devices divide the width there are as many columns as these, the others
    zero, so that the width can still be divided.
    """
    more = axis_divisions("embed")
    ones = jnp.zeros((*features.shape[:-1], more), features.dtype).at[..., 0].set(1)
    column = jnp.zeros((len(table), more), table.dtype).at[:, 0].set(bias.astype(table.dtype))
    return jnp.concatenate([features, ones], axis=-1), jnp.concatenate([table, column], axis=-1)


def highest(features: Float[Array, "B K D"], table: Float[Array, "V D"]) -> Int32[Array, "B K"]:
    """The row of the table whose product with each feature is the largest; [B, V] products exist at once."""

    def of_place(one: Float[Array, "B D"]) -> Int32[Array, "B"]:
        products = float32_product(one, table, (1, 1))
        return jnp.argmax(products, axis=-1).astype(jnp.int32)

    return jax.lax.map(of_place, features.swapaxes(0, 1)).swapaxes(0, 1)
