"""Attention of a piece of a sequence to the tokens before it, which lie in a cache, and to its own, in plain XLA.

The cache is read block by block up to the last slot that is filled, so that a sequence that comes in pieces costs the
causal half of the work and no buffer grows with the size of the cache, neither of scores nor of copied keys.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.block import NO_KEY, attend_part
from zoo.kernels.attention.quantised import Scales, dequantise
from zoo.kernels.attention.sinks import with_sinks
from zoo.kernels.attention.visibility import visible
from zoo.kernels.platform import target_platform

CPU_SCORE_BYTES, SCORE_BYTES = 4 * 2**20, 256 * 2**20
"""The float32 scores of one block are about so many bytes. On CPU they should stay in its caches: 2 to 4 MiB are about
twice as fast as 64 MiB (1,024 queries of 4 heads, 32,768 keys, two busy cores)."""

LEAST_BLOCK = 128
"""Keys of a block, at least."""

Held = tuple[Float[Array, "b k h s"], Float[Array, "b k s h"], Int[Array, "b s"]]
"""Keys, values and positions as `zoo.nn.cache.LayerCache` stores them."""


def piece_attention(
    query: Float[Array, "b t n h"],
    held: Held,
    filled: Int[Array, ""],
    own: Held,
    positions: Int[Array, "#b t"],
    *,
    scale: float,
    logits_soft_cap: float | None,
    sinks: Float[Array, "n"] | None = None,
    held_scales: Scales | None = None,
) -> Float[Array, "b t n h"]:
    """Causal attention without a window to the first `filled` slots of `held` and to the piece's `own` keys.

    The function of `dot_product_attention` on both sets of keys together: merged from blocks by their log-sum-exp. Keys
    and values are cast to the query's dtype block by block; with `held_scales`, of int8 codes, scale * code is.
    """
    batch, tokens, heads, head_dim = query.shape
    kv_heads = own[0].shape[1]
    grouped = query.reshape(batch, tokens, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    statistics = jnp.promote_types(query.dtype, jnp.float32)
    merged = jnp.zeros(grouped.shape, statistics), jnp.full(grouped.shape[:-1], NO_KEY, statistics)
    attend = partial(_attend_blocks, grouped, positions, scale=scale, soft_cap=logits_soft_cap)
    out, lse = attend(own, tokens, attend(held, filled, merged, held_scales))
    out, lse = out.transpose(0, 3, 1, 2, 4).reshape(query.shape), lse.transpose(0, 3, 1, 2).reshape(query.shape[:3])
    if sinks is not None:
        out, _ = with_sinks(out, lse, sinks)
    return out.astype(query.dtype)


def _attend_blocks(query, positions, held: Held, filled, merged, scales=None, *, scale: float, soft_cap: float | None):
    """`merged` (out, lse) with the first `filled` of these keys besides."""
    batch, kv_heads, group, tokens, _ = query.shape
    slots = held[0].shape[3]
    allowed = CPU_SCORE_BYTES if target_platform() == "cpu" else SCORE_BYTES
    wanted = allowed // (4 * batch * kv_heads * group * tokens)
    block = min(slots, max(LEAST_BLOCK, wanted // LEAST_BLOCK * LEAST_BLOCK))

    def body(number, merged):
        # The last block begins early enough to be as long as the others; what it repeats is masked.
        start = jnp.minimum(number * block, slots - block)
        key, value, key_positions = (
            jax.lax.dynamic_slice_in_dim(x, start, block, axis) for x, axis in zip(held, (3, 2, 1), strict=True)
        )
        slot = start + jnp.arange(block)
        mask = visible(positions, key_positions) & (slot >= number * block) & (slot < filled)
        key = key.swapaxes(2, 3)
        if scales is None:
            key, value = key.astype(query.dtype), value.astype(query.dtype)
        else:
            of_block = (jax.lax.dynamic_slice_in_dim(x, start, block, 2) for x in scales)
            key, value = (dequantise(x, s, 3, query.dtype) for x, s in zip((key, value), of_block, strict=True))
        out, lse = attend_part(query, key, value, mask[:, None, None], scale, soft_cap)
        return merge_parts(merged, (out, jnp.where(jnp.isposinf(lse), NO_KEY, lse)))

    return jax.lax.fori_loop(0, -(-filled // block), body, merged)


def merge_parts(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
    """(out [*x, H], lse [*x]) of two sets of keys together, from the attention to each: outs weighted with exp(lse)."""
    (out, lse), (more, more_lse) = one, other
    total = jnp.logaddexp(lse, more_lse)
    first, second = (x.astype(out.dtype) * jnp.exp(part - total)[..., None]
                     for x, part in ((out, lse), (more, more_lse)))  # fmt: skip
    return first + second, total
