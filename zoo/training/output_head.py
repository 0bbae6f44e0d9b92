"""An output head on chunks of the sequence: what losses share that never hold the logits of a whole batch."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Shaped

from zoo.parallel import sum_over


class HeadSettings(NamedTuple):
    """Of one head; static."""

    soft_cap: float | None
    """c of the logits c * tanh(h . E^T / c); None = h . E^T."""
    z_loss: float
    """Coefficient of logsumexp(logits)**2."""
    num_chunks: int
    """Of the sequence."""
    words: tuple[str, ...]
    """Mesh axes that divide the vocabulary."""
    width: tuple[str, ...]
    """Mesh axes that divide the width of the embedding."""


def float32_product(left: Array, right: Array, axes: tuple[int, int]) -> Float32[Array, "..."]:
    """Matrix product over one axis of each, accumulated in float32; float32 operands are not rounded first."""
    return jax.lax.dot_general(
        left,
        right,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def split_sequence(settings: HeadSettings, array: Shaped[Array, "B T ..."]) -> Shaped[Array, "chunks tokens ..."]:
    """[B, T, ...] -> [chunks, B * chunk_length, ...], padded with zeros (weight 0) at the end of every row."""
    batch_size, length, *rest = array.shape
    chunk_length = math.ceil(length / settings.num_chunks)
    padding = settings.num_chunks * chunk_length - length
    if padding:
        array = jnp.pad(array, [(0, 0), (0, padding)] + [(0, 0)] * len(rest))
    chunks = jnp.moveaxis(array.reshape(batch_size, settings.num_chunks, chunk_length, *rest), 1, 0)
    return chunks.reshape(settings.num_chunks, batch_size * chunk_length, *rest)


def join_sequence(chunks: Shaped[Array, "chunks tokens ..."], batch_size: int, length: int) -> Shaped[Array, "B T ..."]:
    """The inverse of `split_sequence`."""
    rest = chunks.shape[2:]
    rows = jnp.moveaxis(chunks.reshape(chunks.shape[0], batch_size, -1, *rest), 0, 1)
    return rows.reshape(batch_size, -1, *rest)[:, :length]


def token_losses(
    settings: HeadSettings, hidden: Float[Array, "N D"], embedding: Float[Array, "V D"], targets: Int[Array, "N"]
):
    """Of tokens [N] in one chunk: -log p(target) [N], logits [N, V], logsumexp [N, 1], targets as rows of V.

    Where devices share the vocabulary, V are this device's words, and a target among the others is -1.
    """
    logits = float32_product(hidden, embedding, (1, 1))
    if settings.soft_cap is not None:
        logits = settings.soft_cap * jnp.tanh(logits / settings.soft_cap)
    if settings.words:
        largest = jax.lax.pmax(jnp.max(logits, axis=-1, keepdims=True), settings.words)
        total = sum_over(jnp.sum(jnp.exp(logits - largest), axis=-1, keepdims=True), settings.words)
        log_normalizer = jnp.log(total) + largest
        own = targets - jax.lax.axis_index(settings.words) * logits.shape[1]
        targets = jnp.where((own >= 0) & (own < logits.shape[1]), own, -1)
        target_logits = jnp.sum(logits, axis=-1, keepdims=True, where=is_target(logits, targets))
        target_logits = sum_over(target_logits, settings.words)
    else:
        log_normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        target_logits = jnp.take_along_axis(logits, targets[:, None], axis=-1)
    return (log_normalizer - target_logits)[:, 0], logits, log_normalizer, targets


def chunk_losses(
    settings: HeadSettings,
    hidden: Float[Array, "N D"],
    embedding: Float[Array, "V D"],
    targets: Int[Array, "N"],
    weights: Float32[Array, "N"],
):
    """Of tokens [N] in one chunk: (loss sum, z-loss sum), then as `token_losses` logits, logsumexp and targets."""
    losses, logits, log_normalizer, targets = token_losses(settings, hidden, embedding, targets)
    loss = jnp.sum(weights * losses)
    z_loss = settings.z_loss * jnp.sum(weights * jnp.square(log_normalizer[:, 0]))
    return (loss, z_loss), logits, log_normalizer, targets


def is_target(logits: Float32[Array, "N V"], targets: Int[Array, "N"]) -> Bool[Array, "N V"]:
    """Where the target of each token stands among the words; nowhere for -1."""
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == targets[:, None]


def added(left: tuple[Array, ...], right: tuple[Array, ...]) -> tuple[Array, ...]:
    """Element by element."""
    return tuple(a + b for a, b in zip(left, right, strict=True))


def through_cap(
    settings: HeadSettings, gradient: Float32[Array, "N V"], logits: Float32[Array, "N V"], weights: Float32[Array, "N"]
) -> Float32[Array, "N V"]:
    """A gradient by the logits l as the weighted one by what is under the cap: times w and 1 - (l / cap)**2."""
    if settings.soft_cap is not None:
        gradient = gradient * (1 - jnp.square(logits / settings.soft_cap))
    return weights[:, None] * gradient
