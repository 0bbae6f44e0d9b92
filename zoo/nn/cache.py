"""Key/value cache of one attention layer: a ring of W slots on a local layer, one slot per position on a global one."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.visibility import EMPTY_POSITION


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

    key: Float[Array, "b s k h"]
    """Keys, rotated."""
    value: Float[Array, "b s k h"]
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
        return self.key.shape[-3]

    def write(self, key: Array, value: Array, positions: Int[Array, "b t"]) -> "LayerCache":
        """The cache after T more tokens (key, value [B, T, K, H]); of more tokens than slots the last ones stay.

        A layer without a window must never be given more tokens than it has slots: the caller sizes it.
        """
        tokens, slots = key.shape[1], self.slots
        new = jax.tree.map(lambda x: x[:, -slots:], (key, value, positions))
        new = jax.tree.map(lambda x, old: x.astype(old.dtype), new, (self.key, self.value, self.positions))
        if tokens == 1:
            update = partial(jax.lax.dynamic_update_slice_in_dim, start_index=self.cursor % slots, axis=1)
        elif self.empty:
            # The cursor is zero: the slots are known while compiling.
            shift = tokens % slots if tokens > slots else 0
            update = lambda old, x: jnp.roll(jax.lax.dynamic_update_slice_in_dim(old, x, 0, 1), shift, axis=1)  # noqa: E731
        else:
            count = min(tokens, slots)
            index = (self.cursor + tokens - count + jnp.arange(count)) % slots
            update = lambda old, x: old.at[:, index].set(x, unique_indices=True)  # noqa: E731
        held = jax.tree.map(update, (self.key, self.value, self.positions), new)
        return replace(self, key=held[0], value=held[1], positions=held[2], cursor=self.cursor + tokens, empty=False)

    def in_order(self) -> tuple[Array, Array, Array]:
        """(key, value, positions) with the oldest slot first."""
        shift = -self.cursor % self.slots
        return jnp.roll(self.key, shift, 1), jnp.roll(self.value, shift, 1), jnp.roll(self.positions, shift, 1)


def empty_cache(
    batch_size: int, slots: int, num_kv_heads: int, head_dim: int, dtype: jnp.dtype, lead: tuple[int, ...] = ()
) -> LayerCache:
    """A cache without tokens; `lead` = (units,) for scanned layers."""
    shape = (*lead, batch_size, slots, num_kv_heads, head_dim)
    return LayerCache(
        key=jnp.zeros(shape, dtype),
        value=jnp.zeros(shape, dtype),
        positions=jnp.full(shape[:-2], EMPTY_POSITION, jnp.int32),
        cursor=jnp.zeros(lead, jnp.int32),
        empty=True,
    )
