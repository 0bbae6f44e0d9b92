"""Blocked attention in plain XLA: runs on every back end, forward and backward, without a [T, S] buffer.

* A local layer looks only at the band of keys around its queries: time and memory grow with T x W.
* A global layer goes through its queries in chunks; with ordered positions a chunk meets only the keys before its end.
* The query heads of a group are stacked as rows of one matrix multiplication, so keys and values are never repeated.
* When the scores of one step would exceed `SCORE_BYTES`, steps are scanned and recomputed in the backward pass.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.kernels.attention.block import attend
from zoo.kernels.attention.inputs import AttentionInputs
from zoo.kernels.attention.visibility import visible

SCORE_BYTES = 256 * 2**20
"""Upper bound of the float32 scores that exist at one time."""

CAUSAL_CHUNKS = 8
"""Chunks of a causal global layer: chunk i of n meets i/n of the keys, so 8 chunks do 56 % of the dense work."""

MIN_CHUNK = 128
"""Queries below which a further chunk costs more in dispatch than it saves in arithmetic."""


def xla_attention(inputs: AttentionInputs) -> Float[Array, "b t n h"]:
    """The function of `reference_attention`, blocked; products are float32 sums of the inputs' dtype."""
    queries, keys = inputs.query.shape[1], inputs.key.shape[1]
    window = inputs.sliding_window
    banded = inputs.ordered_positions and inputs.causal and queries > 1
    if banded and window is not None and _left_halo(window) + block_size(window) < keys:
        return _local(inputs, window)
    return _global(inputs)


def block_size(sliding_window: int) -> int:
    """Queries per block of a local layer: a quarter of the window, so a quarter of the work is wasted; 64..512."""
    return min(max(sliding_window // 4 // 64 * 64, 64), 512)


def _left_halo(sliding_window: int) -> int:
    """Keys before a block that its queries may see, in whole blocks."""
    block = block_size(sliding_window)
    return -(-(sliding_window - 1) // block) * block


# ---- local layers: blocks of queries against a band of keys ----


def _local(inputs: AttentionInputs, window: int) -> Float[Array, "b t n h"]:
    batch, queries, heads, head_dim = inputs.query.shape
    keys, kv_heads = inputs.key.shape[1:3]
    block, halo = block_size(window), _left_halo(window)
    blocks = -(-queries // block)
    block_score_bytes = 4 * batch * heads * block * (halo + block)
    blocks_per_step = min(blocks, max(1, SCORE_BYTES // block_score_bytes))
    steps = -(-blocks // blocks_per_step)
    span = blocks_per_step * block

    def query_steps(x):
        """[b, T, ...] -> [steps, b, span, ...]"""
        x = _pad(x, 0, steps * span - queries)
        return jnp.moveaxis(x.reshape(x.shape[0], steps, span, *x.shape[2:]), 1, 0)

    def key_steps(x):
        """[b, S, ...] -> [steps, b, halo + span, ...]: step i begins `halo` keys before its first query."""
        first = keys - queries - halo
        x = _pad(x[:, max(first, 0) :], max(-first, 0), steps * span - queries)
        return jnp.stack([x[:, i * span : i * span + halo + span] for i in range(steps)])

    # Padding is told from real keys by its segment; without segments every real token has segment 1.
    query_segments, key_segments = inputs.query_segment_ids, inputs.key_segment_ids
    if query_segments is None or key_segments is None:
        query_segments = jnp.ones((1, queries), jnp.int32)
        key_segments = jnp.ones((1, keys), jnp.int32)
    step_inputs = (
        *map(query_steps, (inputs.query, inputs.query_positions, query_segments + 1)),
        *map(key_steps, (inputs.key, inputs.value, inputs.key_positions, key_segments + 1)),
    )

    def step(arrays):
        query, query_positions, query_segments, key, value, key_positions, key_segments = arrays

        def to_blocks(x):
            return x.reshape(x.shape[0], blocks_per_step, block, *x.shape[2:])

        def to_bands(x):
            x = x.reshape(x.shape[0], -1, block, *x.shape[2:])
            shifted = [x[:, i : i + blocks_per_step] for i in range(halo // block + 1)]
            return jnp.concatenate(shifted, axis=2)

        mask = visible(
            to_blocks(query_positions),
            to_bands(key_positions),
            to_blocks(query_segments),
            to_bands(key_segments),
            sliding_window=window,
        )
        grouped = to_blocks(query).reshape(batch, blocks_per_step, block, kv_heads, heads // kv_heads, head_dim)
        out = attend(
            grouped.transpose(0, 1, 3, 4, 2, 5),
            to_bands(key).swapaxes(2, 3),
            to_bands(value).swapaxes(2, 3),
            mask[:, :, None, None],
            inputs.scale,
            inputs.logits_soft_cap,
        )
        return out.transpose(0, 1, 4, 2, 3, 5).reshape(batch, span, heads, head_dim)

    if steps == 1:
        return step(jax.tree.map(lambda x: x[0], step_inputs))[:, :queries]
    out = jax.lax.map(jax.checkpoint(step, prevent_cse=False), step_inputs)
    return jnp.moveaxis(out, 0, 1).reshape(batch, steps * span, heads, head_dim)[:, :queries]


# ---- global layers, and anything whose positions are not known to be in order ----


def _global(inputs: AttentionInputs) -> Float[Array, "b t n h"]:
    batch, queries, heads, head_dim = inputs.query.shape
    keys, kv_heads = inputs.key.shape[1:3]
    query = inputs.query.reshape(batch, queries, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    key, value = inputs.key.swapaxes(1, 2), inputs.value.swapaxes(1, 2)

    ordered = inputs.ordered_positions and inputs.causal
    chunks = max(1, min(CAUSAL_CHUNKS, queries // MIN_CHUNK)) if ordered else 1
    size = -(-queries // chunks)
    outputs = []
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        last_key = stop + keys - queries if ordered else keys
        key_segments = None if inputs.key_segment_ids is None else inputs.key_segment_ids[:, :last_key]
        query_segments = None if inputs.query_segment_ids is None else inputs.query_segment_ids[:, start:stop]
        attend_rows = partial(
            _attend_rows,
            inputs,
            key=key[:, :, :last_key],
            value=value[:, :, :last_key],
            key_positions=inputs.key_positions[:, :last_key],
            key_segments=key_segments,
        )
        rows = query[:, :, :, start:stop], inputs.query_positions[:, start:stop], query_segments
        rows_per_step = max(1, SCORE_BYTES // (4 * batch * heads * last_key))
        outputs.append(_scan_rows(attend_rows, rows, rows_per_step))
    out = jnp.concatenate(outputs, axis=3) if len(outputs) > 1 else outputs[0]
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, head_dim)


def _attend_rows(inputs: AttentionInputs, rows, *, key, value, key_positions, key_segments):
    query, query_positions, query_segments = rows
    mask = visible(
        query_positions,
        key_positions,
        query_segments,
        key_segments,
        causal=inputs.causal,
        sliding_window=inputs.sliding_window,
    )
    return attend(query, key, value, mask[:, None, None], inputs.scale, inputs.logits_soft_cap)


def _scan_rows(attend_rows, rows, rows_per_step: int):
    """`attend_rows` on all rows [b, k, g, C, h] at once, or scanned over parts of at most `rows_per_step` queries."""
    query, positions, segments = rows
    count = query.shape[3]
    if count <= rows_per_step:
        return attend_rows(rows)
    steps = -(-count // rows_per_step)
    padding = steps * rows_per_step - count

    def split(x, axis):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, padding)
        x = jnp.pad(x, widths)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], steps, rows_per_step, *x.shape[axis + 1 :]), axis, 0)

    parts = split(query, 3), split(positions, 1), None if segments is None else split(segments, 1)
    out = jax.lax.map(jax.checkpoint(attend_rows, prevent_cse=False), parts)
    out = jnp.moveaxis(out, 0, 3)
    return out.reshape(*out.shape[:3], steps * rows_per_step, out.shape[-1])[:, :, :, :count]


def _pad(x: Array, before: int, after: int) -> Array:
    """Zeros along axis 1: segment 0, which no real token has once segment ids are shifted by one."""
    return jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2))
