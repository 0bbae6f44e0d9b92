"""Local layers under a divided length: each device takes the W - 1 keys before its own tokens from its neighbours."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.dispatch import dot_product_attention
from zoo.kernels.attention.inputs import RESIDUALS
from zoo.kernels.attention.visibility import EMPTY_POSITION

MeshAxis = tuple[str, ...]


def halo_attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b t k h"],
    value: Float[Array, "b t k h"],
    positions: Int[Array, "#b all"],
    segment_ids: Int[Array, "#b all"] | None,
    *,
    axis: MeshAxis,
    devices: int,
    sliding_window: int,
    **options: Any,
) -> Float[Array, "b t n h"]:
    """Attention of a device's own queries, to be called inside of `jax.shard_map`.

    ceil((W - 1) / t) permutes, or one per device to the left if these are fewer: the j-th brings keys and values of the
    device j to the left, from the last one only what the window still reaches. Where there is no such device, zeros
    arrive, at positions that nobody sees. Options are those of `dot_product_attention`.
    """
    tokens = key.shape[1]
    reach = min(sliding_window - 1, (devices - 1) * tokens)
    own = jnp.concatenate([key, value], axis=2)
    parts = []
    for hop in range(-(-reach // tokens), 0, -1):
        count = min(tokens, reach - (hop - 1) * tokens)
        to_the_right = [(device, device + hop) for device in range(devices - hop)]
        parts.append(jax.lax.ppermute(own[:, tokens - count :], axis, to_the_right))
    # Where a layer is recomputed, what has arrived may be kept: `RESIDUALS`.
    keys, values = jnp.split(checkpoint_name(jnp.concatenate([*parts, own], axis=1), RESIDUALS), 2, axis=2)

    options["sliding_window"] = sliding_window
    return attend_own_last(query, keys, values, positions, segment_ids, axis=axis, before=reach, **options)


def attend_own_last(
    query: Float[Array, "b t n h"],
    keys: Float[Array, "b s k h"],
    values: Float[Array, "b s k h"],
    positions: Int[Array, "#b all"],
    segment_ids: Int[Array, "#b all"] | None,
    *,
    axis: MeshAxis,
    before: int,
    **options: Any,
) -> Float[Array, "b t n h"]:
    """Attention of a device's own queries to its own t keys and the `before` ones in front of them, s in all; keys in
    front of the whole row are at positions that nobody sees. Options, errors: those of `dot_product_attention`."""
    start = jax.lax.axis_index(axis) * query.shape[1]

    def of_keys(x, missing):
        if x is None:
            return None
        x = jnp.pad(x, ((0, 0), (before, 0)), constant_values=missing)
        return jax.lax.dynamic_slice_in_dim(x, start, keys.shape[1], axis=1)

    def of_queries(x):
        return None if x is None else x[:, before:]

    key_positions, key_segments = of_keys(positions, EMPTY_POSITION), of_keys(segment_ids, -1)
    return dot_product_attention(
        query,
        keys,
        values,
        query_positions=of_queries(key_positions),
        key_positions=key_positions,
        query_segment_ids=of_queries(key_segments),
        key_segment_ids=key_segments,
        ordered_positions=True,
        **options,
    )
