"""Decode attention without a kernel: dense products of one query per row with the whole cache."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.block import NO_KEY
from zoo.kernels.attention.visibility import visible
from zoo.kernels.decode_attention.inputs import HeldKeys, OwnKey, takes_maximum


def xla_decode_attention(
    query: Float[Array, "b n h"],
    held: HeldKeys,
    own: OwnKey,
    query_positions: Int[Array, "#b 1"],
    *,
    scale: float,
    sliding_window: int | None,
    logits_soft_cap: float | None,
) -> Float[Array, "b n h"]:
    """See `decode_attention`. Every slot is read, visible or not."""
    options: dict[str, Any] = dict(scale=scale, sliding_window=sliding_window, logits_soft_cap=logits_soft_cap)
    return xla_decode_part(query, held, own, query_positions, **options)[0]


def xla_decode_part(
    query: Float[Array, "b n h"],
    held: HeldKeys,
    own: OwnKey,
    query_positions: Int[Array, "#b 1"],
    *,
    scale: float,
    sliding_window: int | None,
    logits_soft_cap: float | None,
) -> tuple[Float[Array, "b n h"], Float[Array, "b n"]]:
    """(out, lse), see `decode_attention_part`."""
    batch, heads, head_dim = query.shape
    kv_heads = own[0].shape[1]
    accumulator = jnp.promote_types(query.dtype, jnp.float32)
    precision = jax.lax.Precision.HIGHEST if query.dtype == accumulator else None
    matmul = partial(jnp.einsum, preferred_element_type=accumulator, precision=precision)
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, head_dim)

    def capped(scores):
        scores = scale * scores
        return scores if logits_soft_cap is None else logits_soft_cap * jnp.tanh(scores / logits_soft_cap)

    def seen(positions):
        return visible(query_positions, positions, sliding_window=sliding_window)[:, None]

    key, value, positions = held
    scores = capped(matmul("bkgh,bkhs->bkgs", grouped, key.astype(query.dtype)))
    own_score = capped((grouped.astype(accumulator) * own[0][:, :, None].astype(accumulator)).sum(-1, keepdims=True))
    mask, own_mask = seen(positions), seen(own[2])
    largest = jnp.zeros_like(own_score)
    if takes_maximum(logits_soft_cap, query.dtype):
        lowest = jnp.finfo(accumulator).min
        largest = jnp.max(scores, axis=-1, keepdims=True, where=mask, initial=lowest)
        largest = jnp.maximum(largest, jnp.where(own_mask, own_score, lowest))
        scores, own_score = (
            jnp.where(mask, scores, largest) - largest,
            jnp.where(own_mask, own_score, largest) - largest,
        )
    weights = jnp.where(mask, jnp.exp(scores), 0)
    own_weight = jnp.where(own_mask, jnp.exp(own_score), 0)
    total = weights.sum(-1, keepdims=True) + own_weight
    out = matmul("bkgs,bksh->bkgh", weights.astype(query.dtype), value.astype(query.dtype))
    out = out + own_weight * own[1][:, :, None].astype(accumulator)
    safe = jnp.where(total == 0, 1, total)
    lse = jnp.where(total == 0, NO_KEY, jnp.log(safe) + largest)
    return (out / safe).reshape(query.shape).astype(query.dtype), lse.reshape(query.shape[:2])
