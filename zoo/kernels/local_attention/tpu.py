"""Local attention on TPU (Mosaic): padding, layouts and the gradient rule around the forward and backward kernels."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from zoo.kernels.attention.inputs import RESIDUALS, AttentionInputs
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
    call = _call(inputs, block, interpret)
    attend = partial(_attend, call.band, call.softmax, call.interpret)
    return call.from_kernel(attend(*call.arrays, call.positions), inputs.query.shape)


NO_WINDOW = 2**30
"""A window that reaches every position."""


def part_forward(inputs: AttentionInputs) -> tuple[Float[Array, "b t n h"], Float[Array, "b t n"]]:
    """(out, lse) for keys that are a part of what the queries see, with or without a window: lse is the logarithm of
    the sum of exp(score), +inf for a query that sees none of them."""
    call = _part_call(inputs)
    out, (*_, lse) = _forward(call.band, call.softmax, call.interpret, *call.arrays, call.positions)
    shape = inputs.query.shape
    return call.from_kernel(out, shape), call.from_kernel(lse[..., None], (*shape[:3], 1))[..., 0]


def part_backward(
    inputs: AttentionInputs,
    lse: Float[Array, "b t n"],
    delta: Float[Array, "b t n"],
    out_gradient: Float[Array, "b t n h"],
) -> tuple[Float[Array, "b t n h"], Float[Array, "b s k h"], Float[Array, "b s k h"]]:
    """(dq, dk, dv) for such keys, given lse and delta = sum(out * out_gradient) of all of them."""
    call = _part_call(inputs)
    length = call.band.query_blocks * call.band.block_q
    query, key, value = call.arrays
    dq, dk, dv = backward(
        query,
        key,
        value,
        _to_kernel(out_gradient, length, call.group),
        _to_kernel(lse[..., None], length, call.group)[..., 0],
        _to_kernel(delta[..., None], length, call.group)[..., 0],
        call.positions,
        query_ranges(call.band, call.positions),
        band=call.band,
        softmax=call.softmax,
        interpret=call.interpret,
    )
    added = call.band.keys - inputs.key.shape[1]
    dk, dv = (jnp.moveaxis(x, -2, 1)[:, added : call.band.keys] for x in (dk, dv))
    return call.from_kernel(dq, inputs.query.shape), dk, dv


def _part_call(inputs: AttentionInputs) -> "_Call":
    interpret = target_platform() != "tpu"
    if inputs.sliding_window is None:
        inputs = replace(inputs, sliding_window=NO_WINDOW)
    _check(inputs, hardware=not interpret)
    return _call(inputs, None, interpret)


@dataclass(frozen=True)
class _Call:
    """Arguments of the kernels, padded to whole blocks and laid out as they take them."""

    band: Band
    softmax: Softmax
    interpret: bool | pltpu.InterpretParams
    group: int
    """Query heads of a tile."""
    positions: PaddedPositions
    arrays: tuple[Array, Array, Array]
    """Query, key and value."""

    def from_kernel(self, x: Array, shape: tuple[int, ...]) -> Float[Array, "b t n h"]:
        """An array of queries as the caller knows it."""
        return jnp.moveaxis(x, -2, 1)[:, : shape[1]].reshape(shape)


def _to_kernel(x: Float[Array, "b t n h"], length: int, *tile: int) -> Array:
    """[B, heads / tile, *tile, length, H], padded with zeros."""
    x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, *tile, x.shape[-1]), 1, -2)


def _call(inputs: AttentionInputs, block: int | None, interpret) -> _Call:
    block, group = _tile(inputs, block)
    band = _band(inputs, block)
    inputs = _fill_keys(inputs, band.keys - inputs.key.shape[1])
    keys = band.key_blocks * band.block_k
    arrays = (
        _to_kernel(inputs.query, band.query_blocks * band.block_q, group),
        _to_kernel(inputs.key, keys),
        _to_kernel(inputs.value, keys),
    )
    softmax = Softmax(inputs.scale, inputs.logits_soft_cap)
    return _Call(band, softmax, interpret, group, pad_positions(inputs, band), arrays)


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
    out, lse = checkpoint_name(out, RESIDUALS), checkpoint_name(lse, RESIDUALS)
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


def takes_all_keys(inputs: AttentionInputs) -> bool:
    """Whether a layer without a window can be computed as one with a window of everything: order is promised, and the
    gradients of all queries fit into VMEM."""
    if not (inputs.ordered_positions and inputs.causal) or inputs.query.dtype == jnp.float16:
        return False
    try:
        _tile(replace(inputs, sliding_window=NO_WINDOW), None)
    except NotImplementedError:
        return False
    return True


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
