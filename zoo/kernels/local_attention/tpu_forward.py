"""Forward pass of local attention on TPU: one program per block of queries walks along the band of its key blocks.

Grid (B, m, query blocks, key blocks of the band), the last axis sequential; m tiles of heads. The g query heads of a
tile share a key head and lie in one block [g, block_q, H]. Tiles that are visible throughout take no mask. Where the
soft-cap bounds the scores, softmax needs no maximum: on v6e a third of a tile's vector instructions.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from zoo.kernels.local_attention.band import Band, BlockRanges, PaddedPositions
from zoo.kernels.local_attention.tpu_tile import (
    LANES,
    NO_SCORE,
    Softmax,
    compiler_params,
    dot,
    lane_sums,
    position_specs,
    strips_of,
    tile_mask,
)


def forward(
    query: Float[Array, "b m g t h"],
    key: Float[Array, "b k s h"],
    value: Float[Array, "b k s h"],
    positions: PaddedPositions,
    ranges: BlockRanges,
    *,
    band: Band,
    softmax: Softmax,
    interpret,
) -> tuple[Float[Array, "b m g t h"], Float[Array, "b m g t"]]:
    """(out, lse): softmax-weighted values, and per query the logarithm of its sum of weights (+inf if it sees no key).

    The m / k tiles of g heads that follow each other share a key head. `ranges` are those of `key_ranges`.
    """
    batch, tiles, group, _, head_dim = query.shape
    share = tiles // key.shape[1]
    block_q, block_k = band.block_q, band.block_k
    query_blocks, most = band.query_blocks, band.max_key_blocks
    rows, accumulator = group * block_q, softmax.accumulator(query.dtype)

    def visited(b, i, first, last):
        """Row of the ranges, and the first and last key block that is read."""
        row = (b if ranges.first.shape[0] > 1 else 0) * query_blocks + i
        return jnp.minimum(first[row], last[row].clip(0)), last[row].clip(0)

    def query_block(b, h, i, j, *_):
        return b, h, 0, i, 0

    def key_block(b, h, i, j, first, last, *_):
        start, stop = visited(b, i, first, last)
        return b, h // share, jnp.minimum(start + j, stop), 0

    def key_index(b, h, i, j, *scalars):
        return key_block(b, h, i, j, *scalars)[2]

    arrays, specs = position_specs(positions, block_q, block_k, lambda b, h, i, j, *_: i, key_index)
    tile = pl.BlockSpec((None, None, group, block_q, head_dim), query_block)
    keys = pl.BlockSpec((None, None, block_k, head_dim), key_block)
    pairs = batch * tiles * group * band.visited_tiles * block_q * block_k
    kernel = partial(_kernel, band=band, softmax=softmax, shared=ranges.first.shape[0] == 1, most=most)
    scratch = [pltpu.VMEM((rows, head_dim), accumulator), pltpu.VMEM((rows, LANES), accumulator)]
    if softmax.online(query.dtype):
        scratch.append(pltpu.VMEM((rows, LANES), accumulator))
    return pl.pallas_call(
        kernel,
        name="local_attention_forward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(batch, tiles, query_blocks, most),
            in_specs=[tile, keys, keys, *specs],
            out_specs=[
                tile,
                pl.BlockSpec((None, None, group, block_q), lambda b, h, i, j, *_: (b, h, 0, i)),
            ],
            scratch_shapes=scratch,
        ),
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct(query.shape[:-1], accumulator),
        ],
        compiler_params=compiler_params(("parallel", "parallel", "parallel", "arbitrary"), 64 * 2**20),
        cost_estimate=pl.CostEstimate(
            flops=4 * pairs * head_dim,
            transcendentals=(1 if softmax.cap is None else 2) * pairs,
            bytes_accessed=2 * query.size * query.dtype.itemsize
            + 2 * batch * tiles * band.visited_tiles * block_k * head_dim * key.dtype.itemsize,
        ),
        interpret=interpret,
    )(*(x.reshape(-1) for x in (ranges.first, ranges.last, ranges.first_full, ranges.last_full)),
      query, key, value, *arrays)  # fmt: skip


def _kernel(first, last, first_full, last_full, q_ref, k_ref, v_ref, *refs, band, softmax, shared, most):
    *position_refs, o_ref, lse_ref, acc_ref, sum_ref = refs[: len(refs) - softmax.online(q_ref.dtype)]
    max_ref = refs[-1] if softmax.online(q_ref.dtype) else None
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    row = (0 if shared else b) * band.query_blocks + i
    block = first[row] + j
    group, block_q, head_dim = q_ref.shape
    rows = group * block_q

    @pl.when(j == 0)
    def begin_row():
        acc_ref[...] = jnp.zeros_like(acc_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        if max_ref is not None:
            max_ref[...] = jnp.full_like(max_ref, NO_SCORE)

    def attend(masked: bool):
        key, value = k_ref[...], v_ref[...]
        mask = tile_mask(position_refs, band, queries_in_rows=True) if masked else None
        strips = strips_of(group, block_q)

        def products(head, start, size):
            return dot("rh,sh->rs", q_ref[head, start : start + size, :], key)

        # The matrix unit works on the products of the next strip while the vector units turn these into weights.
        ahead = products(*strips[0])
        for (head, start, size), following in zip(strips, [*strips[1:], None]):
            scores = softmax.scores(ahead)
            if following is not None:
                ahead = products(*following)
            rows = slice(head * block_q + start, head * block_q + start + size)
            seen = None if mask is None else mask[start : start + size]
            if max_ref is None:
                weights = jnp.exp(scores)
                if seen is not None:
                    weights = jnp.where(seen, weights, 0)
                sum_ref[rows] += lane_sums(weights)
                acc_ref[rows] += dot("rs,sh->rh", weights.astype(value.dtype), value)
                continue
            if seen is not None:
                scores = jnp.where(seen, scores, 10 * NO_SCORE)
            before = max_ref[rows]
            now = jnp.maximum(before, scores.max(1, keepdims=True))
            kept = jnp.exp(before - now)
            weights = jnp.exp(scores - now[:, :1])
            sum_ref[rows] = kept * sum_ref[rows] + lane_sums(weights)
            acc_ref[rows] = kept[:, :1] * acc_ref[rows] + dot("rs,sh->rh", weights.astype(value.dtype), value)
            max_ref[rows] = now

    full = (block >= first_full[row]) & (block <= last_full[row])

    @pl.when((block <= last[row]) & full)
    def attend_without_mask():
        attend(masked=False)

    @pl.when((block <= last[row]) & ~full)
    def attend_with_mask():
        attend(masked=True)

    @pl.when(j == most - 1)
    def end_row():
        total = sum_ref[...].sum(1, keepdims=True)
        safe = jnp.where(total == 0, 1, total)
        o_ref[...] = (acc_ref[...] / safe).astype(o_ref.dtype).reshape(o_ref.shape)
        lse = jnp.log(safe) if max_ref is None else jnp.log(safe) + max_ref[:, :1]
        lse = jnp.where(total == 0, jnp.inf, lse)
        lse = jnp.broadcast_to(lse, (rows, LANES)).T[:1]
        for head in range(group):
            lse_ref[head : head + 1, :] = lse[:, head * block_q : (head + 1) * block_q]
