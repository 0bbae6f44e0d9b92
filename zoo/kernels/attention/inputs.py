"""Checked arguments of one attention call, with positions filled in, as every implementation receives them."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

RESIDUALS = "attention"
"""Checkpoint name of a kernel's result and its log-sum-exp: a layer that keeps them computes neither again."""


@dataclass(frozen=True)
class AttentionInputs:
    """See `dot_product_attention` for the meaning of each field; positions and segments are [B or 1, length]."""

    query: Float[Array, "b t n h"]
    key: Float[Array, "b s k h"]
    value: Float[Array, "b s k h"]
    scale: float
    causal: bool
    sliding_window: int | None
    logits_soft_cap: float | None
    query_positions: Int[Array, "#b t"]
    key_positions: Int[Array, "#b s"]
    query_segment_ids: Int[Array, "b t"] | None
    key_segment_ids: Int[Array, "b s"] | None
    ordered_positions: bool


def check_inputs(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    *,
    scale: float,
    causal: bool,
    sliding_window: int | None,
    logits_soft_cap: float | None,
    query_positions: Int[Array, "b t"] | None,
    key_positions: Int[Array, "b s"] | None,
    query_segment_ids: Int[Array, "b t"] | None,
    key_segment_ids: Int[Array, "b s"] | None,
    ordered_positions: bool,
) -> AttentionInputs:
    """Raises ValueError on shapes, dtypes or options that have no meaning; fills in default positions 0..T-1."""
    if query.ndim != 4 or key.ndim != 4 or key.shape != value.shape:
        raise ValueError(
            f"need query [B,T,N,H], key and value [B,S,K,H]; got {query.shape}, {key.shape}, {value.shape}"
        )
    (batch, queries, heads, head_dim), (key_batch, keys, kv_heads, key_dim) = query.shape, key.shape
    if batch != key_batch or head_dim != key_dim or heads % kv_heads:
        raise ValueError(f"query {query.shape} and key {key.shape} differ in B or H, or N is no multiple of K")
    if not query.dtype == key.dtype == value.dtype or not jnp.issubdtype(query.dtype, jnp.floating):
        raise ValueError(
            f"query, key, value must share one floating dtype; got {query.dtype}, {key.dtype}, {value.dtype}"
        )
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window counts the query's own position: at least 1, got {sliding_window}")
    if logits_soft_cap is not None and logits_soft_cap <= 0:
        raise ValueError(f"logits_soft_cap must be positive or None, got {logits_soft_cap}")
    for name, one, other in (
        ("positions", query_positions, key_positions),
        ("segment_ids", query_segment_ids, key_segment_ids),
    ):
        if (one is None) != (other is None):
            raise ValueError(f"query_{name} and key_{name} must be given together")
    for name, array, length in (
        ("query_positions", query_positions, queries),
        ("key_positions", key_positions, keys),
        ("query_segment_ids", query_segment_ids, queries),
        ("key_segment_ids", key_segment_ids, keys),
    ):
        if array is not None and (array.shape not in ((batch, length), (1, length)) or array.dtype.kind not in "iu"):
            raise ValueError(f"{name} must be integers [{batch}, {length}], got {array.dtype} {array.shape}")
    if query_positions is None or key_positions is None:
        if queries != keys and (causal or sliding_window is not None):
            raise ValueError(f"{queries} queries against {keys} keys need explicit query_positions and key_positions")
        query_positions = jnp.arange(queries, dtype=jnp.int32)[None]
        key_positions = jnp.arange(keys, dtype=jnp.int32)[None]
        ordered_positions = queries == keys
    return AttentionInputs(
        query=query,
        key=key,
        value=value,
        scale=scale,
        causal=causal,
        sliding_window=sliding_window,
        logits_soft_cap=logits_soft_cap,
        query_positions=query_positions,
        key_positions=key_positions,
        query_segment_ids=query_segment_ids,
        key_segment_ids=key_segment_ids,
        ordered_positions=ordered_positions and queries <= keys,
    )
