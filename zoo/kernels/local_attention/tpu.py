"""Local attention on TPU (Mosaic): padding, layouts and the gradient rule around the forward and backward kernels."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from zoo.kernels.attention.inputs import AttentionInputs
from zoo.kernels.local_attention.band import Band, PaddedPositions, key_ranges, pad_positions, query_ranges
from zoo.kernels.local_attention.tpu_backward import backward, vmem_bytes
from zoo.kernels.local_attention.tpu_forward import forward
from zoo.kernels.local_attention.tpu_tile import LANES, Softmax, vmem_capacity
from zoo.kernels.platform import target_platform

BLOCKS = (512, 256, 128)
"""Queries and keys per block, best first. At a window of 4,096 blocks of 512 waste an eighth of the work, blocks of
1,024 a quarter; smaller ones pay the cost of a step more often."""

HEADS_PER_TILE = (2, 1)
"""Query heads of a group that share a tile, best first; more would only lengthen the program and its compilation."""


def local_attention_tpu(
    inputs: AttentionInputs, *, block: int | None = None, interpret: bool | pltpu.InterpretParams | None = None
) -> Float[Array, "b t n h"]:
    """The function of `reference_attention` for a layer with a window, differentiable, in memory linear in T.

    Args:
      block: queries and keys per block, a multiple of 128 on hardware; default 512, less for short inputs or windows.
      interpret: run without a TPU; default: wherever the program is not compiled for one.

    Raises:
      NotImplementedError: no window; positions without the promise of order; float16 (and on hardware float64); a
        window whose query gradients do not fit into VMEM.
    """
    if interpret is None:
        interpret = target_platform() != "tpu"
    _check(inputs, hardware=interpret is False)
    batch, queries, heads, head_dim = inputs.query.shape
    block, group = _tile(inputs, block)
    band = _band(inputs, block)
    inputs = _fill_keys(inputs, band.keys - inputs.key.shape[1])
    positions = pad_positions(inputs, band)

    def to_kernel(x, blocks, *tile):
        x = jnp.pad(x, ((0, 0), (0, blocks * block - x.shape[1]), (0, 0), (0, 0)))
        x = x.reshape(*x.shape[:2], -1, *tile, head_dim)
        return jnp.moveaxis(x, 1, -2)

    attend = partial(_attend, band, Softmax(inputs.scale, inputs.logits_soft_cap), interpret)
    out = attend(
        to_kernel(inputs.query, band.query_blocks, group),
        to_kernel(inputs.key, band.key_blocks),
        to_kernel(inputs.value, band.key_blocks),
        positions,
    )
    return jnp.moveaxis(out, -2, 1)[:, :queries].reshape(batch, queries, heads, head_dim)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(
    band: Band,
    softmax: Softmax,
    interpret,
    query: Float[Array, "b m g t h"],
    key: Float[Array, "b k s h"],
    value: Float[Array, "b k s h"],
    positions: PaddedPositions,
) -> Float[Array, "b m g t h"]:
    """Attention of m tiles of g heads each; m is a multiple of the k key heads."""
    return _forward(band, softmax, interpret, query, key, value, positions)[0]


def _forward(band, softmax, interpret, query, key, value, positions):
    ranges = key_ranges(band, positions)
    out, lse = forward(query, key, value, positions, ranges, band=band, softmax=softmax, interpret=interpret)
    return out, (query, key, value, positions, out, lse)


def _backward(band, softmax, interpret, residuals, out_gradient):
    query, key, value, positions, out, lse = residuals
    delta = (out_gradient.astype(lse.dtype) * out.astype(lse.dtype)).sum(-1)
    ranges = query_ranges(band, positions)
    gradients = backward(
        query, key, value, out_gradient, lse, delta, positions, ranges, band=band, softmax=softmax, interpret=interpret
    )
    return *gradients, None


_attend.defvjp(_forward, _backward)


def _check(inputs: AttentionInputs, *, hardware: bool) -> None:
    dtype = inputs.query.dtype
    lacking = {
        "layers without a sliding window": inputs.sliding_window is None,
        "positions that are not promised to be in order (ordered_positions)": not inputs.ordered_positions,
        "float16": dtype == jnp.float16,
        "float64 outside of interpret mode": dtype == jnp.float64 and hardware,
    }
    for feature, wanted in lacking.items():
        if wanted:
            raise NotImplementedError(f"attention implementation 'pallas_tpu' does not support {feature}")


def _band(inputs: AttentionInputs, block: int) -> Band:
    """The band with S - T rounded up to a multiple of `block`."""
    queries, keys = inputs.query.shape[1], inputs.key.shape[1]
    keys += (queries - keys) % block
    return Band(queries, keys, block, block, inputs.causal, inputs.sliding_window, ordered=True)


def _tile(inputs: AttentionInputs, block: int | None) -> tuple[int, int]:
    """(block, heads per tile): the largest whose ring of query gradients fits into VMEM."""
    queries, heads, head_dim = inputs.query.shape[1:]
    group, dtype, capacity = heads // inputs.key.shape[2], inputs.query.dtype, vmem_capacity()
    # Larger blocks than the window, or than the queries, would mostly hold masked scores.
    most = max(min(queries, inputs.sliding_window or queries), LANES)
    blocks = [block] if block else [size for size in BLOCKS if size < most + LANES]
    for size in blocks:
        band = _band(inputs, size)
        for count in HEADS_PER_TILE:
            if group % count == 0 and vmem_bytes(band, count, head_dim, dtype) <= capacity:
                return size, count
    raise NotImplementedError(
        f"attention implementation 'pallas_tpu' does not support a sliding window of {inputs.sliding_window} with head "
        f"size {head_dim} in {dtype}: its gradient needs {vmem_bytes(band, 1, head_dim, dtype) / 2**20:.0f} MiB of "
        f"VMEM, of which this chip has {capacity / 2**20:.0f}; use implementation 'splash' or 'xla'"
    )


def _fill_keys(inputs: AttentionInputs, count: int) -> AttentionInputs:
    """The same attention with `count` more keys in front, so far away that no window reaches them."""
    if count == 0:
        return inputs

    def pad(x, value=0):
        return None if x is None else jnp.pad(x, ((0, 0), (count, 0), *[(0, 0)] * (x.ndim - 2)), constant_values=value)

    return replace(
        inputs,
        key=pad(inputs.key),
        value=pad(inputs.value),
        key_positions=pad(inputs.key_positions, -(2**30)),
        key_segment_ids=pad(inputs.key_segment_ids, -1),
    )
