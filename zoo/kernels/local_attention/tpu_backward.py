"""Gradients of local attention on TPU in one pass over the band: five matrix products per tile and memory linear in T.

Grid (B, m, key blocks, query blocks of the band), the last two axes sequential; m tiles of heads. A key block's
gradients are summed while its queries pass by. A query block meets its keys in as many consecutive key blocks as the
band is wide, so its gradient waits in a ring of that many blocks in VMEM and leaves with the last of them.

With p = softmax weights, t = tanh(scale q.k / c), delta = sum_h dO * O:
    dv = p^T dO;   ds = p * (dO v^T - delta) * (1 - t^2);   dk = scale * ds^T q;   dq = scale * ds k
All tiles are held transposed [block_k, block_q], so that lse and delta, which lie along lanes, are added to rows.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from zoo.kernels.local_attention.band import Band, BlockRanges, PaddedPositions
from zoo.kernels.local_attention.tpu_tile import (
    Softmax,
    bounded,
    compiler_params,
    dot,
    position_specs,
    strips_of,
    tile_mask,
)


def backward(
    query: Float[Array, "b m g t h"],
    key: Float[Array, "b k s h"],
    value: Float[Array, "b k s h"],
    out_gradient: Float[Array, "b m g t h"],
    lse: Float[Array, "b m g t"],
    delta: Float[Array, "b m g t"],
    positions: PaddedPositions,
    ranges: BlockRanges,
    *,
    band: Band,
    softmax: Softmax,
    interpret,
) -> tuple[Float[Array, "b m g t h"], Float[Array, "b k s h"], Float[Array, "b k s h"]]:
    """(dq, dk, dv) in the dtypes of query, key and value. `ranges` are those of `query_ranges`.

    Blocks of queries and keys have one size, and S - T is a multiple of it: the caller pads.
    """
    batch, tiles, group, _, head_dim = query.shape
    share = tiles // key.shape[1]
    block, accumulator = band.block_k, softmax.accumulator(query.dtype)
    behind, steps = _ring(band)
    last_block = band.query_blocks - 1
    # Key blocks beyond the last exist for the loop only: without causality the last queries leave the ring there.
    key_steps = max(band.key_blocks, band.query_blocks + behind)

    def query_index(b, h, kb, j, first, last, *_):
        """The query block of a step; where nothing is to be done, one that is in VMEM anyway."""
        row = (b if ranges.first.shape[0] > 1 else 0) * band.key_blocks + jnp.minimum(kb, band.key_blocks - 1)
        return jnp.clip(jnp.clip(kb - behind + j, first[row], jnp.maximum(last[row], first[row])), 0, last_block)

    def key_index(b, h, kb, j, *_):
        return jnp.minimum(kb, band.key_blocks - 1)

    def queries(b, h, kb, j, *scalars):
        return b, h, 0, query_index(b, h, kb, j, *scalars), 0

    def statistics(b, h, kb, j, *scalars):
        return b, h, 0, query_index(b, h, kb, j, *scalars)

    def keys(b, h, kb, j, *_):
        return b, h // share, key_index(b, h, kb, j), 0

    def key_gradients(b, h, kb, j, *_):
        return b, h, key_index(b, h, kb, j), 0

    def finished(b, h, kb, j, *_):
        return b, h, 0, jnp.clip(kb - behind, 0, last_block), 0

    arrays, specs = position_specs(positions, block, block, query_index, key_index)
    query_spec = pl.BlockSpec((None, None, group, block, head_dim), queries)
    key_spec = pl.BlockSpec((None, None, block, head_dim), keys)
    row_spec = pl.BlockSpec((None, None, group, block), statistics)
    gradient_spec = pl.BlockSpec((None, None, block, head_dim), key_gradients)
    # Several tiles that share a key head each give a part of its gradient.
    part = key.dtype if share == 1 else accumulator
    parts = jax.ShapeDtypeStruct((batch, tiles, *key.shape[2:]), part)
    visited = batch * tiles * group * band.visited_tiles
    item = query.dtype.itemsize
    dq, dk, dv = pl.pallas_call(
        partial(_kernel, band=band, softmax=softmax, shared=ranges.first.shape[0] == 1),
        name="local_attention_backward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(batch, tiles, key_steps, steps),
            in_specs=[query_spec, key_spec, key_spec, query_spec, row_spec, row_spec, *specs],
            out_specs=[pl.BlockSpec((None, None, group, block, head_dim), finished), gradient_spec, gradient_spec],
            scratch_shapes=[
                pltpu.VMEM((steps, group, block, head_dim), accumulator),
                pltpu.VMEM((block, head_dim), accumulator),
                pltpu.VMEM((block, head_dim), accumulator),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(query.shape, query.dtype), parts, parts],
        compiler_params=compiler_params(
            ("parallel", "parallel", "arbitrary", "arbitrary"), 2 * vmem_bytes(band, group, head_dim, query.dtype)
        ),
        cost_estimate=pl.CostEstimate(
            flops=10 * visited * block * block * head_dim,
            transcendentals=(1 if softmax.cap is None else 2) * visited * block * block,
            bytes_accessed=item * (visited * 2 * block * head_dim + query.size + 4 * key.size),
        ),
        interpret=interpret,
    )(
        *(x.reshape(-1) for x in (ranges.first, ranges.last, ranges.first_full, ranges.last_full)),
        query, key, value, out_gradient, lse, delta, *arrays,
    )  # fmt: skip
    if share > 1:
        dk, dv = (x.reshape(*key.shape[:2], share, *key.shape[2:]).sum(2).astype(key.dtype) for x in (dk, dv))
    return dq, dk, dv


def vmem_bytes(band: Band, group: int, head_dim: int, dtype) -> int:
    """About the VMEM that the kernel takes: the ring, two buffers of every block, and the values of a strip."""
    dtype, wide = jnp.dtype(dtype), jnp.promote_types(dtype, jnp.float32).itemsize
    tile = band.block_q * max(head_dim, 128)
    blocks = 2 * (3 * group + 4) * tile * dtype.itemsize
    sums = (_ring(band)[1] * group + 2) * tile * wide
    values = 8 * band.block_k * min(band.block_q, 256) * wide
    return sums + blocks + values


def _ring(band: Band) -> tuple[int, int]:
    """(key blocks after its own that a query block waits for, query blocks that meet one key block)."""
    size = band.block_k
    if band.block_q != size or (band.keys - band.queries) % size or band.reach_back is None:
        raise ValueError(f"the ring of query gradients needs equal, aligned blocks and an ordered window; got {band}")
    back, ahead = -(-band.reach_back // size), -(-(band.reach_ahead or 0) // size)
    return (band.keys - band.queries) // size + ahead, ahead + back + 1


def _kernel(first, last, first_full, last_full, q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, *refs, band, softmax,
            shared):  # fmt: skip
    *position_refs, dq_ref, dk_ref, dv_ref, ring_ref, dk_sum, dv_sum = refs
    behind, steps = _ring(band)
    b, kb, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    row = (0 if shared else b) * band.key_blocks + jnp.minimum(kb, band.key_blocks - 1)
    i = kb - behind + j
    slot = jax.lax.rem(i + steps * (behind + 1), jnp.int32(steps))
    group, block, _ = q_ref.shape

    @pl.when(j == 0)
    def begin_keys():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    # A query block enters the ring with the first key block that it may see.
    @pl.when((j == steps - 1) | (kb == 0))
    def enter_ring():
        ring_ref[slot] = jnp.zeros(ring_ref.shape[1:], ring_ref.dtype)

    def accumulate(masked: bool):
        key, value = k_ref[...], v_ref[...]
        mask = tile_mask(position_refs, band, queries_in_rows=False) if masked else None
        for head, start, size in strips_of(group, block):
            rows = slice(start, start + size)
            query, gradient = q_ref[head, rows, :], do_ref[head, rows, :]
            products = dot("sh,rh->sr", key, query)
            if softmax.cap is None:
                weights = jnp.exp(softmax.scale * products - lse_ref[head : head + 1, rows])
            else:
                tanh = bounded(products, softmax.scale / softmax.cap)
                weights = jnp.exp(softmax.cap * tanh - lse_ref[head : head + 1, rows])
            if mask is not None:
                weights = jnp.where(mask[:, rows], weights, 0)
            dv_sum[...] += dot("sr,rh->sh", weights.astype(value.dtype), gradient)
            change = weights * (dot("sh,rh->sr", value, gradient) - delta_ref[head : head + 1, rows])
            if softmax.cap is not None:
                change *= 1 - tanh * tanh
            change = change.astype(query.dtype)
            dk_sum[...] += dot("sr,rh->sh", change, query)
            ring_ref[slot, head, rows, :] += dot("sr,sh->rh", change, key)

    active = (kb < band.key_blocks) & (i >= first[row]) & (i <= last[row])
    full = (i >= first_full[row]) & (i <= last_full[row])

    @pl.when(active & full)
    def accumulate_without_mask():
        accumulate(masked=False)

    @pl.when(active & ~full)
    def accumulate_with_mask():
        accumulate(masked=True)

    @pl.when((j == 0) & (i >= 0))
    def leave_ring():
        dq_ref[...] = (softmax.scale * ring_ref[slot]).astype(dq_ref.dtype)

    @pl.when((j == steps - 1) & (kb < band.key_blocks))
    def end_keys():
        dk_ref[...] = (softmax.scale * dk_sum[...]).astype(dk_ref.dtype)
        dv_ref[...] = dv_sum[...].astype(dv_ref.dtype)
