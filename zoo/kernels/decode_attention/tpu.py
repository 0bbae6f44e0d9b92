"""Decode attention on TPU (Mosaic): blocks of slots stream through vector memory, every visible one once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.block import NO_KEY
from zoo.kernels.attention.visibility import visible_pairs
from zoo.kernels.decode_attention.inputs import HeldKeys, OwnKey, capped, takes_maximum, visible_blocks

STEP_BYTES = 2 << 20
"""Most bytes of keys and values that one step reads; two steps' worth lie in vector memory at a time."""

_LANES = 128
_MOST_SLOTS = 2048


def tpu_decode_attention(
    query: Float[Array, "b n h"],
    held: HeldKeys,
    own: OwnKey,
    query_positions: Int[Array, "#b 1"],
    *,
    scale: float,
    sliding_window: int | None,
    logits_soft_cap: float | None,
    block: int | None = None,
    interpret=False,
    with_lse: bool = False,
) -> Any:
    """See `decode_attention`. One step multiplies the G query heads of several groups with one block of their slots.

    The grid is (rows, groups of key/value heads, blocks); its last side is as long as the most blocks that any row of
    this call sees, known only at run time. The visible slots of a row are bounded by its first and its last block.

    Args:
      block: slots per step, a multiple of 128 (or all of them); None = as many as `STEP_BYTES` hold.
      interpret: as of `pallas_call`.
      with_lse: return (out, lse) as `decode_attention_part` does.

    Raises:
      NotImplementedError: dtypes other than bfloat16 and float32, unless interpreted.
      ValueError: a block of another size.
    """
    key, value, positions = held
    batch, heads, head_dim = query.shape
    kv_heads, slots = key.shape[1], key.shape[3]
    group = heads // kv_heads
    if not interpret and query.dtype not in (jnp.bfloat16, jnp.float32):
        raise NotImplementedError(f"decode attention 'pallas_tpu' takes bfloat16 and float32, not {query.dtype}")
    if block is not None and block < slots and block % _LANES:
        raise ValueError(f"block must be a multiple of {_LANES}, got {block}")
    step_heads, default_block = _step_shape(batch, kv_heads, head_dim, slots, key.dtype.itemsize)
    block = min(block or default_block, slots)
    query_positions = jnp.broadcast_to(query_positions, (batch, 1)).astype(jnp.int32)
    first, last = visible_blocks(query_positions, positions, sliding_window, block)
    steps = jnp.maximum(jnp.max(last - first) + 1, 1)

    def per_head(row, head, step, *_):
        return row, head, jnp.int32(0), jnp.int32(0)

    def slot_block(row, step, first, last):
        # A step past a row's last block keeps that block: nothing is fetched.
        return jnp.maximum(jnp.minimum(first[row] + step, last[row]), 0)

    def key_index(row, head, step, first, last, *_):
        return row, head, jnp.int32(0), slot_block(row, step, first, last)

    def value_index(row, head, step, first, last, *_):
        return row, head, slot_block(row, step, first, last), jnp.int32(0)

    def position_index(row, head, step, first, last, *_):
        return row, jnp.int32(0), slot_block(row, step, first, last)

    accumulator = jnp.promote_types(query.dtype, jnp.float32)
    grouped = (None, step_heads, group, head_dim)
    single = (None, step_heads, 1, head_dim)
    statistics = (None, step_heads, group, _LANES)
    call = pl.pallas_call(
        partial(
            _kernel,
            slots=slots,
            scale=scale,
            sliding_window=sliding_window,
            logits_soft_cap=logits_soft_cap,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(batch, kv_heads // step_heads, steps),
            in_specs=[
                pl.BlockSpec(grouped, per_head),
                pl.BlockSpec((None, step_heads, head_dim, block), key_index),
                pl.BlockSpec((None, step_heads, block, head_dim), value_index),
                pl.BlockSpec((None, 1, block), position_index),
                pl.BlockSpec(single, per_head),
                pl.BlockSpec(single, per_head),
            ],
            out_specs=[pl.BlockSpec(grouped, per_head), pl.BlockSpec(statistics, per_head)][: 1 + with_lse],
            scratch_shapes=[
                pltpu.VMEM((step_heads, group, 1), accumulator),
                pltpu.VMEM((step_heads, group, 1), accumulator),
                pltpu.VMEM((step_heads, group, head_dim), accumulator),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, kv_heads, group, head_dim), query.dtype),
            jax.ShapeDtypeStruct((batch, kv_heads, group, _LANES), accumulator),
        ][: 1 + with_lse],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=_cost(query, held),
        interpret=interpret,
        name="decode_attention",
    )

    def pinned(query, key, value, positions, own_key, own_value):
        # Where a cache fits in vector memory, XLA may move all of it there and, once the new token is written, back.
        if not interpret:
            key, value = (pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in (key, value))
        own_position = own[2][:, 0].astype(jnp.int32)
        return call(first, last, query_positions[:, 0], own_position, query, key, value, positions, own_key, own_value)

    out, *lse = jax.jit(pinned)(
        query.reshape(batch, kv_heads, group, head_dim),
        key,
        value,
        positions[:, None].astype(jnp.int32),
        own[0][:, :, None],
        own[1][:, :, None],
    )
    out = out.reshape(query.shape)
    return (out, lse[0][..., 0].reshape(query.shape[:2])) if with_lse else out


def _step_shape(batch: int, kv_heads: int, head_dim: int, slots: int, itemsize: int) -> tuple[int, int]:
    """(key/value heads, slots) of one step."""
    step_heads = kv_heads
    if batch % 2 and kv_heads % 2 == 0:
        # The two cores of a v4 or v5p chip share the rows and heads of the grid.
        step_heads //= 2
    slot_bytes = 2 * head_dim * itemsize
    while step_heads % 2 == 0 and step_heads * slot_bytes * _LANES > STEP_BYTES:
        step_heads //= 2
    block = _LANES
    while block < min(slots, _MOST_SLOTS) and 2 * block * step_heads * slot_bytes <= STEP_BYTES:
        block *= 2
    return step_heads, block


def _cost(query: Float[Array, "b n h"], held: HeldKeys) -> pl.CostEstimate:
    """Of a full cache, whose bytes are read once: 4 B N S H FLOPs, an exponential and a tanh for each score."""
    slots = held[0].shape[3]
    return pl.CostEstimate(
        flops=4 * query.size * slots,
        transcendentals=2 * query.shape[0] * query.shape[1] * slots,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*held, query, query)),
    )


def _kernel(
    first_ref,  # [B] in scalar memory, as the next three
    last_ref,
    query_position_ref,
    own_position_ref,
    query_ref,  # [k, G, H]
    key_ref,  # [k, H, s]
    value_ref,  # [k, s, H]
    position_ref,  # [1, s]
    own_key_ref,  # [k, 1, H]
    own_value_ref,
    *refs,
    slots: int,
    scale: float,
    sliding_window: int | None,
    logits_soft_cap: float | None,
):
    # Results [k, G, H] and, where they are wanted, their statistics [k, G, lanes]; scratch [k, G, 1] twice, [k, G, H].
    out_ref, *lse_refs, largest_ref, total_ref, sum_ref = refs
    row, step = pl.program_id(0), pl.program_id(2)
    query_position = query_position_ref[row]
    accumulator = sum_ref.dtype
    lowest = jnp.finfo(accumulator).min
    dtype = query_ref.dtype
    maximum = takes_maximum(logits_soft_cap, dtype)
    precision = jax.lax.Precision.HIGHEST if dtype == accumulator else None
    product = partial(jnp.einsum, preferred_element_type=accumulator, precision=precision)

    @pl.when(step == 0)
    def _own_token():
        seen = visible_pairs(query_position, own_position_ref[row], sliding_window=sliding_window)
        query, own_key = query_ref[...].astype(accumulator), own_key_ref[...].astype(accumulator)
        score = capped((query * own_key).sum(-1, keepdims=True), scale, logits_soft_cap)
        if maximum:
            largest_ref[...] = jnp.where(seen, score, lowest)
            score = jnp.zeros_like(score)
        weight = jnp.where(seen, jnp.exp(score), 0)
        total_ref[...] = weight
        sum_ref[...] = weight * own_value_ref[...].astype(accumulator)

    block = first_ref[row] + step

    @pl.when(block <= last_ref[row])
    def _block_of_slots():
        size = position_ref.shape[-1]
        seen = visible_pairs(query_position, position_ref[...], sliding_window=sliding_window)
        value = value_ref[...].astype(dtype)
        if slots % size:
            # Past the end of the cache lies anything, NaN too: it must be gone before it meets a weight of zero.
            left = slots - block * size
            seen &= jax.lax.broadcasted_iota(jnp.int32, seen.shape, 1) < left
            value = jnp.where(jax.lax.broadcasted_iota(jnp.int32, (1, size, 1), 1) < left, value, 0)
        seen = seen[None]
        scores = capped(product("kgh,khs->kgs", query_ref[...], key_ref[...].astype(dtype)), scale, logits_soft_cap)
        if maximum:
            before = largest_ref[...]
            largest = jnp.maximum(before, jnp.where(seen, scores, lowest).max(-1, keepdims=True))
            largest_ref[...] = largest
            scores = scores - largest
            decay = jnp.exp(before - largest)
            total_ref[...] *= decay
            sum_ref[...] *= decay
        weights = jnp.where(seen, jnp.exp(scores), 0)
        total_ref[...] += weights.sum(-1, keepdims=True)
        sum_ref[...] += product("kgs,ksh->kgh", weights.astype(dtype), value)

    @pl.when(step == pl.num_programs(2) - 1)
    def _finish():
        total = total_ref[...]
        safe = jnp.where(total == 0, 1, total)
        out_ref[...] = (sum_ref[...] / safe).astype(out_ref.dtype)
        for lse_ref in lse_refs:
            lse = jnp.log(safe) + (largest_ref[...] if maximum else 0)
            lse_ref[...] = jnp.broadcast_to(jnp.where(total == 0, NO_KEY, lse), lse_ref.shape)
