"""The public attention function: checks its arguments and hands them to one named implementation."""

import functools
import importlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.inputs import AttentionInputs, check_inputs
from zoo.kernels.platform import target_platform

_KERNELS = "zoo.kernels"
_FUNCTIONS = {
    "reference": "attention.reference:reference_attention",
    "xla": "attention.xla:xla_attention",
    "pallas_tpu": "local_attention.tpu:local_attention_tpu",
    "pallas_gpu": "local_attention.gpu:local_attention_gpu",
    "mosaic_gpu": "local_attention.hopper:local_attention_hopper",
    "splash": "global_attention.splash:splash_attention",
    "cudnn": "global_attention.cudnn:cudnn_attention",
}
"""Module and function of each implementation, below zoo.kernels."""

IMPLEMENTATIONS = tuple(_FUNCTIONS)
"""Names that `dot_product_attention` takes."""


def dot_product_attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    *,
    scale: float,
    causal: bool = True,
    sliding_window: int | None = None,
    logits_soft_cap: float | None = None,
    query_positions: Int[Array, "b t"] | None = None,
    key_positions: Int[Array, "b s"] | None = None,
    query_segment_ids: Int[Array, "b t"] | None = None,
    key_segment_ids: Int[Array, "b s"] | None = None,
    ordered_positions: bool = False,
    sinks: Float[Array, "n"] | None = None,
    prefix: Any = None,
    implementation: str | None = None,
) -> Float[Array, "b t n h"]:
    """softmax over the visible keys of cap(scale * q . k), times v; cap(s) = c * tanh(s / c).

    Query head n reads key/value head n // (N / K). Which keys are visible: `zoo.kernels.attention.visible`. Scores and
    sums are float32 whatever the inputs' dtype (float64 for float64); the result has the inputs' dtype. A query without
    any visible key gets zeros.

    Args:
      scale: factor of the scores (Gemma 2: ``query_pre_attn_scalar ** -0.5``).
      sliding_window: number of visible keys, the query's own position included; None = all.
      query_positions, key_positions: int32 [B, T], [B, S]; default 0..T-1 (where they matter T must then equal S).
      query_segment_ids, key_segment_ids: int32, not negative; a query sees only keys of its own segment.
      ordered_positions: a promise about explicit positions that lets a local layer skip blocks: segments are contiguous
        runs, within a segment positions rise by at least one per index, and query i belongs to key index i + S - T.
        Packed training batches and a cache in order keep it. Without the promise the result is right for any positions,
        and every key is looked at.
      sinks: one logit per query head that joins the denominator of the softmax (`zoo.kernels.attention.sinks`).
      prefix: a `zoo.kernels.attention.prefix.Prefix` of learned keys and values that every query sees.
      implementation: "reference" (dense, the specification), "xla" (blocked), "pallas_tpu" (our kernel; splash for
        layers without a window whose gradients do not fit into VMEM), "pallas_gpu" (our kernel), "mosaic_gpu" (our
        kernel for Hopper, which has not run on hardware yet), "splash" or "cudnn" (maintained kernels); None = the best
        one for this call on the back end. Off their hardware the Pallas kernels are interpreted, slowly.

    Raises:
      ValueError: shapes, dtypes or options that have no meaning, or an unknown implementation.
      NotImplementedError: something that the named implementation does not do; the message says what.
    """
    inputs = check_inputs(
        query,
        key,
        value,
        scale=scale,
        causal=causal,
        sliding_window=sliding_window,
        logits_soft_cap=logits_soft_cap,
        query_positions=query_positions,
        key_positions=key_positions,
        query_segment_ids=query_segment_ids,
        key_segment_ids=key_segment_ids,
        ordered_positions=ordered_positions,
    )
    if prefix is not None:
        from zoo.kernels.attention.prefix import attention_with_prefix  # as below
        from zoo.kernels.attention.sinks import with_sinks

        out, lse = attention_with_prefix(inputs, prefix, implementation)
        return (out if sinks is None else with_sinks(out, lse, sinks)[0]).astype(query.dtype)
    if sinks is not None:
        from zoo.kernels.attention.sinks import sink_attention  # it needs the parts, which need this module

        return sink_attention(inputs, sinks, implementation)
    name = implementation or best_implementation(inputs, target_platform())
    if name == "pallas_tpu" and sliding_window is None:
        from zoo.kernels.local_attention.tpu import NO_WINDOW, takes_all_keys

        if takes_all_keys(inputs):
            return _load(name, "global")(replace(inputs, sliding_window=NO_WINDOW))
        try:
            return _load("splash", "global")(inputs)
        except NotImplementedError as error:
            raise NotImplementedError(f"'pallas_tpu' computes layers without a window by splash: {error}") from None
    options = {}
    if name in ("splash", "cudnn"):
        # They count indices, which are the positions unless the caller gives others.
        options["consecutive_positions"] = query_positions is None
    return _load(name, "global" if sliding_window is None else "local")(inputs, **options)


def best_implementation(inputs: AttentionInputs, platform: str) -> str:
    """The implementation that a call without a name gets on "cpu", "gpu" or "tpu": the fastest that can do it."""
    dtype, head_dim = inputs.query.dtype, inputs.query.shape[-1]
    bounded = inputs.ordered_positions and (inputs.causal or inputs.sliding_window is not None)
    if platform == "tpu" and bounded and dtype in (jnp.bfloat16, jnp.float32):
        return "pallas_tpu"
    if platform == "gpu" and dtype != jnp.float64 and head_dim in (16, 32, 64, 128, 256):
        return "pallas_gpu"
    return "xla"


@functools.cache
def _load(name: str, layer: str) -> Callable[..., Array]:
    # Cached, so that the choice is logged once per process. Imported when used: Pallas takes as long as all the rest.
    if name not in _FUNCTIONS:
        raise ValueError(f"unknown attention implementation {name!r}; known: {', '.join(IMPLEMENTATIONS)}")
    logging.getLogger(__name__).info("attention implementation of %s layers: %s", layer, name)
    module, function = _FUNCTIONS[name].split(":")
    return getattr(importlib.import_module(f"{_KERNELS}.{module}"), function)
