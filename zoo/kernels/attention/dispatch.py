"""The public attention function: checks its arguments and hands them to one named implementation."""

import functools
import logging

from jaxtyping import Array, Float, Int

from zoo.kernels.attention.inputs import check_inputs
from zoo.kernels.attention.reference import reference_attention
from zoo.kernels.attention.xla import xla_attention

IMPLEMENTATIONS = {"reference": reference_attention, "xla": xla_attention}
_PLANNED = ("pallas_tpu", "pallas_gpu")


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
      implementation: "reference" (dense, the specification) or "xla" (blocked); None = the best one for the back end.

    Raises:
      ValueError: shapes, dtypes or options that have no meaning, or an unknown implementation.
      NotImplementedError: an implementation that is planned but not part of this version.
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
    return _implementation(implementation)(inputs)


@functools.cache
def _implementation(name: str | None):
    # Cached, so that the choice is logged once per process.
    if name in _PLANNED:
        raise NotImplementedError(
            f"attention implementation {name!r} is not part of this version; use 'xla' or 'reference'"
        )
    chosen = name or "xla"
    if chosen not in IMPLEMENTATIONS:
        raise ValueError(f"unknown attention implementation {name!r}; known: {', '.join(IMPLEMENTATIONS)}")
    logging.getLogger(__name__).info("attention implementation: %s", chosen)
    return IMPLEMENTATIONS[chosen]
