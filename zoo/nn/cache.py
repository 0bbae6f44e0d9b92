"""Key/value cache of one attention layer: a ring of W slots on a local layer, one slot per position on a global one."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.visibility import EMPTY_POSITION

_SLOT_AXES = (3, 2, 1)  # of key, value and positions


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["key", "value", "positions", "cursor"],
    meta_fields=["empty"],
)
@dataclass(frozen=True)
class LayerCache:
    """Slot s holds the newest token whose index is s modulo the number of slots. All rows share the write index.

    The positions of the tokens are kept, so what a query may see is decided by `zoo.kernels.attention.visible` as
    everywhere else; a slot without a token, or with padding, has `EMPTY_POSITION`, which no causal query sees.
    """

    key: Float[Array, "b k h s"]
    """Keys, rotated. The layouts are what a decode step reads as they lie: transposing the cache in every
    step costs as much as reading the weights from about 1,000 slots and 8 rows on (35.7M parameters, CPU)."""
    value: Float[Array, "b k s h"]
    """Values."""
    positions: Int[Array, "b s"]
    """Position of the token in each slot."""
    cursor: Int[Array, ""]
    """Tokens written so far, padding included."""
    empty: bool
    """True until the first write. Static: a prefill from scratch compiles to plain attention among its own tokens."""

    @property
    def slots(self) -> int:
        """Number of tokens the cache can hold."""
        return self.key.shape[-1]

    def write(self, key: Array, value: Array, positions: Int[Array, "b t"]) -> "LayerCache":
        """The cache after T more tokens (key, value [B, T, K, H]); of more tokens than slots the last ones stay.

        A layer without a window must never be given more tokens than it has slots: the caller sizes it.
        """
        tokens, slots = key.shape[1], self.slots
        new = key.transpose(0, 2, 3, 1), value.swapaxes(1, 2), positions

        def update(old: Array, new: Array, axis: int) -> Array:
            new = jax.lax.slice_in_dim(new, max(tokens - slots, 0), tokens, axis=axis).astype(old.dtype)
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

        held = map(update, (self.key, self.value, self.positions), new, _SLOT_AXES)
        return replace(self, **dict(zip(("key", "value", "positions"), held)), cursor=self.cursor + tokens, empty=False)

    def by_slot(self) -> tuple[Array, Array, Array]:
        """(key [B, S, K, H], value [B, S, K, H], positions [B, S])."""
        return self.key.transpose(0, 3, 1, 2), self.value.swapaxes(1, 2), self.positions

    def in_order(self) -> tuple[Array, Array, Array]:
        """As `by_slot`, with the oldest slot first."""
        shift = -self.cursor % self.slots
        key, value, positions = (jnp.roll(x, shift, 1) for x in self.by_slot())
        return key, value, positions


def empty_cache(
    batch_size: int, slots: int, num_kv_heads: int, head_dim: int, dtype: jnp.dtype, lead: tuple[int, ...] = ()
) -> LayerCache:
    """A cache without tokens; `lead` = (units,) for scanned layers."""
    return LayerCache(
        key=jnp.zeros((*lead, batch_size, num_kv_heads, head_dim, slots), dtype),
        value=jnp.zeros((*lead, batch_size, num_kv_heads, slots, head_dim), dtype),
        positions=jnp.full((*lead, batch_size, slots), EMPTY_POSITION, jnp.int32),
        cursor=jnp.zeros(lead, jnp.int32),
        empty=True,
    )
