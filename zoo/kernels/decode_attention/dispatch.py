"""The attention of a decode step: hands its arguments to one named implementation."""

import functools
import importlib
import logging
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.quantised import Scales, dequantise
from zoo.kernels.attention.sinks import with_sinks
from zoo.kernels.decode_attention.inputs import HeldKeys, OwnKey
from zoo.kernels.decode_attention.reference import reference_decode_attention
from zoo.kernels.decode_attention.xla import xla_decode_attention, xla_decode_part
from zoo.kernels.platform import target_platform

_PALLAS = {"pallas_tpu": "tpu", "pallas_gpu": "gpu"}
"""Kernels, and the platform that runs each of them."""

IMPLEMENTATIONS = ("reference", "xla", *_PALLAS)


def decode_attention(
    query: Float[Array, "b n h"],
    held: HeldKeys,
    own: OwnKey,
    query_positions: Int[Array, "#b 1"],
    *,
    scale: float,
    sliding_window: int | None,
    logits_soft_cap: float | None,
    sinks: Float[Array, "n"] | None = None,
    held_scales: Scales | None = None,
    implementation: str | None = None,
) -> Float[Array, "b n h"]:
    """softmax over the visible keys of cap(scale * q . k), times v, for one causal query per row; cap as in
    `dot_product_attention`.

    Query head n reads key/value head n // (N / K). What is visible is decided by the positions alone; a query that sees
    nothing gets zeros. Sums are float32 (float64 for a float64 query), products are in the query's dtype.

    Args:
      held: keys [B, K, H, S], values [B, K, S, H] and positions [B, S] (int32) of the slots of a cache, in any order
        and of any floating dtype, or int8 codes with `held_scales`. A slot without a token has `EMPTY_POSITION`.
      own: key [B, K, H], value [B, K, H] and position [B, 1] of the query's own token, which is in no slot yet.
      query_positions: int32 [B, 1] or [1, 1].
      scale: factor of the scores.
      sliding_window: number of visible keys, the query's own position included; None = all.
      sinks: one logit per query head that joins the denominator of the softmax.
      held_scales: of the codes of keys and values, float32 [B, K, S] each (`zoo.kernels.attention.quantised`). Only
        "reference" (dequantises all of them first) and "xla" (block by block) take them.
      implementation: "reference" (dense, the specification), "xla" (dense), "pallas_tpu", "pallas_gpu" (kernels that
        read the visible blocks of the cache once; on another back end they are interpreted, slowly); None = the best
        one for this call on the back end.

    Raises:
      ValueError: an unknown implementation.
      NotImplementedError: an implementation that lacks a feature of this call.
    """
    options: dict[str, Any] = dict(scale=scale, sliding_window=sliding_window, logits_soft_cap=logits_soft_cap)
    if sinks is not None or held_scales is not None:
        options |= dict(held_scales=held_scales, implementation=implementation)
        out, lse = decode_attention_part(query, held, own, query_positions, **options)
        return (out if sinks is None else with_sinks(out, lse, sinks)[0]).astype(query.dtype)
    platform = target_platform()
    return _load(implementation or best_implementation(query, platform), platform)(
        query, held, own, query_positions, **options
    )


def decode_attention_part(
    query: Float[Array, "b n h"],
    held: HeldKeys,
    own: OwnKey,
    query_positions: Int[Array, "#b 1"],
    *,
    held_scales: Scales | None = None,
    implementation: str | None = None,
    **options: Any,
) -> tuple[Float[Array, "b n h"], Float[Array, "b n"]]:
    """(out, lse): `decode_attention` to a part of the keys, and the logarithm of the sum of exp(score) over them, in
    the dtype of sums; `NO_KEY` where none is visible. An own token that belongs to another part has `EMPTY_POSITION`.
    """
    platform = target_platform()
    best = best_implementation(query, platform) if held_scales is None else "xla"
    name = implementation or best
    if name == "xla":
        if held_scales is not None:
            _load(name, platform)  # says so, once: where there is a kernel, it would have been that
        return xla_decode_part(query, held, own, query_positions, held_scales=held_scales, **options)
    if name == "reference":
        wide = jnp.promote_types(query.dtype, jnp.float32)
        if held_scales is not None:
            key, value, places = held
            held = dequantise(key, held_scales[0], 2, wide), dequantise(value, held_scales[1], 3, wide), places
        held, own = ((one.astype(wide), other.astype(wide), places) for one, other, places in (held, own))
        out, lse = xla_decode_part(query.astype(wide), held, own, query_positions, **options)
        return out.astype(query.dtype), lse
    if held_scales is not None and name in _PALLAS:
        raise NotImplementedError(f"decode attention {name!r} reads no cache in 8 bits: name 'xla' or none")
    return _load(name, platform)(query, held, own, query_positions, with_lse=True, **options)


def merge_decoded(out: Float[Array, "b n h"], lse: Float[Array, "b n"], axis: tuple[str, ...]) -> Float[Array, "b n h"]:
    """The attention to the keys of all devices along mesh axes, inside of `jax.shard_map`: outs weighted with exp(lse).
    Two sums of [B, N, H] and [B, N], one maximum."""
    weight = jnp.exp(lse - jax.lax.pmax(lse, axis))
    total = jax.lax.psum(weight, axis)
    return (jax.lax.psum(weight[..., None] * out.astype(lse.dtype), axis) / total[..., None]).astype(out.dtype)


def best_implementation(query: Float[Array, "b n h"], platform: str) -> str:
    """The implementation that a call without a name gets on "cpu", "gpu" or "tpu": a kernel where one can do it."""
    head_dim = query.shape[-1]
    if platform == "tpu" and query.dtype in (jnp.bfloat16, jnp.float32):
        return "pallas_tpu"
    if platform == "gpu" and query.dtype != jnp.float64 and head_dim >= 16 and not head_dim & (head_dim - 1):
        return "pallas_gpu"
    return "xla"


@functools.cache
def _load(name: str, platform: str):
    # Cached, so that the choice is logged once per process. Imported when used: Pallas takes as long as all the rest.
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"unknown decode attention implementation {name!r}; known: {', '.join(IMPLEMENTATIONS)}")
    logging.getLogger(__name__).info("decode attention implementation: %s", name)
    if name not in _PALLAS:
        return {"reference": reference_decode_attention, "xla": xla_decode_attention}[name]
    own_platform = _PALLAS[name]
    module = importlib.import_module(f"zoo.kernels.decode_attention.{own_platform}")
    return partial(getattr(module, f"{own_platform}_decode_attention"), interpret=own_platform != platform)
