"""The specification of decode attention: dense attention of one query to the slots of the cache and its own token."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.inputs import check_inputs
from zoo.kernels.attention.reference import reference_attention
from zoo.kernels.decode_attention.inputs import HeldKeys, OwnKey


def reference_decode_attention(
    query: Float[Array, "b n h"],
    held: HeldKeys,
    own: OwnKey,
    query_positions: Int[Array, "#b 1"],
    *,
    scale: float,
    sliding_window: int | None,
    logits_soft_cap: float | None,
) -> Float[Array, "b n h"]:
    """See `decode_attention`. All products are those of `reference_attention`, in float32 (float64 for float64)."""
    accumulator = jnp.promote_types(query.dtype, jnp.float32)
    key = jnp.concatenate([x.astype(accumulator) for x in (held[0].transpose(0, 3, 1, 2), own[0][:, None])], axis=1)
    value = jnp.concatenate([x.astype(accumulator) for x in (held[1].swapaxes(1, 2), own[1][:, None])], axis=1)
    inputs = check_inputs(
        query[:, None].astype(accumulator),
        key,
        value,
        scale=scale,
        causal=True,
        sliding_window=sliding_window,
        logits_soft_cap=logits_soft_cap,
        query_positions=query_positions,
        key_positions=jnp.concatenate([held[2], own[2]], axis=1),
        query_segment_ids=None,
        key_segment_ids=None,
        ordered_positions=False,
    )
    return reference_attention(inputs)[:, 0].astype(query.dtype)
