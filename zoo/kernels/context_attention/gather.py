"""Global layers under a divided length: every device gathers the keys and values of all."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.kernels.context_attention.halo import MeshAxis, attend_own_last


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

    before = (devices - 1) * tokens
    return attend_own_last(query, keys, values, positions, segment_ids, axis=axis, before=before, **options)
