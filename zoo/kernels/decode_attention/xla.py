"""Decode attention without a kernel: dense products of one query per row with the whole cache."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.block import NO_KEY
from zoo.kernels.attention.piece import LEAST_BLOCK, merge_parts
from zoo.kernels.attention.quantised import Scales
from zoo.kernels.attention.visibility import EMPTY_POSITION, visible
from zoo.kernels.decode_attention.inputs import HeldKeys, OwnKey, takes_maximum, visible_blocks

CONVERTED_BYTES = 8 * 2**20
"""Of a cache in 8 bits so much is in the query's dtype at a time: a copy of all would be 2 to 4 times as large."""


def xla_decode_attention(
    query: Float[Array, "b n h"],
    held: HeldKeys,
    own: OwnKey,
    query_positions: Int[Array, "#b 1"],
    *,
    scale: float,
    sliding_window: int | None,
    logits_soft_cap: float | None,
    held_scales: Scales | None = None,
) -> Float[Array, "b n h"]:
    """See `decode_attention`. Every slot is read, visible or not; in 8 bits up to the last visible one."""
    options: dict[str, Any] = dict(scale=scale, sliding_window=sliding_window, logits_soft_cap=logits_soft_cap)
    return xla_decode_part(query, held, own, query_positions, held_scales=held_scales, **options)[0]


def xla_decode_part(
    query: Float[Array, "b n h"],
    held: HeldKeys,
    own: OwnKey,
    query_positions: Int[Array, "#b 1"],
    *,
    scale: float,
    sliding_window: int | None,
    logits_soft_cap: float | None,
    held_scales: Scales | None = None,
) -> tuple[Float[Array, "b n h"], Float[Array, "b n"]]:
    """(out, lse), see `decode_attention_part`."""
    options: dict[str, Any] = dict(scale=scale, sliding_window=sliding_window, logits_soft_cap=logits_soft_cap)
    part: Any = partial(_dense_part, query, query_positions=query_positions, **options)
    if held_scales is None:
        out, lse = part(held, own, None)
    else:
        out, lse = _in_blocks(part, query, held, held_scales, own, query_positions, sliding_window)
    return out.reshape(query.shape).astype(query.dtype), lse.reshape(query.shape[:2])


def _in_blocks(part, query, held: HeldKeys, scales: Scales, own: OwnKey, query_positions, sliding_window: int | None):
    """`part` of all slots up to the last visible one, merged from blocks of `CONVERTED_BYTES`."""
    batch, kv_heads, head_dim, slots = held[0].shape
    block = min(slots, max(LEAST_BLOCK, CONVERTED_BYTES // (2 * batch * kv_heads * head_dim * query.dtype.itemsize)))

    def piece(number, own):
        # The last block begins early enough to be as long as the others; what it repeats is nobody's.
        start = jnp.minimum(number * block, slots - block)
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=block)
        key, value, positions = (cut(x, axis=axis) for x, axis in zip(held, (3, 2, 1), strict=True))
        fresh = start + jnp.arange(block) >= number * block
        positions = jnp.where(fresh, positions, EMPTY_POSITION)
        return part((key, value, positions), own, tuple(cut(x, axis=2) for x in scales))

    first = piece(0, own)
    if block == slots:
        return first
    absent = (own[0], own[1], jnp.full_like(own[2], EMPTY_POSITION))
    _, last = visible_blocks(query_positions, held[2], sliding_window, block)
    return jax.lax.fori_loop(
        1, jnp.max(last) + 1, lambda number, merged: merge_parts(merged, piece(number, absent)), first
    )


def _dense_part(
    query: Float[Array, "b n h"],
    held: HeldKeys,
    own: OwnKey,
    held_scales: Scales | None,
    *,
    query_positions: Int[Array, "#b 1"],
    scale: float,
    sliding_window: int | None,
    logits_soft_cap: float | None,
) -> tuple[Float[Array, "b k g h"], Float[Array, "b k g"]]:
    """(out, lse) in the dtype of sums. Codes of 8 bits are exact in every floating dtype: their scales multiply scores
    and weights, not keys and values."""
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
    products = matmul("bkgh,bkhs->bkgs", grouped, key.astype(query.dtype))
    scores = capped(products if held_scales is None else products * held_scales[0][:, :, None])
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
    value_weights = weights if held_scales is None else weights * held_scales[1][:, :, None]
    out = matmul("bkgs,bksh->bkgh", value_weights.astype(query.dtype), value.astype(query.dtype))
    out = out + own_weight * own[1][:, :, None].astype(accumulator)
    safe = jnp.where(total == 0, 1, total)
    lse = jnp.where(total == 0, NO_KEY, jnp.log(safe) + largest)
    return out / safe, lse.reshape(out.shape[:-1])
