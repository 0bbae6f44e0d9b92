"""Global layers under a divided length: every device gathers the keys and values of all."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.dispatch import dot_product_attention
from zoo.kernels.attention.visibility import EMPTY_POSITION
from zoo.kernels.context_attention.halo import MeshAxis


def gather_attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b t k h"],
    value: Float[Array, "b t k h"],
    positions: Int[Array, "#b all"],
    segment_ids: Int[Array, "#b all"] | None,
    *,
    axis: MeshAxis,
    devices: int,
    **options: Any,
) -> Float[Array, "b t n h"]:
    """Causal attention of a device's own queries, to be called inside of `jax.shard_map`.

    One all-gather (backward: one reduce-scatter) of the grouped heads. The gathered keys are turned until the device's
    own tokens are the last: then they are in order, as every implementation wants them, and what comes after these
    tokens lies in front, at positions that nobody sees. Options are those of `dot_product_attention`.
    """
    tokens = key.shape[1]
    index = jax.lax.axis_index(axis)
    gathered = jax.lax.all_gather(jnp.concatenate([key, value], axis=2), axis)
    order = (index + 1 + jnp.arange(devices)) % devices
    turned = jnp.moveaxis(jnp.take(gathered, order, axis=0, unique_indices=True, mode="clip"), 0, 1)
    keys, values = jnp.split(turned.reshape(len(key), devices * tokens, *turned.shape[3:]), 2, axis=2)

    def of_keys(x, missing):
        if x is None:
            return None
        x = jnp.pad(x, ((0, 0), ((devices - 1) * tokens, 0)), constant_values=missing)
        return jax.lax.dynamic_slice_in_dim(x, index * tokens, devices * tokens, axis=1)

    def of_queries(x):
        return None if x is None else x[:, -tokens:]

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
