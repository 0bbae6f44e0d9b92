"""Weights to 4 or 8 bits: which scale each group of them gets.

4 bits reach from -8 to 7, so a scale may be negative: the largest element of a group then falls on the end that has one
step more. The scale is the one with the smallest squared error among `_FACTORS` times the scale of the largest element
on either end, refined by least squares; what is compared is the error with the scale as it is stored. 8 bits: the
largest element falls on 127.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from zoo.errors import UserError
from zoo.nn.packed import PackedWeight, packed_shapes

ScaleDtype = Literal["float16", "bfloat16", "float32"]

_FACTORS = np.arange(0.66, 1.09, 0.03, dtype=np.float32)
"""A scale below that of the largest element cuts it, and brings the others closer to a step."""

_CHUNK_GROUPS, _FEW_GROUPS = 1 << 13, 1 << 9
"""Groups of a call of the compiled function, which so has two shapes for all weights: large ones and small ones."""


def quantise(
    weight: Shaped[np.ndarray, "..."],
    bits: int,
    *,
    num_contracted: int,
    is_table: bool = False,
    group: int = 32,
    scale_dtype: ScaleDtype = "float16",
    search: bool = True,
) -> PackedWeight:
    """The packed form of a weight, on the host.

    Args:
        weight: [*contracted, *out], or [*out, *contracted] of a table.
        bits: 4 or 8.
        num_contracted: number of axes that products contract.
        is_table: which of the two shapes it has.
        group: consecutive elements along the contracted axes that share a scale.
        scale_dtype: dtype of the scales; GGUF has float16.
        search: look for the best 4-bit scale; else take that of the largest element.

    Raises:
        UserError: groups do not divide the contracted axes; a scale is too large for its dtype.
    """
    split = weight.ndim - num_contracted if is_table else num_contracted
    first, last = weight.shape[:split], weight.shape[split:]
    contracted, out = (last, first) if is_table else (first, last)
    fan_in, fan_out = math.prod(contracted), math.prod(out)
    packed_shape, scales_shape = packed_shapes(fan_out, fan_in, bits, group)
    matrix = weight.reshape(fan_out, fan_in) if is_table else weight.reshape(fan_in, fan_out).T
    packed = np.empty(packed_shape, np.uint8 if bits == 4 else np.int8)
    scales = np.empty(scales_shape, jnp.dtype(scale_dtype))
    step = max(1, _CHUNK_GROUPS * group // fan_in)
    for start in range(0, fan_out, step):
        part = slice(start, min(start + step, fan_out))
        codes, scales[part] = _quantise_rows(np.asarray(matrix[part], np.float32), bits, group, scale_dtype, search)
        half = fan_in // 2
        packed[part] = codes[:, :half] | codes[:, half:] << 4 if bits == 4 else codes
    if not np.isfinite(scales.astype(np.float32)).all():
        raise UserError(f"weights are too large for {scale_dtype} scales")
    return PackedWeight(packed, scales, bits, group, contracted, out, is_table)  # type: ignore[arg-type]


def _quantise_rows(rows: Float[np.ndarray, "o k"], bits: int, group: int, scale_dtype: ScaleDtype, search: bool):
    """(codes [O, K]: q + 8 as uint8 or q as int8, scales [O, K / group]) of some rows."""
    grouped = rows.reshape(-1, group)
    codes, scales = np.empty(grouped.shape, np.uint8 if bits == 4 else np.int8), []
    size = _CHUNK_GROUPS if len(grouped) > 4 * _FEW_GROUPS else _FEW_GROUPS
    for start in range(0, len(grouped), size):
        part = grouped[start : start + size]
        filled = np.pad(part, ((0, size - len(part)), (0, 0)))
        new_codes, new_scales = _quantise_groups(filled, bits, scale_dtype, search)
        codes[start : start + size] = np.asarray(new_codes)[: len(part)]
        scales.append(np.asarray(new_scales)[: len(part)])
    return codes.reshape(rows.shape), np.concatenate(scales).reshape(len(rows), -1)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _quantise_groups(groups: Float[Array, "n g"], bits: int, scale_dtype: Any, search: bool):
    """(codes [N, g], scales [N]) of groups."""
    grouped = groups.T
    at = jnp.argmax(jnp.abs(grouped), axis=0)
    largest = jnp.take_along_axis(grouped, at[None], axis=0)[0]
    if bits == 8:
        scales = _stored(jnp.abs(largest) / 127, scale_dtype)
        codes = _steps(grouped, scales, 127, 127).astype(jnp.int8)
    else:
        scales = _stored(largest / -8, scale_dtype)
        if search:
            scales = _search(grouped, largest, scales, scale_dtype)
        codes = (_steps(grouped, scales, 8, 7) + 8).astype(jnp.uint8)
    return codes.T, scales.astype(scale_dtype)


def _search(grouped: Float[Array, "g n"], largest: Float[Array, "n"], scales: Float[Array, "n"], scale_dtype: Any):
    """The scale with the smallest squared error that was found for each group."""
    factors = jnp.concatenate([_FACTORS / -8, _FACTORS / 7])

    def better(best, scales):
        error, kept = best
        # Sums that are written out: XLA:CPU reduces 25 times slower (measured).
        new = sum(jnp.square(row - scales * _steps(row, scales, 8, 7)) for row in grouped)
        return jnp.minimum(error, new), jnp.where(new < error, scales, kept)

    def attempt(number, best):
        return better(best, _stored(largest * factors[number], scale_dtype))

    best = better((jnp.full(scales.shape, jnp.inf), scales), scales)
    best = jax.lax.fori_loop(0, len(factors), attempt, best)
    for _ in range(2):
        steps = [_steps(row, best[1], 8, 7) for row in grouped]
        fitted = sum(row * step for row, step in zip(grouped, steps, strict=True))
        best = better(best, _stored(fitted / jnp.maximum(sum(map(jnp.square, steps)), 1), scale_dtype))
    return best[1]


def _steps(weights: Float[Array, "*g n"], scales: Float[Array, "n"], lowest: int, highest: int) -> Float[Array, "*g n"]:
    """The nearest steps -lowest..highest; 0 where the scale is."""
    inverse = jnp.where(scales == 0, 0, 1 / jnp.where(scales == 0, 1, scales))
    return jnp.clip(jnp.round(weights * inverse), -lowest, highest)


def _stored(scales: Array, scale_dtype: Any) -> Array:
    """float32 values that `scale_dtype` has. XLA may leave out a conversion there and back."""
    known = jnp.finfo(scale_dtype)
    return jax.lax.reduce_precision(scales, known.nexp, known.nmant)
