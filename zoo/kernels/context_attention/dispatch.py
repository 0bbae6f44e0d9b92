"""Attention under a divided length: chooses how devices exchange keys, and runs it on every device's own part."""

import functools
import logging
import math
from typing import Any, Literal

import jax
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.inputs import AttentionInputs
from zoo.kernels.context_attention.gather import gather_attention
from zoo.kernels.context_attention.halo import halo_attention
from zoo.kernels.context_attention.parts import has_parts
from zoo.kernels.context_attention.ring import ring_attention
from zoo.parallel.per_shard import per_shard
from zoo.parallel.sharding import activation_context

Exchange = Literal["auto", "ring", "gather"]

GATHERED_BYTES = 16 * 2**20
"""Keys and values of one layer up to which a device gathers those of all. Both ways move the same bytes, 0.2 ms of a
100 GB/s link for so many. A ring hides them behind its work, which is half of the gather's slowest device's; but it
has 2 n steps of some microseconds of latency each, and lays queries, keys and values out anew."""


def context_attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b t k h"],
    value: Float[Array, "b t k h"],
    *,
    positions: Int[Array, "#b t"],
    segment_ids: Int[Array, "#b t"] | None,
    scale: float,
    sliding_window: int | None,
    logits_soft_cap: float | None,
    implementation: str | None = None,
) -> Float[Array, "b t n h"]:
    """Causal `dot_product_attention` among T tokens that the active `activation_sharding` divides in pieces.

    Layers with a window exchange a halo (`halo_attention`); others go by the rules' `context_exchange`, for "auto" by
    `choose_exchange`. Nothing of size T x T exists, and with a ring nothing of size T.

    Args:
      positions, segment_ids: int32 [B, T] or [1, T], best whole on every device: they are gathered otherwise.
        Segments are contiguous runs, and within one positions rise by at least one per token.
      implementation: as of `dot_product_attention`.

    Raises:
      ValueError: T is not divisible by the devices of the length, or there is no active context.
      NotImplementedError: what the implementation lacks; "ring" with one that has no parts.
    """
    context = activation_context.get()
    if context is None:
        raise ValueError("context_attention needs an active activation_sharding, whose rules divide the length")
    rules = context[1]
    options: dict[str, Any] = dict(
        axis=rules.mesh_axes("length"),
        exchange=rules.context_exchange,
        scale=scale,
        sliding_window=sliding_window,
        logits_soft_cap=logits_soft_cap,
        implementation=implementation,
    )
    heads, keys = ("batch", "length", "heads", "head_dim"), ("batch", "length", "kv_heads", "head_dim")
    row = ("batch", None)
    attend = functools.partial(device_attention, **options)
    return per_shard(attend, (heads, keys, keys, row, row), heads, exchanged="length")(
        query, key, value, positions, segment_ids
    )


def device_attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b t k h"],
    value: Float[Array, "b t k h"],
    positions: Int[Array, "#b all"],
    segment_ids: Int[Array, "#b all"] | None,
    *,
    axis: tuple[str, ...],
    exchange: Exchange,
    scale: float,
    sliding_window: int | None,
    logits_soft_cap: float | None,
    sinks: Float[Array, "n"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "b t n h"]:
    """`context_attention` of one device's tokens, to be called inside of `jax.shard_map` (`zoo.parallel.spmd`).

    Args:
      query, key, value: of the device's own tokens; of n devices along the mesh axes `axis`, device c has tokens c * t
        to c * t + t - 1 of a row.
      positions, segment_ids: of whole rows.
      sinks: as of `dot_product_attention`, of the device's own heads. A ring has none: "auto" gathers then.
    """
    options: dict[str, Any] = dict(
        axis=axis,
        devices=math.prod(jax.lax.axis_size(name) for name in axis),
        scale=scale,
        logits_soft_cap=logits_soft_cap,
        implementation=implementation,
    )
    arrays = query, key, value, positions, segment_ids
    if sinks is not None:
        if sliding_window is None and exchange == "ring":
            raise NotImplementedError(
                'a ring of devices has no attention sinks: use context_exchange="gather" in the sharding rules'
            )
        options["sinks"], exchange = sinks, "gather"
    if sliding_window is not None:
        return halo_attention(*arrays, sliding_window=sliding_window, **options)
    if exchange == "auto":
        gathered_bytes = options["devices"] * 2 * math.prod(key.shape) * key.dtype.itemsize
        inputs = AttentionInputs(
            query=query,
            key=key,
            value=value,
            scale=scale,
            causal=True,
            sliding_window=None,
            logits_soft_cap=logits_soft_cap,
            query_positions=positions,
            key_positions=positions,
            query_segment_ids=segment_ids,
            key_segment_ids=segment_ids,
            ordered_positions=True,
        )
        exchange = choose_exchange(gathered_bytes, has_parts(inputs, implementation))
    _log(exchange)
    return {"ring": ring_attention, "gather": gather_attention}[exchange](*arrays, **options)


def choose_exchange(gathered_bytes: int, has_parts: bool = True) -> Literal["ring", "gather"]:
    """How a global layer exchanges keys: "gather" while the keys and values that a device would hold, of its rows and
    heads and of all tokens, take at most `GATHERED_BYTES`, and where the kernels have no parts; else "ring"."""
    return "ring" if has_parts and gathered_bytes > GATHERED_BYTES else "gather"


@functools.cache
def _log(exchange: str) -> None:
    # Cached: once per process.
    logging.getLogger(__name__).info("global layers exchange keys between devices by: %s", exchange)
