"""Forward pass of local attention in Triton-Pallas: one program per block of queries of one key/value head."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from zoo.kernels.attention.inputs import AttentionInputs
from zoo.kernels.local_attention.band import key_ranges, pad_positions
from zoo.kernels.local_attention.gpu_common import (
    Options,
    TileLayout,
    accumulator_dtype,
    for_each_block,
    key_places,
    log_weights,
    product,
    query_places,
    takes_maximum,
    tile_layout,
    tile_mask,
)
from zoo.kernels.local_attention.gpu_tiles import Pass, compiler_params, has_tile

_LOWEST = -1e30
"""Running maximum of a row that has seen nothing: finite, so that its difference from -inf is no NaN."""


def forward(inputs: AttentionInputs, options: Options) -> tuple[Float[Array, "b t n h"], Float[Array, "b t n"]]:
    """(out, lse): lse is the base-2 logarithm of the sum of exp(score), +inf for a query that sees nothing."""
    batch, queries, num_heads, head_dim = inputs.query.shape
    direction: Pass = "forward"
    if takes_maximum(options, inputs.query.dtype) and has_tile("forward_with_maximum", head_dim, inputs.query.dtype):
        direction = "forward_with_maximum"
    layout = tile_layout(direction, inputs, options)
    positions = pad_positions(inputs, layout.band)
    rows = batch * queries * num_heads
    out, lse = pl.pallas_call(
        partial(local_attention_forward, layout=layout, options=options),
        grid=(layout.band.query_blocks, layout.num_kv_heads * layout.subgroups, batch),
        out_shape=(
            jax.ShapeDtypeStruct((rows, head_dim), inputs.query.dtype),
            jax.ShapeDtypeStruct((rows,), accumulator_dtype(inputs.query.dtype)),
        ),
        compiler_params=compiler_params(layout.tile),
        interpret=options.interpret,
        name="local_attention_forward",
    )(
        inputs.query.reshape(rows, head_dim),
        inputs.key.reshape(-1, head_dim),
        inputs.value.reshape(-1, head_dim),
        positions,
        key_ranges(layout.band, positions),
    )
    return out.reshape(inputs.query.shape), lse.reshape(batch, queries, num_heads)


def local_attention_forward(
    query_ref, key_ref, value_ref, positions, ranges, out_ref, lse_ref, *, layout: TileLayout, options: Options
):
    """The kernel. Its function name is what profilers and ptxas show."""
    block, batch = pl.program_id(0), pl.program_id(2)
    kv_head, subgroup = layout.split_heads(pl.program_id(1))
    dtype = query_ref.dtype
    accumulator = accumulator_dtype(dtype)
    query_rows, query_index, _ = layout.query_rows(batch, kv_head, subgroup, block)
    query = query_ref[query_rows, :]
    queries = query_places(positions, batch, query_index).along(0)
    online = takes_maximum(options, dtype)

    def step(key_block, carry, masked):
        total, weighted, largest = carry
        key_rows, _, padded = layout.key_rows(batch, kv_head, key_block)
        logs, _ = log_weights(product(query, key_ref[key_rows, :], (1, 1)), options, dtype)
        if masked:
            keys = key_places(positions, batch, padded).along(1)
            logs = jnp.where(tile_mask(queries, keys, options), logs, -jnp.inf)
        if online:
            previous, largest = largest, jnp.maximum(largest, logs.max(-1))
            shrink = jnp.exp2(previous - largest)
            total, weighted = total * shrink, weighted * shrink[:, None]
            logs = logs - largest[:, None]
        weights = jnp.exp2(logs)
        total = total + weights.sum(-1)
        weighted = weighted + product(weights.astype(dtype), value_ref[key_rows, :], (1, 0))
        return total, weighted, largest

    total = jnp.zeros(query_rows.shape, accumulator)
    largest = jnp.full_like(total, _LOWEST) if online else None
    total, weighted, largest = for_each_block(
        ranges, batch, block, step, (total, jnp.zeros(query.shape, accumulator), largest)
    )
    seen = total > 0
    total = jnp.where(seen, total, 1)
    lse = jnp.log2(total) if largest is None else jnp.log2(total) + largest
    out_ref[query_rows, :] = (weighted / total[:, None]).astype(dtype)
    lse_ref[query_rows] = jnp.where(seen, lse, jnp.inf)
