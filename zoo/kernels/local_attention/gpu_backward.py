"""Backward pass of local attention in Triton-Pallas: a kernel for the queries' gradient, one or two for the keys'.

With p = softmax weights, o = p v and g the gradient of o: dv = p' g, and the gradient of a capped score is
p (g v' - sum(g o)), times 1 - tanh^2 for the product q k'. Weights are recomputed from the saved logarithm of their
sum: memory grows with T only.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from zoo.kernels.attention.inputs import AttentionInputs
from zoo.kernels.local_attention.band import key_ranges, pad_positions, query_ranges
from zoo.kernels.local_attention.gpu_common import (
    Options,
    TileLayout,
    accumulator_dtype,
    for_each_block,
    key_places,
    log_weights,
    product,
    query_places,
    tile_layout,
    tile_mask,
)
from zoo.kernels.local_attention.gpu_tiles import Pass, compiler_params, has_tile


def backward(
    inputs: AttentionInputs,
    options: Options,
    lse: Float[Array, "b t n"],
    mean: Float[Array, "b t n"],
    out_gradient: Float[Array, "b t n h"],
) -> tuple[Float[Array, "b t n h"], Float[Array, "b s k h"], Float[Array, "b s k h"]]:
    """Gradients of query, key and value; `lse` as of `forward`, `mean` = sum(out * out_gradient) over a head."""
    batch, queries, num_heads, head_dim = inputs.query.shape
    arrays = (
        inputs.query.reshape(-1, head_dim),
        inputs.key.reshape(-1, head_dim),
        inputs.value.reshape(-1, head_dim),
        out_gradient.reshape(-1, head_dim),
        lse.reshape(-1),
        mean.reshape(-1),
    )
    layout = tile_layout("query_gradient", inputs, options)
    positions = pad_positions(inputs, layout.band)
    query_gradient = pl.pallas_call(
        partial(local_attention_query_gradient, layout=layout, options=options),
        grid=(layout.band.query_blocks, layout.num_kv_heads * layout.subgroups, batch),
        out_shape=jax.ShapeDtypeStruct(arrays[0].shape, inputs.query.dtype),
        compiler_params=compiler_params(layout.tile),
        interpret=options.interpret,
        name="local_attention_query_gradient",
    )(*arrays, positions, key_ranges(layout.band, positions))

    of_keys: dict[str, Array] = {}
    for direction, kernel in _KEY_KERNELS.items():
        if not has_tile(direction, head_dim, inputs.query.dtype):
            continue
        layout = tile_layout(direction, inputs, options)
        positions = pad_positions(inputs, layout.band)
        wanted = _WANTED[direction]
        gradients = pl.pallas_call(
            partial(kernel, layout=layout, options=options),
            grid=(layout.band.key_blocks, layout.num_kv_heads, batch),
            out_shape=[jax.ShapeDtypeStruct(arrays[1].shape, inputs.key.dtype)] * len(wanted),
            compiler_params=compiler_params(layout.tile),
            interpret=options.interpret,
            name=kernel.__name__,
        )(*arrays, positions, query_ranges(layout.band, positions))
        of_keys |= dict(zip(wanted, gradients))
    return (
        query_gradient.reshape(inputs.query.shape),
        of_keys["key"].reshape(inputs.key.shape),
        of_keys["value"].reshape(inputs.value.shape),
    )


def local_attention_query_gradient(
    query_ref,
    key_ref,
    value_ref,
    out_gradient_ref,
    lse_ref,
    mean_ref,
    positions,
    ranges,
    query_gradient_ref,
    *,
    layout: TileLayout,
    options: Options,
):
    """One program per block of queries, over the blocks of keys."""
    block, batch = pl.program_id(0), pl.program_id(2)
    kv_head, subgroup = layout.split_heads(pl.program_id(1))
    dtype = query_ref.dtype
    rows, index, _ = layout.query_rows(batch, kv_head, subgroup, block)
    query, out_gradient = query_ref[rows, :], out_gradient_ref[rows, :]
    lse, mean = lse_ref[rows][:, None], mean_ref[rows][:, None]
    queries = query_places(positions, batch, index).along(0)

    def step(key_block, gradient, masked):
        key_rows, _, padded = layout.key_rows(batch, kv_head, key_block)
        key = key_ref[key_rows, :]
        logs, slope = log_weights(product(query, key, (1, 1)), options, dtype)
        if masked:
            keys = key_places(positions, batch, padded).along(1)
            logs = jnp.where(tile_mask(queries, keys, options), logs, -jnp.inf)
        score_gradient = product(out_gradient, value_ref[key_rows, :], (1, 1)) - mean
        score_gradient = score_gradient * jnp.exp2(logs - lse)
        if slope is not None:
            score_gradient = score_gradient * slope
        return gradient + product(score_gradient.astype(dtype), key, (1, 0))

    gradient = for_each_block(ranges, batch, block, step, jnp.zeros(query.shape, accumulator_dtype(dtype)))
    query_gradient_ref[rows, :] = (gradient * options.scale).astype(dtype)


def _key_gradients(wanted: tuple[str, ...], *refs, layout: TileLayout, options: Options):
    """One program per block of keys, over the blocks of queries of all heads of the group; tiles are transposed."""
    query_ref, key_ref, value_ref, out_gradient_ref, lse_ref, mean_ref, positions, ranges, *gradient_refs = refs
    block, kv_head, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    dtype = query_ref.dtype
    rows, index, _ = layout.key_rows(batch, kv_head, block)
    key = key_ref[rows, :]
    value = value_ref[rows, :] if "key" in wanted else None
    keys = key_places(positions, batch, index).along(0)

    def step(subgroup, query_block, gradients, masked):
        query_rows, query_index, real = layout.query_rows(batch, kv_head, subgroup, query_block)
        query, out_gradient = query_ref[query_rows, :], out_gradient_ref[query_rows, :]
        lse = lse_ref[query_rows]
        if real is not None:
            # A row that repeats another one must not count twice.
            lse = jnp.where(real, lse, jnp.inf)
        logs, slope = log_weights(product(key, query, (1, 1)), options, dtype)
        if masked:
            queries = query_places(positions, batch, query_index).along(1)
            logs = jnp.where(tile_mask(queries, keys, options), logs, -jnp.inf)
        weights = jnp.exp2(logs - lse[None, :])
        more = {}
        if "value" in wanted:
            more["value"] = product(weights.astype(dtype), out_gradient, (1, 0))
        if value is not None:
            score_gradient = weights * (product(value, out_gradient, (1, 1)) - mean_ref[query_rows][None, :])
            if slope is not None:
                score_gradient = score_gradient * slope
            more["key"] = product(score_gradient.astype(dtype), query, (1, 0))
        return {name: gradients[name] + more[name] for name in wanted}

    def of_subgroup(subgroup, gradients):
        return for_each_block(ranges, batch, block, partial(step, subgroup), gradients)

    gradients = {name: jnp.zeros(key.shape, accumulator_dtype(dtype)) for name in wanted}
    if layout.subgroups == 1:
        gradients = of_subgroup(jnp.int32(0), gradients)
    else:
        gradients = jax.lax.fori_loop(jnp.int32(0), jnp.int32(layout.subgroups), of_subgroup, gradients)
    for name, gradient_ref in zip(wanted, gradient_refs):
        factor = options.scale if name == "key" else 1
        gradient_ref[rows, :] = (gradients[name] * factor).astype(dtype)


# Profilers and ptxas show the names of these functions.


def local_attention_key_gradient(*refs, **static):
    """The keys' gradient alone: the accumulators of both do not fit the registers when heads are large."""
    _key_gradients(("key",), *refs, **static)


def local_attention_value_gradient(*refs, **static):
    """The values' gradient alone."""
    _key_gradients(("value",), *refs, **static)


def local_attention_key_value_gradient(*refs, **static):
    """Both, with one computation of the weights."""
    _key_gradients(("key", "value"), *refs, **static)


_KEY_KERNELS: dict[Pass, Callable] = {
    "key_gradient": local_attention_key_gradient,
    "value_gradient": local_attention_value_gradient,
    "key_value_gradient": local_attention_key_value_gradient,
}
_WANTED: dict[Pass, tuple[str, ...]] = {
    "key_gradient": ("key",),
    "value_gradient": ("value",),
    "key_value_gradient": ("key", "value"),
}
