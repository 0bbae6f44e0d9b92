"""Dense attention: the specification. Slow, in any dtype up to float64, with all [T, S] scores in memory."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.kernels.attention.inputs import AttentionInputs
from zoo.kernels.attention.visibility import visible


def reference_attention(inputs: AttentionInputs) -> Float[Array, "b t n h"]:
    """softmax(mask(cap(scale * q . k))) . v with cap(s) = c * tanh(s / c), in float32 (float64 for float64 inputs).

    A query that sees no key gets zeros. The cap is applied before the mask (Gemma 2 report, section 2).
    """
    batch, queries, heads, head_dim = inputs.query.shape
    kv_heads = inputs.key.shape[2]
    accumulator = jnp.promote_types(inputs.query.dtype, jnp.float32)
    query = inputs.query.reshape(batch, queries, kv_heads, heads // kv_heads, head_dim).astype(accumulator)
    key, value = inputs.key.astype(accumulator), inputs.value.astype(accumulator)

    exact = jax.lax.Precision.HIGHEST
    scores = inputs.scale * jnp.einsum("btkgh,bskh->bkgts", query, key, precision=exact)
    if inputs.logits_soft_cap is not None:
        scores = inputs.logits_soft_cap * jnp.tanh(scores / inputs.logits_soft_cap)
    mask = visible(
        inputs.query_positions,
        inputs.key_positions,
        inputs.query_segment_ids,
        inputs.key_segment_ids,
        causal=inputs.causal,
        sliding_window=inputs.sliding_window,
    )[:, None, None]
    largest = jnp.max(scores, axis=-1, keepdims=True, where=mask, initial=jnp.finfo(accumulator).min)
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores - largest, 0)), 0)
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, value, precision=exact)
    return out.reshape(batch, queries, heads, head_dim).astype(inputs.query.dtype)
