"""Forward pass on Hopper: one warpgroup copies keys and values, two multiply them with 64 query rows each.

While one of the two takes exponentials, the other has the tensor cores. Source of the pattern: FlashAttention-3
(arXiv 2407.08608), sections 3.1 and 3.2.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

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
from zoo.kernels.local_attention.hopper_tile import LOG2_E, ROWS, Tile, along_rows


def heads_per_block(num_heads: int, num_kv_heads: int) -> int:
    """Query heads of one group that share a thread block: two, which read each key block once for both, or one."""
    return CONSUMERS if num_heads // num_kv_heads % CONSUMERS == 0 else 1


def forward(
    tile: Tile,
    query: Float[Array, "b t n h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    ranges: Int[Array, "#b i 4"],
    query_marks: Int[Array, "#b i p m r"],
    key_marks: Int[Array, "#b j m c"],
    *,
    stages: int,
    interpret: Any,
) -> tuple[Float[Array, "b t n h"], Float[Array, "b n t"]]:
    """(attention, log2 of the sum of exp(score)); T and S are whole blocks. A row that sees no key has (0, 0).

    ranges: first, last, first_full, last_full of `BlockRanges`. marks: of each row and key its position and, when
    m = 2, its segment; p counts the parts of 64 rows of a block of queries. stages: blocks that shared memory holds.
    """
    batch, queries, heads, head_dim = query.shape
    dtype = query.dtype
    together = heads_per_block(heads, key.shape[2])
    block = partial(matrices, stages, tile.columns, head_dim, dtype, tile.interpret)
    return run(
        partial(_thread_block, tile, heads // key.shape[2], together),
        (query, key, value, ranges, query_marks, key_marks),
        (jax.ShapeDtypeStruct(query.shape, dtype), jax.ShapeDtypeStruct((batch, heads, queries), tile.accumulator)),
        (
            matrices(CONSUMERS, ROWS, head_dim, dtype, tile.interpret),
            plgpu.Barrier(num_barriers=CONSUMERS),
            plgpu.SMEM((CONSUMERS, ROWS), tile.accumulator),
            ring(block()),
            ring(block()),
            plgpu.Barrier(num_arrivals=CONSUMERS),
        ),
        (heads // together, ranges.shape[1], batch),
        interpret,
        "local_attention_hopper_forward",
    )


def _thread_block(
    tile: Tile,
    group: int,
    together: int,
    query_ref,
    key_ref,
    value_ref,
    ranges,
    query_marks,
    key_marks,
    out_ref,
    lse_ref,
    query_smems,
    query_filled,
    lse_smems,
    keys,
    values,
    turn,
):
    head_block, block, row, warpgroup = program()
    first, steps, masked = block_range(ranges, row, block)
    part, head = (0, head_block * together + warpgroup) if together > 1 else (warpgroup, head_block)

    def consume():
        rows = pl.ds(block * (ROWS * CONSUMERS // together) + part * ROWS, ROWS)
        query, lse = query_smems.at[warpgroup], lse_smems.at[warpgroup]
        plgpu.copy_gmem_to_smem(query_ref.at[row, rows, head], query, query_filled.at[warpgroup])
        plgpu.barrier_wait(query_filled.at[warpgroup])

        def take_turn():
            plgpu.barrier_arrive(turn)
            plgpu.barrier_wait(turn)

        def key_step(step, carry):
            out, maximum, total = carry
            query = query_smems.at[afresh(warpgroup)]
            key_block = first + step
            products = tile.product_transposed(query, keys.wait(step), meanwhile=take_turn)
            keys.free(step)
            logs = tile.hide_some(
                masked(key_block),
                tile.logs(products),
                (query_marks, own(query_marks, row), block, part),
                (key_marks, own(key_marks, row), key_block),
            )
            weights, maximum, total, factor = tile.softmax(logs, maximum, total)
            if factor is not None:
                out = out * along_rows(factor, out.shape)
            plgpu.barrier_arrive(turn)
            value = values.wait(step)
            plgpu.barrier_wait(turn)
            out = tile.accumulate(out, weights, value)
            values.free(step)
            return out, maximum, total

        # The second warpgroup starts half a step late, and the first waits for it in the end.
        pl.when(warpgroup == 1)(take_turn)
        start = tile.zeros(query.shape[1]), *tile.no_keys()
        out, maximum, total = jax.lax.fori_loop(jnp.int32(0), steps, key_step, start)
        pl.when(warpgroup == 0)(take_turn)

        seen = jnp.where(total == 0, 1, total)
        query[...] = (out * along_rows(1 / seen, out.shape)).astype(query.dtype)
        lse[...] = jnp.where(total == 0, 0, maximum + LOG2_E * jnp.log(seen))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(query, out_ref.at[row, rows, head])
        plgpu.copy_smem_to_gmem(lse, lse_ref.at[row, head, rows])
        plgpu.wait_smem_to_gmem(0)

    def sources(step):
        indices = pl.ds((first + step) * tile.columns, tile.columns)
        kv_head = jax.lax.div(head_block * together, jnp.int32(group))
        return key_ref.at[row, indices, kv_head], value_ref.at[row, indices, kv_head]

    consumer(warpgroup, consume)
    producer(warpgroup, (keys, values), steps, sources)
