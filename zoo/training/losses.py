"""Next-token cross-entropy whose logits exist only one chunk of the sequence at a time.

The logits of a 256k vocabulary are by far the largest array of a training step: B = 8, T = 8192 would be 67 GB in
float32. Here a chunk of positions is projected, reduced to its loss and, when a gradient is asked for, turned into its
share of both gradients at once; then its memory is used again. The logits are computed once (three matrix products in
all, as without chunks), and all sums are in float32.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from zoo.kernels.platform import target_platform
from zoo.nn.router import RouterStatistics
from zoo.parallel import divided, enter_sublayer, gather, spmd, sum_over, sum_scatter
from zoo.training.output_head import (
    HeadSettings,
    added,
    chunk_losses,
    float32_product,
    is_target,
    join_sequence,
    split_sequence,
    through_cap,
)
from zoo.training.routing import router_losses

if TYPE_CHECKING:
    from zoo.data import Batch

CHUNK_BYTES = 16 * 2**20
"""Aim for the float32 logits of one chunk (on CPU the fastest of 8, 16, 32 and 64 MB)."""

ACCELERATOR_CHUNK_BYTES = 2**30
"""The same on one accelerator. Each chunk reads and writes the [V, D] gradient: with 256k words, 1,024 tokens at a time
do 500 operations a byte, twice what a TPU v5p needs to be kept busy."""

MIN_CHUNK_LENGTH = 256
"""Shorter chunks would read and write the [V, D] gradient more often than the products take (256k vocabulary)."""


class LossSums(NamedTuple):
    """Sums over the tokens of a batch; a mean per token is `loss / weight`. Those of micro-batches can be added.

    What is minimised is loss + z_loss + sum(auxiliary).
    """

    loss: Float32[Array, ""]
    """Sum of weight * cross-entropy, in nats."""
    z_loss: Float32[Array, ""]
    """Sum of weight * coefficient * logsumexp(logits)**2."""
    weight: Float32[Array, ""]
    """Sum of the weights; has no gradient."""
    auxiliary: dict[str, Float32[Array, ""]] = {}
    """Further losses by name, each times its coefficient and `weight`: minimised, and reported per unit of weight."""
    metrics: dict[str, Float32[Array, ""]] = {}
    """Further sums by name that are reported per unit of weight only."""
    routing: RouterStatistics | None = None
    """Of a model with sparse layers: their routers' sums [layers, ...], reported, and used to balance the load."""
    statistics: dict[str, Array] = {}
    """New values of the parameters that the model keeps of its inputs in training (batch normalisation), by name, each
    times `weight`."""


class LanguageModelConfig(Protocol):
    """What the loss reads from a model's config."""

    @property
    def final_logit_soft_cap(self) -> float | None: ...


class LanguageModel(Protocol):
    """What the loss asks of a model."""

    @property
    def config(self) -> LanguageModelConfig: ...

    def hidden_states(self, tokens: Any, *, positions: Any, segment_ids: Any, media: Any) -> Any:
        """Tokens [B, T] to [B, T, D] after the final norm. A model whose config has `experts` is asked for
        `hidden_and_routing` instead, with a key `rng` in training, and gives their statistics, too."""

    def output_embedding(self) -> Any:
        """The [V, D] matrix whose rows times the hidden states are the logits, in the compute dtype."""


def next_token_loss(
    model: LanguageModel, batch: Batch, *, z_loss: float = 0.0, chunk_tokens: int | None = None, rng: Any = None
) -> LossSums:
    """The weighted cross-entropy of a batch's targets, summed over its tokens, and the losses of the model's routers.

    `rng` is a key in training and None otherwise; a model without experts has no use for it.

    `z_loss` is the coefficient of logsumexp(logits)**2 (PaLM, arXiv 2204.02311, section 5, uses 1e-4).
    `chunk_tokens` is how many tokens of the whole (global) batch have logits at once; None: `default_chunk_length`.
    Traced inside `activation_sharding`, it knows how the batch is divided among the devices.
    """
    inputs = {"positions": batch.positions, "segment_ids": batch.segment_ids, "media": batch.media}
    experts: Any = getattr(model.config, "experts", None)
    routing = None
    if experts is None:
        hidden = model.hidden_states(batch.tokens, **inputs)
    else:
        sparse: Any = model
        hidden, routing = sparse.hidden_and_routing(batch.tokens, **inputs, rng=rng)
    sums = chunked_cross_entropy(
        hidden,
        model.output_embedding(),
        jnp.asarray(batch.targets),
        jnp.asarray(batch.loss_weights),
        soft_cap=model.config.final_logit_soft_cap,
        z_loss=z_loss,
        chunk_length=None if chunk_tokens is None else max(1, chunk_tokens // hidden.shape[0]),
    )
    if routing is None:
        return sums
    return sums._replace(auxiliary=router_losses(routing, experts, sums.weight), routing=routing)


def default_chunk_length(batch_size: int, length: int, vocab_size: int) -> int:
    """Positions per row of one chunk: about CHUNK_BYTES of logits, but at least MIN_CHUNK_LENGTH or half a row."""
    chunk_bytes = CHUNK_BYTES if target_platform() == "cpu" else ACCELERATOR_CHUNK_BYTES
    positions = chunk_bytes // (4 * batch_size * vocab_size)
    return min(length, max(positions, min(MIN_CHUNK_LENGTH, math.ceil(length / 2))))


def chunked_cross_entropy(
    hidden: Float[Array, "B T D"],
    embedding: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
    chunk_length: int | None = None,
) -> LossSums:
    """Cross-entropy of the logits l = cap * tanh(h . E^T / cap) (without a cap, h . E^T) with the targets.

        loss   = sum_bt w_bt * (logsumexp_v(l_btv) - l_bt[target_bt])
        z_loss = sum_bt w_bt * z * logsumexp_v(l_btv)**2

    in float32 whatever the inputs' dtype; the matrix products take their operands in that dtype. At most
    [B, chunk_length, V] logits exist at once. The target of a token of weight 0 may be any number in [0, V).

    Traced inside `activation_sharding`, every device takes its own tokens in chunks, sums its own gradient of its words
    ([V, D] float32), and these are added once at the end.

    Gradients reach `hidden` and `embedding` through `loss` alone and are those of loss + z_loss, so that one pass gives
    them and the logits are neither kept nor computed twice; `z_loss` and `weight` are constants to differentiation.
    """
    batch_size, length, _ = hidden.shape
    if chunk_length is not None and chunk_length < 1:
        raise ValueError(f"chunk_length must be at least 1, not {chunk_length}")
    if soft_cap is not None and soft_cap <= 0:
        raise ValueError(f"soft_cap must be positive or None, not {soft_cap}")
    weights = weights.astype(jnp.float32)

    def sums(hidden, embedding, targets, weights):
        hidden = enter_sublayer(hidden)
        rows, positions, _ = hidden.shape
        parts = 1 if chunk_length is None else math.ceil(length / chunk_length)
        if chunk_length is None:
            parts = math.ceil(positions / default_chunk_length(rows, positions, embedding.shape[0]))
        settings = HeadSettings(soft_cap, z_loss, min(parts, positions), divided("vocab"), divided("embed"))
        return tuple(
            sum_over(value, divided("batch") + divided("length"))
            for value in _loss_sums(settings, hidden, embedding, targets, weights)
        )

    row = ("batch", "length")
    in_axes = (("batch", "residual_length", None), ("vocab", "embed"), row, row)
    sizes = {"batch": batch_size, "length": length, "residual_length": length}
    with jax.named_scope("cross_entropy"):
        loss, z_sum = spmd(sums, in_axes, ((), ()), sizes)(hidden, embedding, targets, jax.lax.stop_gradient(weights))
    return LossSums(loss, z_sum, jax.lax.stop_gradient(jnp.sum(weights)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss_sums(settings: HeadSettings, hidden: Array, embedding: Array, targets: Array, weights: Array):
    """(loss sum, z-loss sum) without gradients: one matrix product."""

    def body(sums, chunk):
        hidden, targets, weights = chunk
        chunk_sums, *_ = chunk_losses(settings, hidden, embedding, targets, weights)
        return added(sums, chunk_sums), None

    embedding = gather(embedding, settings.width, axis=1)
    zeros = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
    return jax.lax.scan(body, zeros, [split_sequence(settings, array) for array in (hidden, targets, weights)])[0]


def _loss_sums_forward(settings: HeadSettings, hidden: Array, embedding: Array, targets: Array, weights: Array):
    """The sums, and as residuals the gradients of loss + z_loss."""
    batch_size, length, _ = hidden.shape
    embedding = gather(embedding, settings.width, axis=1)

    def body(carry, chunk):
        sums, embedding_gradient = carry
        hidden, targets, weights = chunk
        chunk_sums, logits, log_normalizer, own = chunk_losses(settings, hidden, embedding, targets, weights)
        # d/dl of w * (lse - l[target] + z * lse**2).
        # Comparing with the target's number fuses into the pass over the logits; a scatter would be one pass more.
        probabilities = jnp.exp(logits - log_normalizer)
        gradient = probabilities * (1 + 2 * settings.z_loss * log_normalizer) - is_target(logits, own)
        gradient = through_cap(settings, gradient, logits, weights).astype(hidden.dtype)
        hidden_gradient = float32_product(gradient, embedding, (1, 0)).astype(hidden.dtype)
        embedding_gradient += float32_product(gradient, hidden, (0, 0))
        return (added(sums, chunk_sums), embedding_gradient), hidden_gradient

    zeros = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
    (sums, embedding_gradient), hidden_gradients = jax.lax.scan(
        body,
        (zeros, jnp.zeros(embedding.shape, jnp.float32)),
        [split_sequence(settings, array) for array in (hidden, targets, weights)],
    )
    embedding_gradient = sum_scatter(embedding_gradient, settings.width, axis=1).astype(embedding.dtype)
    return sums, (join_sequence(hidden_gradients, batch_size, length), embedding_gradient)


def _loss_sums_backward(settings: HeadSettings, residuals: tuple[Array, Array], cotangents: tuple[Array, Array]):
    hidden_gradient, embedding_gradient = residuals
    scale, _ = cotangents  # z_loss is inside the gradient of the loss
    # Devices that share the vocabulary have each one part of what reaches this sum, which they hold in common.
    scale = sum_over(scale, settings.words)
    return (
        (scale * hidden_gradient).astype(hidden_gradient.dtype),
        (scale * embedding_gradient).astype(embedding_gradient.dtype),
        None,
        None,
    )


_loss_sums.defvjp(_loss_sums_forward, _loss_sums_backward)
