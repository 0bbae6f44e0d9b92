"""Weights packed to 4 or 8 bits with a scale for each group, and products that never unpack more than a part of them.

    w[o, k] = scale[o, k // group] * q[o, k],   q in -8..7 (4 bits) or -127..127 (8 bits)

k runs along what a product contracts, o along its result. A byte of a 4-bit row holds q + 8 of element k in its low and
of element k + K / 2 in its high half: both halves of a row unpack to contiguous elements. With groups of 32 and float16
scales the same numbers are GGUF's Q4_0 and Q8_0, in another order of bytes (`zoo.interop.gguf`).
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from zoo.errors import UserError
from zoo.kernels.platform import target_platform

BLOCK_ELEMENTS = {"cpu": 1 << 18, "gpu": 1 << 24, "tpu": 1 << 24}
"""Most weights that a product unpacks at a time. CPU: 1 MB in float32, which stays in the cache: [1, 2304] x
[2304, 9216] takes 2.9 ms so, 2.7 ms from float32 weights, 38 ms with the whole matrix unpacked first (measured).
Elsewhere what stays in VMEM or the second-level cache: an embedding would be unpacked into memory otherwise (compiled
for v5e and H200, not measured)."""

EXPERT_ROWS = 256
"""Most rows that one expert's matrix is multiplied with at a time; for more of them it is unpacked again."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["packed", "scales"],
    meta_fields=["bits", "group", "contracted", "out", "is_table"],
)
@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight in place of an array; `zoo.nn.parameters.project` and `zoo.nn.Embedder` take both. For inference."""

    packed: Shaped[Array, "*lead o bytes"]
    """uint8 [..., O, K / 2] for 4 bits, int8 [..., O, K] for 8. Leading axes: scanned layers, experts."""
    scales: Float[Array, "*lead o groups"]
    """[..., O, K / group]."""
    bits: int
    """4 or 8."""
    group: int
    """Consecutive elements of k that share a scale."""
    contracted: tuple[int, ...]
    """Sizes of the axes that a product contracts; K is their product."""
    out: tuple[int, ...]
    """Sizes of the axes of its result; O is their product."""
    is_table: bool
    """Whether the unpacked shape is (*out, *contracted), as of an embedding [V, D], and not (*contracted, *out)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that this stands for."""
        lead = self.packed.shape[:-2]
        return lead + (self.out + self.contracted if self.is_table else self.contracted + self.out)

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the scales."""
        return self.scales.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in memory and on disk."""
        return self.packed.nbytes + self.scales.nbytes

    def __getitem__(self, index: Any) -> "PackedWeight":
        """`...`: itself. A number: that layer of a scanned stack."""
        if index is Ellipsis:
            return self
        if self.packed.ndim == 2:
            raise IndexError("packed weights have rows, not elements: see packed_rows")
        return replace(self, packed=self.packed[index], scales=self.scales[index])

    def astype(self, dtype: Any) -> "PackedWeight":
        """Refused: it would unpack the whole weight."""
        raise UserError(f"packed weights are for inference and are not converted to {dtype}: load the original ones")


def packed_shapes(weight_out: int, weight_in: int, bits: int, group: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of `packed` and `scales` of a [K, O] weight. Raises `UserError` for what cannot be packed."""
    if bits not in (4, 8):
        raise UserError(f"weights are packed to 4 or 8 bits, not {bits}")
    if group < 2 or weight_in % group or weight_in % 2:
        raise UserError(f"groups of {group} do not divide the {weight_in} elements that a product contracts")
    return (weight_out, weight_in * bits // 8), (weight_out, weight_in // group)


def unpack(weight: PackedWeight, dtype: Any) -> Float[Array, "..."]:
    """The whole weight in its own shape: for tests and exports."""
    rows = _unpack_rows(weight.packed, weight.scales, weight.bits, weight.group, dtype)
    lead = rows.shape[:-2]
    if weight.is_table:
        return rows.reshape(*lead, *weight.out, *weight.contracted)
    return rows.swapaxes(-1, -2).reshape(*lead, *weight.contracted, *weight.out)


def packed_rows(weight: PackedWeight, index: Int[Array, "..."], dtype: Any) -> Float[Array, "... k"]:
    """Rows of a table, unpacked: an embedding's vectors."""
    packed, scales = jnp.take(weight.packed, index, axis=0), jnp.take(weight.scales, index, axis=0)
    return _unpack_rows(packed, scales, weight.bits, weight.group, dtype)


def packed_product(
    inputs: Float[Array, "t k"], weight: PackedWeight, *, dtype: Any, precision: jax.lax.Precision | None
) -> Float[Array, "t o"]:
    """sum_k inputs[t, k] w[o, k] in `dtype`, multiplied in the dtype of `inputs`.

    A loop over rows of the weight unpacks `BLOCK_ELEMENTS` at a time.
    """
    packed, scales = weight.packed, weight.scales
    rows, fan_in = packed.shape[0], math.prod(weight.contracted)
    # Weights depend on nothing: XLA would unpack those of all layers at the start of a step, or in front of a loop.
    zero = jnp.minimum(jnp.abs(inputs[0, 0]), 0).astype(packed.dtype)

    def product(packed, scales):
        packed = packed | zero
        unpacked = _unpack_rows(packed, scales, weight.bits, weight.group, inputs.dtype)
        return jnp.einsum("tk,ok->to", inputs, unpacked, precision=precision, preferred_element_type=dtype)

    block = _block_rows(rows, max(1, BLOCK_ELEMENTS[target_platform()] // fan_in))
    if rows <= block:
        return product(packed, scales)
    count, rest = divmod(rows, block)
    # The rows as an axis of the loop, not sliced in it: XLA:TPU would copy all of them into another layout first.
    blocks = [x[: rows - rest].reshape(count, block, -1) for x in (packed, scales)]
    out = jax.lax.map(lambda parts: product(*parts), tuple(blocks)).swapaxes(0, 1).reshape(len(inputs), rows - rest)
    if not rest:
        return out
    return jnp.concatenate([out, product(packed[rows - rest :], scales[rows - rest :])], axis=1)


def packed_expert_products(
    rows: Float[Array, "*e r k"],
    weight: PackedWeight,
    sizes: Int[Array, "e"] | None,
    *,
    precision: jax.lax.Precision | None,
) -> Float[Array, "*e r o"]:
    """Rows times the matrix of their expert, in their dtype. `weight.packed`: [E, O, bytes].

    sizes: rows of every expert, which follow one another in [R, K]; what is left at the end gives zero. None: every
    expert has as many, [E, r, K]. Only experts with rows are unpacked, as in `packed_product`.
    """

    def product(part, one):
        return packed_product(part, one, dtype=rows.dtype, precision=precision)

    if sizes is None:
        return jax.lax.map(lambda pair: product(*pair), (rows, weight))
    tile = min(len(rows), EXPERT_ROWS)
    ends = jnp.cumsum(sizes)

    def of_expert(number, out):
        first, end = ends[number] - sizes[number], ends[number]
        one = weight[number]

        def of_tile(index, out):
            start = jnp.minimum(first + index * tile, len(rows) - tile)
            row = start + jnp.arange(tile)[:, None]
            found = product(jax.lax.dynamic_slice_in_dim(rows, start, tile), one)
            before = jax.lax.dynamic_slice_in_dim(out, start, tile)
            kept = jnp.where((row >= first) & (row < end), found, before)
            return jax.lax.dynamic_update_slice_in_dim(out, kept, start, axis=0)

        return jax.lax.fori_loop(0, (end - first + tile - 1) // tile, of_tile, out)

    empty = jnp.zeros((len(rows), math.prod(weight.out)), rows.dtype)
    return jax.lax.fori_loop(0, len(sizes), of_expert, empty)


def _block_rows(rows: int, most: int) -> int:
    """Rows of a block: the largest divisor up to `most`, or `most` where that would be below a sixteenth of it."""
    most = min(rows, most)
    divisor = next(size for size in range(most, 0, -1) if rows % size == 0)
    return divisor if 16 * divisor >= most else most


def _unpack_rows(packed, scales, bits: int, group: int, dtype) -> Float[Array, "... k"]:
    if bits == 4:
        # Not one array with both shifts: on CPU the vectorised loops of two halves take a fifth of the time.
        halves = [packed & 15, packed >> 4]
        packed = jnp.concatenate([half.astype(jnp.int8) - jnp.int8(8) for half in halves], axis=-1)
    grouped = packed.reshape(*scales.shape, group).astype(jnp.float32) * scales[..., None].astype(jnp.float32)
    return grouped.reshape(packed.shape).astype(dtype)
