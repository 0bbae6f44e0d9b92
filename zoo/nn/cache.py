"""Key/value cache of one attention layer: a ring of W slots on a local layer, one slot per position on a global one.

Keys and values have any floating dtype, or 8 bits with a scale for each token and head, computed when the token is
written (`zoo.kernels.attention.quantised`).
"""

import functools
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Shaped

from zoo.errors import UserError
from zoo.kernels.attention.quantised import Scales, dequantise, quantise
from zoo.kernels.attention.visibility import EMPTY_POSITION
from zoo.parallel import divided

_SLOT_AXES = {"key": 3, "value": 2, "positions": 1, "key_scale": 2, "value_scale": 2}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["key", "value", "positions", "cursor", "key_scale", "value_scale"],
    meta_fields=["empty", "shared"],
)
@dataclass(frozen=True)
class LayerCache:
    """Slot s holds the newest token whose index is s modulo the number of slots. All rows share the write index.

    The positions of the tokens are kept, so what a query may see is decided by `zoo.kernels.attention.visible` as
    everywhere else; a slot without a token, or with padding, has `EMPTY_POSITION`, which no causal query sees.
    """

    key: Shaped[Array, "b k h s"]
    """Keys, rotated; int8 codes where there are scales. The layouts are what a decode step reads as they lie:
    transposing the cache in every step costs as much as reading the weights from about 1,000 slots and 8 rows on (35.7M
    parameters, CPU)."""
    value: Shaped[Array, "b k s h"]
    """Values."""
    positions: Int[Array, "b s"]
    """Position of the token in each slot."""
    cursor: Int[Array, ""]
    """Tokens written so far, padding included."""
    empty: bool
    """True until the first write. Static: a prefill from scratch compiles to plain attention among its own tokens."""
    shared: bool = False
    """Whether n devices share the slots, by the sharding rules' "slots": token t then lies on device t % n in slot
    t // n, except for those of a prefill whose tokens are divided, too: each device keeps its own. Either way the first
    t tokens fill t / n slots of each. Static."""
    key_scale: Float32[Array, "b k s"] | None = None
    """Of the codes of each key; None where keys and values are floating."""
    value_scale: Float32[Array, "b k s"] | None = None
    """Of the codes of each value."""

    @property
    def axes(self) -> "LayerCache":
        """The logical axes in place of the arrays."""
        lead: Any = ("layers",) * (self.key.ndim - 4)
        slots = "slots" if self.shared else None
        return replace(
            self,
            key=lead + ("batch", "kv_heads", "head_dim", slots),
            value=lead + ("batch", "kv_heads", slots, "head_dim"),
            positions=lead + ("batch", slots),
            cursor=lead,
            key_scale=None if self.key_scale is None else lead + ("batch", "kv_heads", slots),
            value_scale=None if self.value_scale is None else lead + ("batch", "kv_heads", slots),
        )

    @property
    def slots(self) -> int:
        """Number of tokens the cache can hold."""
        return self.key.shape[-1]

    @property
    def scales(self) -> Scales | None:
        """(of the keys, of the values) of a cache in 8 bits; None of a floating one."""
        return None if self.key_scale is None or self.value_scale is None else (self.key_scale, self.value_scale)

    def write(self, key: Array, value: Array, positions: Int[Array, "b t"]) -> "LayerCache":
        """The cache after T more tokens (key, value [B, T, K, H]); of more tokens than slots the last ones stay.

        A layer without a window must never be given more tokens than it has slots: the caller sizes it. Inside of
        `zoo.parallel.spmd` the arrays are a device's own part; where the length is divided, the cache must be empty.
        """
        length, shared = divided("length"), self.slot_axes
        tokens = key.shape[1] * _devices(length)
        if not self.empty and (length or (shared and tokens > 1)):
            raise NotImplementedError("a cache divided among devices takes one token at a time after the first call")
        new = self._stored(key, value, positions)
        if shared:
            update = self._own_token if tokens == 1 else self._own_tokens
        elif length:
            count = min(tokens, self.slots)
            new = {name: _last_of_all(x, count, _SLOT_AXES[name], length) for name, x in new.items()}
        if not shared:
            update = functools.partial(self._ring, tokens=tokens)
        after: dict[str, Any] = {name: update(getattr(self, name), x, _SLOT_AXES[name]) for name, x in new.items()}
        return replace(self, **after, cursor=self.cursor + tokens, empty=False)

    def _stored(self, key: Array, value: Array, positions: Int[Array, "b t"]) -> dict[str, Array]:
        """Tokens in the layouts, and the form, of the slots."""
        if self.scales is None:
            return {"key": key.transpose(0, 2, 3, 1), "value": value.swapaxes(1, 2), "positions": positions}
        (key, key_scale), (value, value_scale) = quantise(key), quantise(value)
        return {
            "key": key.transpose(0, 2, 3, 1),
            "value": value.swapaxes(1, 2),
            "positions": positions,
            "key_scale": key_scale.swapaxes(1, 2),
            "value_scale": value_scale.swapaxes(1, 2),
        }

    def _ring(self, old: Array, new: Array, axis: int, *, tokens: int) -> Array:
        """The slots after `tokens` more, of which `new` has at least the last that stay."""
        slots, given = self.slots, new.shape[axis]
        new = jax.lax.slice_in_dim(new, max(given - slots, 0), given, axis=axis).astype(old.dtype)
        if tokens == 1:
            return jax.lax.dynamic_update_slice_in_dim(old, new, self.cursor % slots, axis)
        if self.empty:
            # The cursor is zero: the slots are known while compiling.
            old = jax.lax.dynamic_update_slice_in_dim(old, new, 0, axis)
            return jnp.roll(old, tokens % slots, axis) if tokens > slots else old
        count = min(tokens, slots)
        index = (self.cursor + tokens - count + jnp.arange(count)) % slots
        where = (slice(None),) * axis + (index,)
        return old.at[where].set(new, unique_indices=True)

    def _own_token(self, old: Array, new: Array, axis: int) -> Array:
        """A device's slots after one more token, which is one device's."""
        axes = self.slot_axes
        slot, device = self.cursor // _devices(axes), self.cursor % _devices(axes)
        kept = jax.lax.dynamic_slice_in_dim(old, slot, 1, axis)
        new = jnp.where(device == jax.lax.axis_index(axes), new.astype(old.dtype), kept)
        return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis)

    def _own_tokens(self, old: Array, new: Array, axis: int) -> Array:
        """A device's slots after its part of the first tokens."""
        axes = self.slot_axes
        if not divided("length"):
            widths = [(0, 0)] * new.ndim
            widths[axis] = (0, -new.shape[axis] % _devices(axes))
            # Of keys and values what fills the last slots is of no account; their position is nobody's.
            new = jnp.pad(new, widths, constant_values=EMPTY_POSITION if new.dtype == jnp.int32 else 0)
            new = new.reshape(*new.shape[:axis], -1, _devices(axes), *new.shape[axis + 1 :])
            new = jax.lax.dynamic_index_in_dim(new, jax.lax.axis_index(axes), axis + 1, keepdims=False)
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), 0, axis)

    @property
    def slot_axes(self) -> tuple[str, ...]:
        """Mesh axes that divide the slots, inside of `zoo.parallel.spmd`."""
        return divided("slots") if self.shared else ()

    def by_slot(self) -> tuple[Array, Array, Array]:
        """(key [B, S, K, H], value [B, S, K, H], positions [B, S]); of a cache in 8 bits float32 keys and values."""
        key, value = self.key, self.value
        if self.key_scale is not None and self.value_scale is not None:
            key = dequantise(key, self.key_scale, 2, jnp.float32)
            value = dequantise(value, self.value_scale, 3, jnp.float32)
        return key.transpose(0, 3, 1, 2), value.swapaxes(1, 2), self.positions

    def in_order(self) -> tuple[Array, Array, Array]:
        """As `by_slot`, with the oldest slot first."""
        shift = -self.cursor % self.slots
        key, value, positions = (jnp.roll(x, shift, 1) for x in self.by_slot())
        return key, value, positions


def _devices(axes: tuple[str, ...]) -> int:
    return math.prod(jax.lax.axis_size(name) for name in axes)


def _last_of_all(x: Array, count: int, axis: int, axes: tuple[str, ...]) -> Array:
    """The last `count` tokens of all devices, of which each has a piece: every device fills in what it has."""
    tokens = x.shape[axis]
    widths = [(0, 0)] * x.ndim
    widths[axis] = (count, count)
    behind = (_devices(axes) - jax.lax.axis_index(axes)) * tokens  # tokens from the first of this device to the end
    start = jnp.minimum(behind, tokens + count)
    return jax.lax.psum(jax.lax.dynamic_slice_in_dim(jnp.pad(x, widths), start, count, axis), axes)


def empty_cache(
    batch_size: int,
    slots: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: jnp.dtype,
    lead: tuple[int, ...] = (),
    shared: bool = False,
) -> LayerCache:
    """A cache without tokens; `lead` = (units,) for scanned layers; `shared`: devices share the slots.

    dtype: floating, or int8 (a scale for each token and head besides, float32). Raises `UserError` for another one.
    """
    dtype = jnp.dtype(dtype)
    quantised = dtype == jnp.int8
    if not quantised and not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"the dtype of a cache must be floating or int8, got {dtype}")

    def scale() -> Array | None:
        return jnp.zeros((*lead, batch_size, num_kv_heads, slots), jnp.float32) if quantised else None

    return LayerCache(
        key=jnp.zeros((*lead, batch_size, num_kv_heads, head_dim, slots), dtype),
        value=jnp.zeros((*lead, batch_size, num_kv_heads, slots, head_dim), dtype),
        positions=jnp.full((*lead, batch_size, slots), EMPTY_POSITION, jnp.int32),
        cursor=jnp.zeros(lead, jnp.int32),
        empty=True,
        shared=shared,
        key_scale=scale(),
        value_scale=scale(),
    )
