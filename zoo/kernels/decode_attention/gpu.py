"""Decode attention on GPU (Pallas through Triton): the slots of a row are split among programs, then merged."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.block import NO_KEY
from zoo.kernels.attention.visibility import EMPTY_POSITION, visible_pairs
from zoo.kernels.decode_attention.inputs import HeldKeys, OwnKey, capped, takes_maximum, visible_blocks
from zoo.kernels.platform import target_platform

PROGRAMS_PER_MULTIPROCESSOR = 2
"""Programs aimed at; so many fit in the shared memory of every GPU from the A100 on."""

BLOCK_BYTES = 32 << 10
"""Bytes of keys and values of one block; shared memory holds two blocks that are on their way."""

_STAGES = 3
_ROWS = 16  # rows of the smallest tensor-core product
_LEAST_BLOCKS = 2  # of a split
_MOST_SPLITS = 128  # what a program of the merge can hold
_MERGED = 8192  # numbers that it holds


def gpu_decode_attention(
    query: Float[Array, "b n h"],
    held: HeldKeys,
    own: OwnKey,
    query_positions: Int[Array, "#b 1"],
    *,
    scale: float,
    sliding_window: int | None,
    logits_soft_cap: float | None,
    block: int | None = None,
    splits: int | None = None,
    interpret: bool = False,
    with_lse: bool = False,
) -> Any:
    """See `decode_attention`. A program reads one part of the visible slots of one key/value head of one row, once.

    What the programs found (float32 sums [B, K, splits, G, H], their weights and largest scores [B, K, splits, G]) is
    merged with the own token by a second kernel. XLA adds one or two small kernels, which find the visible slots.

    Args:
      block: slots per step, a power of two of at least 16; None = what `BLOCK_BYTES` hold.
      splits: programs per row and head; None = as many as fill the GPU, each with two blocks or more.
      interpret: as of `pallas_call`.
      with_lse: return (out, lse) as `decode_attention_part` does.

    Raises:
      NotImplementedError: head sizes and dtypes for which Triton has no such products, unless interpreted.
      ValueError: a block of another size.
    """
    key, value, positions = held
    batch, heads, head_dim = query.shape
    kv_heads, slots = key.shape[1], key.shape[3]
    group = heads // kv_heads
    if not interpret and (head_dim < 16 or head_dim & (head_dim - 1)):
        raise NotImplementedError(f"decode attention 'pallas_gpu' takes head sizes 2**n >= 16, not {head_dim}")
    if not interpret and query.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(
            f"decode attention 'pallas_gpu' takes bfloat16, float16 and float32, not {query.dtype}"
        )
    if block is not None and (block < 16 or block & (block - 1)):
        raise ValueError(f"block must be a power of two, at least 16, got {block}")
    block = block or _block(head_dim, key.dtype.itemsize)
    if splits is None:
        programs = PROGRAMS_PER_MULTIPROCESSOR * _multiprocessors()
        splits = min(round(programs / (batch * kv_heads)), slots // (_LEAST_BLOCKS * block), _MOST_SPLITS)
    splits = max(splits, 1)
    query_positions = query_positions.astype(jnp.int32)
    first, last = visible_blocks(query_positions, positions, sliding_window, block)
    grouped = query.reshape(batch, kv_heads, group, head_dim)
    accumulator = jnp.promote_types(query.dtype, jnp.float32)
    options: dict[str, Any] = dict(scale=scale, sliding_window=sliding_window, logits_soft_cap=logits_soft_cap)

    def of_head(*shape):
        return pl.BlockSpec((None, None, *shape), lambda split, head, row: (row, head, *_zeros(shape)))

    def of_split(*shape):
        return pl.BlockSpec((None, None, None, *shape), lambda split, head, row: (row, head, split, *_zeros(shape)))

    found = pl.pallas_call(
        partial(_kernel, block=block, splits=splits, **options),
        grid=(splits, kv_heads, batch),
        in_specs=[
            _whole(first),
            _whole(last),
            _whole(query_positions),
            of_head(group, head_dim),
            of_head(head_dim, slots),
            of_head(slots, head_dim),
            pl.BlockSpec((None, slots), lambda split, head, row: (row, jnp.int32(0))),
        ],
        out_specs=[of_split(group, head_dim), of_split(group), of_split(group)],
        out_shape=[
            jax.ShapeDtypeStruct((batch, kv_heads, splits, group, head_dim), accumulator),
            jax.ShapeDtypeStruct((batch, kv_heads, splits, group), accumulator),
            jax.ShapeDtypeStruct((batch, kv_heads, splits, group), accumulator),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=_STAGES),
        interpret=interpret,
        name="decode_attention",
    )(first, last, query_positions, grouped, key, value, positions.astype(jnp.int32))

    lanes = head_dim
    while lanes > 16 and lanes * pl.next_power_of_2(splits) * pl.next_power_of_2(group) > _MERGED:
        lanes //= 2

    def of_lanes(*shape):
        return pl.BlockSpec((None, None, *shape, lanes), lambda lane, head, row: (row, head, *_zeros(shape), lane))

    own_position = own[2].astype(jnp.int32)
    out = pl.pallas_call(
        partial(_merge_kernel, **options),
        grid=(head_dim // lanes, kv_heads, batch),
        in_specs=[
            _whole(query_positions),
            _whole(own_position),
            of_head(group, head_dim),
            of_head(head_dim),
            of_lanes(),
            of_lanes(splits, group),
            of_head(splits, group),
            of_head(splits, group),
        ],
        out_specs=of_lanes(group),
        out_shape=jax.ShapeDtypeStruct(grouped.shape, query.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="decode_attention_merge",
    )(query_positions, own_position, grouped, own[0], own[1], *found)
    out = out.reshape(query.shape)
    return (out, _lse(grouped, own, query_positions, *found[1:], **options)) if with_lse else out


def _lse(grouped, own: OwnKey, query_positions, totals, largest, *, scale, sliding_window, logits_soft_cap):
    """Logarithm of the sum of exp(score) over the slots of all splits and the own token, [B, N]; `NO_KEY` of none."""
    accumulator = totals.dtype
    products = grouped.astype(accumulator) * own[0][:, :, None].astype(accumulator)
    score = capped(products.sum(-1), scale, logits_soft_cap)
    seen = visible_pairs(query_positions, own[2], sliding_window=sliding_window)[..., None]
    lowest = jnp.finfo(accumulator).min
    overall = jnp.maximum(largest.max(2), jnp.where(seen, score, lowest))
    total = (totals * jnp.exp(largest - overall[:, :, None])).sum(2) + jnp.where(seen, jnp.exp(score - overall), 0)
    lse = jnp.where(total == 0, NO_KEY, jnp.log(jnp.where(total == 0, 1, total)) + overall)
    return lse.reshape(len(grouped), -1)


def _zeros(shape: tuple[int, ...]) -> tuple[Array, ...]:
    return (jnp.int32(0),) * len(shape)


def _whole(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda *_: _zeros(x.shape))


def _multiprocessors() -> int:
    """Of the GPU that the program is compiled for; those of an H100 where there is none."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    known = device.num_cores if device is not None else getattr(jax.devices()[0], "core_count", None)
    return known if known and target_platform() == "gpu" else 132


def _block(head_dim: int, itemsize: int) -> int:
    """Slots per step."""
    block = 128
    while block > 16 and 2 * block * head_dim * itemsize > BLOCK_BYTES:
        block //= 2
    return block


def _position(ref, row):
    """Of the row's query; all rows may share one."""
    return ref[row if ref.shape[0] > 1 else 0, 0]


def _kernel(
    first_ref,  # [B]
    last_ref,
    query_position_ref,  # [#B, 1]
    query_ref,  # [G, H]
    key_ref,  # [H, S]
    value_ref,  # [S, H]
    position_ref,  # [S]
    sum_ref,  # [G, H]
    total_ref,  # [G]
    largest_ref,  # [G]
    *,
    block: int,
    splits: int,
    scale: float,
    sliding_window: int | None,
    logits_soft_cap: float | None,
):
    split, row = pl.program_id(0), pl.program_id(2)
    query_position = _position(query_position_ref, row)
    first, last = first_ref[row], last_ref[row]
    each = jax.lax.div(last - first + splits, jnp.int32(splits))
    first += split * each
    last = jnp.minimum(last, first + each - 1)

    (group, head_dim), slots = query_ref.shape, position_ref.shape[0]
    rows = max(_ROWS, pl.next_power_of_2(group))
    head = jax.lax.iota(jnp.int32, rows) < group
    heads = jnp.broadcast_to(head[:, None], (rows, head_dim))
    padded_rows = _masked_slice(rows)
    query = plgpu.load(query_ref.at[padded_rows], mask=heads, other=0)
    accumulator, dtype = sum_ref.dtype, query.dtype
    lowest = jnp.finfo(accumulator).min
    maximum = takes_maximum(logits_soft_cap, dtype)
    precision = jax.lax.Precision.HIGHEST if dtype == accumulator else None
    product = partial(jnp.dot, preferred_element_type=accumulator, precision=precision)

    def attend(index, state):
        total, largest, out = state
        start = index * block
        here = pl.ds(start, block)
        if slots % block:
            inside = start + jax.lax.iota(jnp.int32, block) < slots
            key = plgpu.load(key_ref.at[:, here], mask=inside[None], other=0)
            value = plgpu.load(value_ref.at[here], mask=inside[:, None], other=0)
            position = plgpu.load(position_ref.at[here], mask=inside, other=EMPTY_POSITION)
        else:
            key, value, position = key_ref[:, here], value_ref[here], position_ref[here]
        seen = visible_pairs(query_position, position, sliding_window=sliding_window)[None]
        scores = capped(product(query, key.astype(dtype)), scale, logits_soft_cap)
        if maximum:
            before = largest
            largest = jnp.maximum(before, jnp.where(seen, scores, lowest).max(1))
            scores = scores - largest[:, None]
            decay = jnp.exp(before - largest)
            total, out = total * decay, out * decay[:, None]
        weights = jnp.where(seen, jnp.exp(scores), 0)
        return total + weights.sum(1), largest, out + product(weights.astype(dtype), value.astype(dtype))

    state = (
        jnp.zeros(rows, accumulator),
        jnp.full(rows, lowest if maximum else 0, accumulator),
        jnp.zeros((rows, head_dim), accumulator),
    )
    total, largest, out = jax.lax.fori_loop(first, last + 1, attend, state)
    plgpu.store(sum_ref.at[padded_rows, _masked_slice(head_dim)], out, mask=heads)
    plgpu.store(total_ref.at[padded_rows], total, mask=head)
    plgpu.store(largest_ref.at[padded_rows], largest, mask=head)


def _masked_slice(size: int):
    """A slice from 0 that a mask keeps inside its array. JAX refuses one that it sees to be too long: so the start is
    no constant."""
    return pl.ds(pl.program_id(0) * 0, size)


def _merge_kernel(
    query_position_ref,  # [#B, 1]
    own_position_ref,  # [B, 1]
    query_ref,  # [G, H]
    own_key_ref,  # [H]
    own_value_ref,  # [h], some lanes of a head
    sum_ref,  # [splits, G, h]
    total_ref,  # [splits, G]
    largest_ref,  # [splits, G]
    out_ref,  # [G, h]
    *,
    scale: float,
    sliding_window: int | None,
    logits_soft_cap: float | None,
):
    row = pl.program_id(2)
    splits, group, lanes = sum_ref.shape
    accumulator = sum_ref.dtype
    lowest = jnp.finfo(accumulator).min
    # Triton's arrays have sides of 2**n: what lies beyond the splits and the heads is masked.
    sides = pl.next_power_of_2(splits), pl.next_power_of_2(group)
    part, head = map(_masked_slice, sides)
    is_head = jax.lax.iota(jnp.int32, sides[1]) < group
    inside = (jax.lax.iota(jnp.int32, sides[0]) < splits)[:, None] & is_head[None]

    def load(ref, mask, other=0):
        return plgpu.load(ref, mask=mask, other=other).astype(accumulator)

    def of_heads(size):
        return jnp.broadcast_to(is_head[:, None], (sides[1], size))

    query = load(query_ref.at[head], of_heads(query_ref.shape[1]))
    score = capped((query * own_key_ref[...].astype(accumulator)[None]).sum(1), scale, logits_soft_cap)
    sums = load(sum_ref.at[part, head], jnp.broadcast_to(inside[:, :, None], (*sides, lanes)))
    totals = load(total_ref.at[part, head], inside)
    seen = visible_pairs(_position(query_position_ref, row), own_position_ref[row, 0], sliding_window=sliding_window)
    if takes_maximum(logits_soft_cap, query_ref.dtype):
        score = jnp.where(seen, score, lowest)
        largest = load(largest_ref.at[part, head], inside, lowest)
        overall = jnp.maximum(largest.max(0), score)
        decay = jnp.exp(largest - overall[None])
        sums, totals, score = sums * decay[:, :, None], totals * decay, score - overall
    weight = jnp.where(seen, jnp.exp(score), 0)
    total = totals.sum(0) + weight
    out = sums.sum(0) + weight[:, None] * own_value_ref[...].astype(accumulator)[None]
    out = out / jnp.where(total == 0, 1, total)[:, None]
    plgpu.store(out_ref.at[head, _masked_slice(lanes)], out.astype(out_ref.dtype), mask=of_heads(lanes))
