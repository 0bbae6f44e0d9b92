"""Backward pass on Hopper: one kernel for the queries' gradient, one for those of keys and values; no atomics.

With p the softmax weights, o = p v and g the gradient of o: dv = p^T g, and a score's gradient is
ds = p (g v^T - sum(g o)) times the slope of the cap; dq = scale ds k, dk = scale ds^T q. Weights are recomputed from
the saved logarithm of their sum, so memory grows with T. Source: FlashAttention-2 (arXiv 2307.08691), algorithm 2.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from zoo.kernels.local_attention.hopper_forward import heads_per_block
from zoo.kernels.local_attention.hopper_pipeline import (
    CONSUMERS,
    afresh,
    block_range,
    consumer,
    matrices,
    own,
    producer,
    program,
    ring,
    run,
)
from zoo.kernels.local_attention.hopper_tile import ROWS, Tile, along_columns, along_rows


def query_gradient(
    tile: Tile,
    query: Float[Array, "b t n h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    out_gradient: Float[Array, "b t n h"],
    sums: Float[Array, "b n i 2 r"],
    ranges: Int[Array, "#b i 4"],
    query_marks: Int[Array, "#b i p m r"],
    key_marks: Int[Array, "#b j m c"],
    *,
    key_stages: int,
    value_stages: int,
    interpret: Any,
) -> Float[Array, "b t n h"]:
    """dq. sums: of each query row, in parts of 64, log2 of its sum of exponentials, and sum(g o); see `forward`."""
    batch, _, heads, head_dim = query.shape
    together = heads_per_block(heads, key.shape[2])
    block = partial(matrices, columns=head_dim, dtype=query.dtype, interpret=tile.interpret)
    return run(
        partial(_query_thread_block, tile, heads // key.shape[2], together),
        (query, key, value, out_gradient, sums, ranges, query_marks, key_marks),
        (jax.ShapeDtypeStruct(query.shape, query.dtype),),
        (
            block(CONSUMERS, ROWS),
            block(CONSUMERS, ROWS),
            plgpu.Barrier(num_arrivals=2, num_barriers=CONSUMERS),
            ring(block(key_stages, tile.columns)),
            ring(block(value_stages, tile.columns)),
        ),
        (heads // together, ranges.shape[1], batch),
        interpret,
        "local_attention_hopper_query_gradient",
    )[0]


def _query_thread_block(
    tile: Tile,
    group: int,
    together: int,
    query_ref,
    key_ref,
    value_ref,
    out_gradient_ref,
    sums,
    ranges,
    query_marks,
    key_marks,
    query_gradient_ref,
    query_smems,
    out_gradient_smems,
    filled,
    keys,
    values,
):
    head_block, block, row, warpgroup = program()
    first, steps, masked = block_range(ranges, row, block)
    part, head = (0, head_block * together + warpgroup) if together > 1 else (warpgroup, head_block)

    def consume():
        row_block = block * (CONSUMERS // together) + part
        rows = pl.ds(row_block * ROWS, ROWS)
        query, out_gradient = query_smems.at[warpgroup], out_gradient_smems.at[warpgroup]
        plgpu.copy_gmem_to_smem(query_ref.at[row, rows, head], query, filled.at[warpgroup])
        plgpu.copy_gmem_to_smem(out_gradient_ref.at[row, rows, head], out_gradient, filled.at[warpgroup])
        log_sum, mean = (tile.row_values(sums, row, head, row_block, i) for i in range(2))
        plgpu.barrier_wait(filled.at[warpgroup])

        def key_step(step, gradient):
            key_block = first + step
            key = keys.wait(step)
            mine = afresh(warpgroup)
            query, out_gradient = query_smems.at[mine], out_gradient_smems.at[mine]
            logs, slope = tile.logs_and_slope(tile.product_transposed(query, key))
            logs = tile.hide_some(
                masked(key_block),
                logs,
                (query_marks, own(query_marks, row), block, part),
                (key_marks, own(key_marks, row), key_block),
            )
            weights = jnp.exp2(logs - along_rows(log_sum, logs.shape)) * slope
            change = tile.product_transposed(out_gradient, values.wait(step)) - along_rows(mean, logs.shape)
            values.free(step)
            gradient = tile.accumulate(gradient, weights * change, key)
            keys.free(step)
            return gradient

        gradient = jax.lax.fori_loop(jnp.int32(0), steps, key_step, tile.zeros(query.shape[1]))
        query[...] = (gradient * tile.scale).astype(query.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(query, query_gradient_ref.at[row, rows, head])
        plgpu.wait_smem_to_gmem(0)

    def sources(step):
        indices = pl.ds((first + step) * tile.columns, tile.columns)
        kv_head = jax.lax.div(head_block * together, jnp.int32(group))
        return key_ref.at[row, indices, kv_head], value_ref.at[row, indices, kv_head]

    consumer(warpgroup, consume)
    producer(warpgroup, (keys, values), steps, sources)


def key_parts(head_dim: int) -> int:
    """Parts of 64 keys of a thread block.

    Two: each consumer sums both gradients of its own 64 keys. One: the registers hold one gradient only, and of the
    same 64 keys one consumer sums the values' gradient, the other the keys'.
    """
    return CONSUMERS if head_dim <= 128 else 1


def key_gradients(
    tile: Tile,
    query: Float[Array, "b t n h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    out_gradient: Float[Array, "b t n h"],
    sums: Float[Array, "b n i 2 c"],
    ranges: Int[Array, "#b j 4"],
    query_marks: Int[Array, "#b i m c"],
    key_marks: Int[Array, "#b j p m r"],
    *,
    stages: int,
    interpret: Any,
) -> tuple[Float[Array, "b s k h"], Float[Array, "b s k h"]]:
    """(dk, dv). Tiles have keys as rows; sums: as in `query_gradient`, by blocks of queries; p: parts of 64 keys."""
    batch, _, kv_heads, head_dim = key.shape
    parts = key_parts(head_dim)
    block = partial(matrices, columns=head_dim, dtype=query.dtype, interpret=tile.interpret)
    return run(
        partial(_key_thread_block, tile, query.shape[2] // kv_heads, parts),
        (query, key, value, out_gradient, sums, ranges, query_marks, key_marks),
        (jax.ShapeDtypeStruct(key.shape, key.dtype),) * 2,
        (
            block(parts, ROWS),
            block(parts, ROWS),
            plgpu.Barrier(num_arrivals=2 * parts),
            plgpu.Barrier(num_arrivals=CONSUMERS),
            ring(block(stages, tile.columns)),
            ring(block(stages, tile.columns)),
            ring(plgpu.SMEM((stages, 2, tile.columns), sums.dtype)),
        ),
        (kv_heads, ranges.shape[1], batch),
        interpret,
        "local_attention_hopper_key_gradients",
    )


def _key_thread_block(
    tile: Tile,
    group: int,
    parts: int,
    query_ref,
    key_ref,
    value_ref,
    out_gradient_ref,
    sums_ref,
    ranges,
    query_marks,
    key_marks,
    key_gradient_ref,
    value_gradient_ref,
    key_smems,
    value_smems,
    filled,
    finished,
    queries,
    out_gradients,
    sums,
):
    kv_head, block, row, warpgroup = program()
    first, count, masked = block_range(ranges, row, block)
    steps = group * count

    def keys_of(part):
        return pl.ds((block * parts + part) * ROWS, ROWS)

    def consume(part, of_keys, of_values):
        key, value = key_smems.at[part], value_smems.at[part]
        plgpu.barrier_wait(filled)

        def query_step(step, totals):
            key_total, value_total = totals
            mine = afresh(part)
            key, value = key_smems.at[mine], value_smems.at[mine]
            query_block = first + jax.lax.rem(step, count)
            query = queries.wait(step)
            logs, slope = tile.logs_and_slope(tile.product_transposed(key, query))
            logs = tile.hide_some(
                masked(query_block),
                logs,
                (key_marks, own(key_marks, row), block, part),
                (query_marks, own(query_marks, row), query_block),
                rows_are_queries=False,
            )
            here = sums.wait(step)
            log_sum, mean = (along_columns(tile.column_values(here, i), logs.shape) for i in range(2))
            weights = jnp.exp2(logs - log_sum)
            # Taken together early, so that fewer numbers are held in registers during the products.
            rounded, weights = weights.astype(query.dtype), weights * slope
            out_gradient = out_gradients.wait(step)
            if of_values:
                value_total = tile.accumulate(value_total, rounded, out_gradient)
            if of_keys:
                change = tile.product_transposed(value, out_gradient) - mean
                key_total = tile.accumulate(key_total, weights * change, query)
            for each in (queries, out_gradients, sums):
                each.free(step)
            return key_total, value_total

        start = tuple(tile.zeros(key.shape[1]) if needed else None for needed in (of_keys, of_values))
        key_total, value_total = jax.lax.fori_loop(jnp.int32(0), steps, query_step, start)
        # The results take the place of operands, which the other consumer may still read.
        plgpu.barrier_arrive(finished)
        plgpu.barrier_wait(finished)
        if of_keys:
            key[...] = (key_total * tile.scale).astype(key.dtype)
        if of_values:
            value[...] = value_total.astype(value.dtype)
        plgpu.commit_smem()
        if of_keys:
            plgpu.copy_smem_to_gmem(key, key_gradient_ref.at[row, keys_of(part), kv_head])
        if of_values:
            plgpu.copy_smem_to_gmem(value, value_gradient_ref.at[row, keys_of(part), kv_head])
        plgpu.wait_smem_to_gmem(0)

    if parts == CONSUMERS:
        consumer(warpgroup, partial(consume, warpgroup, True, True))
    else:
        consumer(warpgroup, partial(consume, 0, False, True), only=0)
        consumer(warpgroup, partial(consume, 0, True, False), only=1)

    def start():
        for part in range(parts):
            for source, smems in ((key_ref, key_smems), (value_ref, value_smems)):
                plgpu.copy_gmem_to_smem(source.at[row, keys_of(part), kv_head], smems.at[part], filled)

    def sources(step):
        # Without a query to visit there is no step, but the last rounds of the producer divide all the same.
        blocks = jnp.maximum(count, 1)
        head, query_block = kv_head * group + jax.lax.div(step, blocks), first + jax.lax.rem(step, blocks)
        rows = pl.ds(query_block * tile.columns, tile.columns)
        return query_ref.at[row, rows, head], out_gradient_ref.at[row, rows, head], sums_ref.at[row, head, query_block]

    producer(warpgroup, (queries, out_gradients, sums), steps, sources, start)
