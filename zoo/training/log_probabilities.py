"""log p of every target of a batch, differentiable, whose logits exist one chunk of the sequence at a time.

`zoo.training.losses` gives a sum whose gradient is known in the same pass. Here what a token's log-probability is
multiplied with is known only when those of whole sequences are there (DPO), so that the backward pass computes the
logits of each chunk again: four matrix products instead of three, and nothing of size [B, T, V] is kept.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from zoo.parallel import divided, enter_sublayer, gather, spmd, sum_over, sum_scatter
from zoo.training.losses import LanguageModel, default_chunk_length
from zoo.training.output_head import (
    HeadSettings,
    float32_product,
    is_target,
    join_sequence,
    split_sequence,
    through_cap,
    token_losses,
)

if TYPE_CHECKING:
    from zoo.data import Batch


def batch_log_probabilities(
    model: LanguageModel, batch: Batch, *, chunk_tokens: int | None = None, rng: Any = None
) -> tuple[Float32[Array, "B T"], Any]:
    """(log p of each target, the routers' statistics or None); arguments as for `zoo.training.losses.next_token_loss`.

    At padding the numbers have no meaning; they are finite.
    """
    hidden, routing = read_batch(model, batch, rng)
    found = chunked_log_probabilities(
        hidden,
        model.output_embedding(),
        jnp.asarray(batch.targets),
        soft_cap=model.config.final_logit_soft_cap,
        chunk_length=None if chunk_tokens is None else max(1, chunk_tokens // hidden.shape[0]),
    )
    return found, routing


def read_batch(model: Any, batch: Batch, rng: Any = None) -> tuple[Float[Array, "B T D"], Any]:
    """(hidden states of a batch, the routers' statistics or None); `rng` is given in training only."""
    inputs = {"positions": batch.positions, "segment_ids": batch.segment_ids, "media": batch.media}
    if getattr(model.config, "experts", None) is None:
        return model.hidden_states(batch.tokens, **inputs), None
    return model.hidden_and_routing(batch.tokens, **inputs, rng=rng)


def chunked_log_probabilities(
    hidden: Float[Array, "B T D"],
    embedding: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    *,
    soft_cap: float | None = None,
    chunk_length: int | None = None,
) -> Float32[Array, "B T"]:
    """l[target] - logsumexp_v(l_v) of each token, with the logits l = cap * tanh(h . E^T / cap), or h . E^T.

    In float32 whatever the inputs' dtype. At most [B, chunk_length, V] logits exist at once, forwards and backwards.
    Traced inside `activation_sharding` it divides tokens and vocabulary as `chunked_cross_entropy` does.
    """
    batch_size, length, _ = hidden.shape
    if chunk_length is not None and chunk_length < 1:
        raise ValueError(f"chunk_length must be at least 1, not {chunk_length}")
    if soft_cap is not None and soft_cap <= 0:
        raise ValueError(f"soft_cap must be positive or None, not {soft_cap}")

    def each(hidden, embedding, targets):
        hidden = enter_sublayer(hidden)
        rows, positions, _ = hidden.shape
        parts = 1 if chunk_length is None else math.ceil(length / chunk_length)
        if chunk_length is None:
            parts = math.ceil(positions / default_chunk_length(rows, positions, embedding.shape[0]))
        settings = HeadSettings(soft_cap, 0.0, min(parts, positions), divided("vocab"), divided("embed"))
        return _log_probabilities(settings, hidden, embedding, targets)

    row = ("batch", "length")
    in_axes = (("batch", "residual_length", None), ("vocab", "embed"), row)
    sizes = {"batch": batch_size, "length": length, "residual_length": length}
    with jax.named_scope("log_probabilities"):
        return spmd(each, in_axes, row, sizes)(hidden, embedding, targets)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_probabilities(settings: HeadSettings, hidden: Array, embedding: Array, targets: Array) -> Array:
    embedding = gather(embedding, settings.width, axis=1)

    def body(_, chunk):
        losses, *_ = token_losses(settings, chunk[0], embedding, chunk[1])
        return None, -losses

    _, chunks = jax.lax.scan(body, None, [split_sequence(settings, array) for array in (hidden, targets)])
    return join_sequence(chunks, *targets.shape)


def _forward(settings: HeadSettings, hidden: Array, embedding: Array, targets: Array):
    return _log_probabilities(settings, hidden, embedding, targets), (hidden, embedding, targets)


def _backward(settings: HeadSettings, residuals: tuple[Array, Array, Array], cotangent: Array):
    hidden, embedding, targets = residuals
    whole = gather(embedding, settings.width, axis=1)
    # Devices that share the vocabulary have each one part of what reaches these numbers, which they hold in common.
    cotangent = sum_over(cotangent, settings.words)

    def body(embedding_gradient, chunk):
        hidden, targets, scale = chunk
        _, logits, log_normalizer, own = token_losses(settings, hidden, whole, targets)
        gradient = is_target(logits, own) - jnp.exp(logits - log_normalizer)
        gradient = through_cap(settings, gradient, logits, scale).astype(hidden.dtype)
        hidden_gradient = float32_product(gradient, whole, (1, 0)).astype(hidden.dtype)
        return embedding_gradient + float32_product(gradient, hidden, (0, 0)), hidden_gradient

    chunks = [split_sequence(settings, array) for array in (hidden, targets, cotangent)]
    embedding_gradient, hidden_gradients = jax.lax.scan(body, jnp.zeros(whole.shape, jnp.float32), chunks)
    embedding_gradient = sum_scatter(embedding_gradient, settings.width, axis=1).astype(embedding.dtype)
    return join_sequence(hidden_gradients, *targets.shape), embedding_gradient, None


_log_probabilities.defvjp(_forward, _backward)
