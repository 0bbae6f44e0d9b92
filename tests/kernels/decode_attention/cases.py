"""Calls of decode attention whose caches look as in use: a ring that wrapped, a part-filled cache, a row of padding."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels.attention.visibility import EMPTY_POSITION


@dataclass(frozen=True)
class DecodeCase:
    """Sizes of one call. Row 0 is a ring written past its end; 1 begins with padding and is half full; 2 is padding."""

    batch: int
    kv_heads: int
    group: int
    head_dim: int
    slots: int
    window: int | None

    def arguments(self, dtype, cache_dtype=None):
        """(query, held, own, query_positions) of normally distributed numbers."""
        rng = np.random.default_rng(self.slots)
        cache_dtype = cache_dtype or dtype

        def normal(*shape, dtype=dtype):
            return jnp.asarray(rng.standard_normal(shape), dtype)

        shape = self.batch, self.kv_heads
        query = normal(self.batch, self.kv_heads * self.group, self.head_dim)
        key = normal(*shape, self.head_dim, self.slots, dtype=cache_dtype)
        value = normal(*shape, self.slots, self.head_dim, dtype=cache_dtype)
        positions = np.full((self.batch, self.slots), EMPTY_POSITION, np.int32)
        query_positions = np.zeros((self.batch, 1), np.int32)
        written = self.slots + self.slots // 3
        positions[0] = written - 1 - (written - 1 - np.arange(self.slots)) % self.slots
        query_positions[0] = written
        if self.batch > 1:
            filled = max(self.slots // 2 - 3, 0)
            positions[1, 3 : 3 + filled] = np.arange(filled)
            query_positions[1] = filled
        own_positions = query_positions.copy()
        if self.batch > 2:
            own_positions[2] = EMPTY_POSITION
        own = normal(*shape, self.head_dim), normal(*shape, self.head_dim), jnp.asarray(own_positions)
        return query, (key, value, jnp.asarray(positions)), own, jnp.asarray(query_positions)

    def options(self, soft_cap):
        """Keyword arguments; the scores have a standard deviation of three."""
        return dict(scale=3 * self.head_dim**-0.5, sliding_window=self.window, logits_soft_cap=soft_cap)


CASES = [
    DecodeCase(3, 2, 2, 16, 300, None),
    DecodeCase(1, 4, 2, 32, 256, 256),
    DecodeCase(3, 1, 8, 16, 257, 256),
    DecodeCase(3, 2, 1, 64, 300, 301),
    DecodeCase(1, 1, 3, 16, 301, 5),
    DecodeCase(3, 2, 2, 16, 1, 1),
]


def abstract(case: DecodeCase, dtype, cache_dtype):
    """The shapes of `case.arguments`, for compiling."""
    batch, heads = case.batch, (case.batch, case.kv_heads)
    key = jax.ShapeDtypeStruct((*heads, case.head_dim, case.slots), cache_dtype)
    value = jax.ShapeDtypeStruct((*heads, case.slots, case.head_dim), cache_dtype)
    own = jax.ShapeDtypeStruct((*heads, case.head_dim), dtype)
    query = jax.ShapeDtypeStruct((batch, case.kv_heads * case.group, case.head_dim), dtype)
    positions, one = (jax.ShapeDtypeStruct((batch, size), jnp.int32) for size in (case.slots, 1))
    return query, (key, value, positions), (own, own, one), one


def float64(tree):
    """Every floating array as float64."""
    return jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
