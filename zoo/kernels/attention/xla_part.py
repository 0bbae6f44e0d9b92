"""Attention to a part of the keys in plain XLA: results that can be merged, gradients from statistics of the whole."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.kernels.attention.block import attend_part, part_gradients
from zoo.kernels.attention.inputs import AttentionInputs
from zoo.kernels.attention.visibility import visible
from zoo.kernels.attention.xla import CAUSAL_CHUNKS, MIN_CHUNK, SCORE_BYTES

_ROW_AXIS = 3  # of arrays [b, k, g, c, ...]


def part_forward(inputs: AttentionInputs) -> tuple[Float[Array, "b t n h"], Float[Array, "b t n"]]:
    """(out, lse), blocked as `xla_attention` blocks a global layer."""
    outputs = []
    for rows, keys, places in _chunks(inputs, (_grouped(inputs.query, inputs),)):

        def attend(carry, rows, keys=keys, places=places):
            (query,), mask = rows[0], _mask(inputs, rows[1], places)
            return carry, attend_part(query, keys[0], keys[1], mask, inputs.scale, inputs.logits_soft_cap)

        outputs.append(_scan_rows(attend, (), rows, keys, inputs)[1])
    out, lse = jax.tree.map(lambda *x: jnp.concatenate(x, _ROW_AXIS), *outputs)
    return _ungrouped(out), _ungrouped(lse)


def part_backward(
    inputs: AttentionInputs,
    lse: Float[Array, "b t n"],
    delta: Float[Array, "b t n"],
    out_gradient: Float[Array, "b t n h"],
) -> tuple[Float[Array, "b t n h"], Float[Array, "b s k h"], Float[Array, "b s k h"]]:
    """(dq, dk, dv) in the dtype of sums."""
    arrays = tuple(_grouped(x, inputs) for x in (inputs.query, lse, delta, out_gradient))
    key_gradients = tuple(jnp.zeros(x.shape, lse.dtype) for x in _heads_first(inputs))
    query_gradients = []
    for rows, keys, places in _chunks(inputs, arrays):

        def gradients(carry, rows, keys=keys, places=places):
            (query, lse, delta, out_gradient), mask = rows[0], _mask(inputs, rows[1], places)
            options = inputs.scale, inputs.logits_soft_cap
            dq, dk, dv = part_gradients(query, keys[0], keys[1], mask, *options, lse, delta, out_gradient)
            return jax.tree.map(lambda sum, x: sum.at[:, :, : x.shape[2]].add(x), carry, (dk, dv)), dq

        key_gradients, dq = _scan_rows(gradients, key_gradients, rows, keys, inputs)
        query_gradients.append(dq)
    dk, dv = (x.swapaxes(1, 2) for x in key_gradients)
    return _ungrouped(jnp.concatenate(query_gradients, _ROW_AXIS)), dk, dv


def _chunks(inputs: AttentionInputs, arrays: tuple[Array, ...]) -> Iterator[tuple[Any, tuple[Array, Array], Any]]:
    """((rows of `arrays`, their positions and segments), (key, value), (positions, segments) of the keys) per chunk of
    queries. With ordered positions a chunk meets only the keys before its end."""
    queries, keys = inputs.query.shape[1], inputs.key.shape[1]
    ordered = inputs.ordered_positions and inputs.causal
    size = -(-queries // (max(1, min(CAUSAL_CHUNKS, queries // MIN_CHUNK)) if ordered else 1))
    key, value = _heads_first(inputs)

    def cut(x, start, stop):
        return None if x is None else x[:, start:stop]

    for start in range(0, queries, size):
        stop = min(start + size, queries)
        last = stop + keys - queries if ordered else keys
        rows = tuple(x[:, :, :, start:stop] for x in arrays)
        yield (
            (rows, (cut(inputs.query_positions, start, stop), cut(inputs.query_segment_ids, start, stop))),
            (key[:, :, :last], value[:, :, :last]),
            (cut(inputs.key_positions, 0, last), cut(inputs.key_segment_ids, 0, last)),
        )


def _scan_rows(function, carry, rows, keys, inputs: AttentionInputs):
    """`function(carry, rows) -> (carry, outputs)` on all rows, or scanned in parts of at most `SCORE_BYTES`."""
    batch, _, heads, _ = inputs.query.shape
    count = rows[0][0].shape[_ROW_AXIS]
    steps = -(-count // max(1, SCORE_BYTES // (4 * batch * heads * keys[0].shape[2])))
    if steps == 1:
        return function(carry, rows)
    size = -(-count // steps)

    # Rows of zeros: scores and statistics of zero give weights of one, with gradients of zero.
    def split(axis, x):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, steps * size - count)
        x = jnp.pad(x, widths)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], steps, size, *x.shape[axis + 1 :]), axis, 0)

    parts = jax.tree.map(partial(split, _ROW_AXIS), rows[0]), jax.tree.map(partial(split, 1), rows[1])
    carry, outputs = jax.lax.scan(function, carry, parts)

    def join(x):
        x = jnp.moveaxis(x, 0, _ROW_AXIS)
        return x.reshape(*x.shape[:_ROW_AXIS], steps * size, *x.shape[_ROW_AXIS + 2 :])[:, :, :, :count]

    return carry, jax.tree.map(join, outputs)


def _mask(inputs: AttentionInputs, query_places, key_places):
    (query_positions, query_segments), (key_positions, key_segments) = query_places, key_places
    mask = visible(
        query_positions,
        key_positions,
        query_segments,
        key_segments,
        causal=inputs.causal,
        sliding_window=inputs.sliding_window,
    )
    return mask[:, None, None]


def _heads_first(inputs: AttentionInputs) -> tuple[Array, Array]:
    return inputs.key.swapaxes(1, 2), inputs.value.swapaxes(1, 2)


def _grouped(x: Float[Array, "b t n *h"], inputs: AttentionInputs) -> Float[Array, "b k g t *h"]:
    kv_heads = inputs.key.shape[2]
    return jnp.moveaxis(x.reshape(*x.shape[:2], kv_heads, -1, *x.shape[3:]), 1, 3)


def _ungrouped(x: Float[Array, "b k g t *h"]) -> Float[Array, "b t n *h"]:
    x = jnp.moveaxis(x, 3, 1)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])
