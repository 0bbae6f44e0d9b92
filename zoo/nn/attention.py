"""Grouped-query self-attention with rotary positions, an optional window, soft-cap and cache."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.kernels import dot_product_attention
from zoo.kernels.attention.visibility import EMPTY_POSITION
from zoo.kernels.decode_attention import decode_attention
from zoo.kernels.platform import target_platform
from zoo.nn.cache import LayerCache
from zoo.nn.execution import Execution
from zoo.nn.parameters import fan_in_normal, parameter, project
from zoo.nn.rope import apply_rope
from zoo.parallel import per_shard


class Attention(nnx.Module):
    """out(softmax(mask(cap(scale * rope(q) . rope(k)))) v), N query heads sharing K key/value heads, without biases."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        scale: float,
        sliding_window: int | None,
        logits_soft_cap: float | None,
        execution: Execution,
        rngs: nnx.Rngs,
    ):
        self.scale = scale
        self.sliding_window = sliding_window
        self.logits_soft_cap = logits_soft_cap
        self.implementation = execution.attention_implementation
        dtype, init = execution.weight_dtype, fan_in_normal(embed_dim)
        self.query = parameter(rngs, (embed_dim, num_heads, head_dim), ("embed", "heads", "head_dim"), init, dtype)
        self.key = parameter(rngs, (embed_dim, num_kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), init, dtype)
        self.value = parameter(
            rngs, (embed_dim, num_kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), init, dtype
        )
        self.output = parameter(
            rngs,
            (num_heads, head_dim, embed_dim),
            ("heads", "head_dim", "embed"),
            fan_in_normal(num_heads * head_dim),
            dtype,
        )

    def __call__(
        self,
        x: Float[Array, "b t d"],
        angles: tuple[Array, Array],
        positions: Int[Array, "#b t"],
        segment_ids: Int[Array, "b t"] | None,
        cache: LayerCache | None = None,
    ) -> tuple[Float[Array, "b t d"], LayerCache | None]:
        """Attends among the tokens of `x` and, with a cache, to the tokens before them; returns the cache with them.

        `positions` rise by one per token within a segment and segments are contiguous runs (segment 0 = padding); with
        a cache every row is one sequence.
        """
        with jax.named_scope("qkv"):
            query = apply_rope(project("btd,dnh->btnh", x, self.query[...]), angles)
            key = apply_rope(project("btd,dkh->btkh", x, self.key[...]), angles)
            value = project("btd,dkh->btkh", x, self.value[...])
        with jax.named_scope("local_attention" if self.sliding_window else "global_attention"):
            if cache is None or cache.empty:
                out = self._attend(query, key, value, positions, positions, segment_ids, segment_ids, ordered=True)
            if cache is not None:
                stored = _stored_positions(jnp.broadcast_to(positions, key.shape[:2]), segment_ids)
                if not cache.empty and key.shape[1] == 1 and self.implementation != "reference":
                    out, key, value = self._attend_one(query, key, value, positions, stored, cache)
                elif not cache.empty:
                    out = self._attend_several(query, key, value, positions, stored, cache)
                cache = cache.write(key, value, stored)
        with jax.named_scope("output"):
            return project("btnh,nhd->btd", out, self.output[...]), cache

    def _attend_one(self, query, key, value, positions, stored, cache: LayerCache):
        """A decode step: (out, key, value). The slot that the token will take holds nothing that it sees, so it attends
        to the cache as it was and to itself. Reading the cache before writing it lets it be updated in place."""

        def attend(query, cached_key, cached_value, cached_positions, key, value, own_positions, query_positions):
            held, own = (cached_key, cached_value, cached_positions), (key, value, own_positions)
            return decode_attention(query, held, own, query_positions, **self._options())

        head, row = ("batch", "kv_heads", "head_dim"), ("batch", None)
        cached = ("batch", "kv_heads", "head_dim", None), ("batch", "kv_heads", None, "head_dim"), row
        axes = ("batch", "heads", "head_dim"), *cached, head, head, row, row
        out = self._per_shard(attend, axes)(
            query[:, 0], cache.key, cache.value, cache.positions, key[:, 0], value[:, 0], stored, positions
        )[:, None]
        # XLA orders the write after the read only if it depends on it; else it copies the whole cache in every step.
        zero = jnp.minimum(jnp.abs(out[0, 0, 0, 0]), 0)
        return out, key + zero, value + zero

    def _attend_several(self, query, key, value, positions, stored, cache: LayerCache):
        """Padding and empty slots have EMPTY_POSITION, so segments are not needed any more."""
        positions = jnp.broadcast_to(positions, query.shape[:2])
        if self.sliding_window is None:
            held = cache.write(key, value, stored).by_slot()
        else:
            # Later tokens of this call push out keys that earlier ones still see: so the old ring and the new keys.
            pairs = zip(cache.in_order(), (key, value, stored), strict=True)
            held = tuple(jnp.concatenate([old.astype(new.dtype), new], axis=1) for old, new in pairs)
        keys, values = (x.astype(query.dtype) for x in held[:2])
        ordered = self.sliding_window is not None
        return self._attend(query, keys, values, positions, held[2], None, None, ordered=ordered)

    def _attend(self, query, key, value, query_positions, key_positions, query_segments, key_segments, *, ordered):
        def attend(query, key, value, query_positions, key_positions, query_segments, key_segments):
            return dot_product_attention(
                query,
                key,
                value,
                query_positions=query_positions,
                key_positions=key_positions,
                query_segment_ids=query_segments,
                key_segment_ids=key_segments,
                ordered_positions=ordered,
                **self._options(),
            )

        # With a cache there are more keys than queries, so the keys' length has no name.
        heads, row = ("batch", "length", "heads", "head_dim"), ("batch", "length")
        keys, key_row = ("batch", None, "kv_heads", "head_dim"), ("batch", None)
        return self._per_shard(attend, (heads, keys, keys, row, key_row, row, key_row))(
            query, key, value, query_positions, key_positions, query_segments, key_segments
        )

    def _options(self) -> dict[str, Any]:
        return dict(
            scale=self.scale,
            sliding_window=self.sliding_window,
            logits_soft_cap=self.logits_soft_cap,
            implementation=self.implementation,
        )

    def _per_shard(self, attend, axes):
        """`attend` on each device's rows and heads, for kernels: XLA divides between devices only its own code."""
        if (self.implementation or target_platform()) in ("reference", "xla", "cpu"):
            return attend
        return per_shard(attend, axes, axes[0])


def _stored_positions(positions: Int[Array, "b t"], segment_ids: Int[Array, "b t"] | None) -> Int[Array, "b t"]:
    return positions if segment_ids is None else jnp.where(segment_ids == 0, EMPTY_POSITION, positions)
