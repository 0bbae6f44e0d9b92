"""Grouped-query self-attention: rotary positions, and optionally a window, soft-cap, QK-norm, biases, sinks, cache."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from zoo.kernels import dot_product_attention
from zoo.kernels.attention.block import NO_KEY
from zoo.kernels.attention.piece import piece_attention
from zoo.kernels.attention.prefix import Prefix, prefix_part
from zoo.kernels.attention.quantised import Scales
from zoo.kernels.attention.sinks import with_sinks
from zoo.kernels.attention.visibility import EMPTY_POSITION
from zoo.kernels.context_attention import device_attention
from zoo.kernels.context_attention.parts import merge
from zoo.kernels.decode_attention import decode_attention, decode_attention_part, merge_decoded
from zoo.nn.bottleneck import through_bottlenecks
from zoo.nn.cache import LayerCache
from zoo.nn.execution import Execution
from zoo.nn.norm import RMSNorm
from zoo.nn.parameters import fan_in_normal, parameter, project
from zoo.nn.prefix import prefix_of
from zoo.nn.rope import apply_rope
from zoo.parallel import active_rules, divided, enter_sublayer, kv_heads_read, leave_sublayer, own_part


class Attention(nnx.Module):
    """out(softmax(mask(cap(scale * rope(q) . rope(k)))) v), N query heads sharing K key/value heads.

    bias: query, key, value and output have biases (gpt-oss). qk_norm_eps: queries and keys are divided by the root mean
    square of their head and multiplied with a weight, before they are rotated (Qwen3). sinks: one learned logit per
    query head joins the denominator of the softmax (gpt-oss; `zoo.kernels.attention.sinks`).
    """

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
        bias: bool = False,
        qk_norm_eps: float | None = None,
        sinks: bool = False,
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
        zeros = jax.nn.initializers.zeros

        def vector(*axes_and_sizes: tuple[str, int]):
            axes, shape = zip(*axes_and_sizes, strict=True)
            return parameter(rngs, shape, axes, zeros, dtype)

        self.has_bias, self.has_sinks, self.has_norms = bias, sinks, qk_norm_eps is not None
        if bias:
            self.query_bias = vector(("heads", num_heads), ("head_dim", head_dim))
            self.key_bias = vector(("kv_heads", num_kv_heads), ("head_dim", head_dim))
            self.value_bias = vector(("kv_heads", num_kv_heads), ("head_dim", head_dim))
            self.output_bias = vector(("norm", embed_dim))
        if sinks:
            self.sinks = vector(("heads", num_heads))
        if qk_norm_eps is not None:
            self.query_norm, self.key_norm = (
                RMSNorm(head_dim, eps=qk_norm_eps, zero_centred=False, execution=execution, rngs=rngs) for _ in range(2)
            )

    def __call__(
        self,
        x: Float[Array, "b t d"],
        angles: tuple[Array, Array] | None,
        positions: Int[Array, "#b row"],
        segment_ids: Int[Array, "b row"] | None,
        cache: LayerCache | None = None,
    ) -> tuple[Float[Array, "b t d"], LayerCache | None]:
        """Attends among the tokens of `x` and, with a cache, to the tokens before them; returns the cache with them.

        Without `angles` queries and keys are not rotated.

        `positions` rise by one per token within a segment and segments are contiguous runs (segment 0 = padding); with
        a cache every row is one sequence. Where devices share the tokens of a row (`zoo.parallel.spmd`), `x` is a
        device's part, and positions and segments are of the whole row.
        """
        x = enter_sublayer(x)
        with jax.named_scope("qkv"):
            query, key, value = self._projections(x)
            if self.has_norms:
                query, key = self.query_norm(query), self.key_norm(key)
            query = checkpoint_name(apply_rope(query, angles), "query")
            key = checkpoint_name(apply_rope(key, angles), "key")
            value = checkpoint_name(value, "value")
        with jax.named_scope("local_attention" if self.sliding_window else "global_attention"):
            if cache is None or cache.empty:
                out = self._attend_own(query, key, value, positions, segment_ids)
            if cache is not None:
                stored = _stored_positions(jnp.broadcast_to(positions, (len(x), positions.shape[1])), segment_ids)
                stored = own_part(stored, "length", axis=1)
                one = positions.shape[1] == 1 and (self.implementation != "reference" or cache.shared)
                if not cache.empty and one:
                    out, key, value = self._attend_one(query, key, value, positions, stored, cache)
                elif not cache.empty:
                    out, key, value = self._attend_several(query, key, value, positions, stored, cache)
                cache = cache.write(key, value, stored)
        with jax.named_scope("output"):
            out = leave_sublayer(project("btnh,nhd->btd", out, self.output[...]), "heads")
            out = out + self.output_bias[...].astype(out.dtype) if self.has_bias else out
            return through_bottlenecks(self, out), cache

    def _projections(self, x):
        query = project("btd,dnh->btnh", x, self.query[...])
        key = project("btd,dkh->btkh", x, self.key[...])
        value = project("btd,dkh->btkh", x, self.value[...])
        if self.has_bias:
            query = query + self.query_bias[...].astype(query.dtype)
            key = key + self.key_bias[...].astype(key.dtype)
            value = value + self.value_bias[...].astype(value.dtype)
        return query, key, value

    def _attend_own(self, query, key, value, positions, segment_ids):
        """Among the tokens of this call, which several devices may share."""
        if not divided("length"):
            return self._attend(query, key, value, positions, positions, segment_ids, segment_ids, ordered=True)
        if prefix_of(self) is not None:
            raise NotImplementedError("a prefix is not supported where devices share the tokens of a sequence")
        own = self._kv_heads_read(query, key.shape[2])
        return device_attention(
            query,
            own(key, 2),
            own(value, 2),
            positions,
            segment_ids,
            axis=divided("length"),
            exchange=active_rules().context_exchange,
            **self._options(),
        )

    def _attend_one(self, query, key, value, positions, stored, cache: LayerCache):
        """A decode step: (out, key, value). The slot that the token will take holds nothing that it sees, so it attends
        to the cache as it was and to itself. Reading the cache before writing it lets it be updated in place."""
        own = self._kv_heads_read(query, key.shape[2])
        held = own(cache.key, 1), own(cache.value, 1), cache.positions
        new = own(key[:, 0], 1), own(value[:, 0], 1)
        scales, prefix = _scales_read(cache, own), self._prefix(own)
        if prefix is not None:
            out = self._attend_one_after(prefix, query, held, (*new, stored), positions, cache, scales)
        elif cache.slot_axes:
            # Each device attends to its own slots, the first one to the new token besides.
            first = jax.lax.axis_index(cache.slot_axes) == 0
            stored = jnp.where(first, stored, EMPTY_POSITION)
            options = self._options()
            sinks = options.pop("sinks")
            options["held_scales"] = scales
            part = decode_attention_part(query[:, 0], held, (*new, stored), positions, **options)
            if sinks is not None:
                # The sinks are one more key of the first device; that of the others weighs nothing.
                part = with_sinks(*part, jnp.where(first, sinks.astype(part[1].dtype), NO_KEY))
            out = merge_decoded(*part, cache.slot_axes)[:, None]
        else:
            options = self._options() | {"held_scales": scales}
            out = decode_attention(query[:, 0], held, (*new, stored), positions, **options)[:, None]
        return out, *_after(out, key, value)

    def _attend_one_after(self, prefix: Prefix, query, held, new, positions, cache: LayerCache, scales: Scales | None):
        """A decode step with a prefix."""
        if cache.slot_axes:
            raise NotImplementedError("a prefix is not supported where devices share the slots of a cache")
        options = self._options()
        sinks = options.pop("sinks")
        part = decode_attention_part(query[:, 0], held, new, positions, held_scales=scales, **options)
        of_prefix = prefix_part(query, prefix, self.scale, self.logits_soft_cap)
        out, lse = merge(part, (of_prefix[0][:, 0], of_prefix[1][:, 0]))
        out = out if sinks is None else with_sinks(out, lse, sinks)[0]
        return out.astype(query.dtype)[:, None]

    def _attend_several(self, query, key, value, positions, stored, cache: LayerCache):
        """A piece of several tokens: (out, key, value). Padding and empty slots have EMPTY_POSITION, so segments are
        not needed any more."""
        if cache.slot_axes or divided("length"):
            raise NotImplementedError("a cache divided among devices takes one token at a time after the first call")
        positions = jnp.broadcast_to(positions, query.shape[:2])
        if self.sliding_window is None and self.implementation in (None, "xla") and prefix_of(self) is None:
            return self._attend_piece(query, key, value, positions, stored, cache)
        if self.sliding_window is None:
            held = cache.write(key, value, stored).by_slot()
        else:
            # Later tokens of this call push out keys that earlier ones still see: so the old ring and the new keys.
            pairs = zip(cache.in_order(), (key, value, stored), strict=True)
            held = tuple(jnp.concatenate([old.astype(new.dtype), new], axis=1) for old, new in pairs)
        keys, values = (x.astype(query.dtype) for x in held[:2])
        ordered = self.sliding_window is not None
        return self._attend(query, keys, values, positions, held[2], None, None, ordered=ordered), key, value

    def _attend_piece(self, query, key, value, positions, stored, cache: LayerCache):
        """Several tokens of a global layer: the filled slots of the cache, then the piece itself."""
        own = self._kv_heads_read(query, key.shape[2])
        out = piece_attention(
            query,
            (own(cache.key, 1), own(cache.value, 1), cache.positions),
            jnp.minimum(cache.cursor, cache.slots),
            (own(key, 2).transpose(0, 2, 3, 1), own(value, 2).swapaxes(1, 2), stored),
            positions,
            scale=self.scale,
            logits_soft_cap=self.logits_soft_cap,
            sinks=self.sinks[...] if self.has_sinks else None,
            held_scales=_scales_read(cache, own),
        )
        return out, *_after(out, key, value)

    def _attend(self, query, key, value, query_positions, key_positions, query_segments, key_segments, *, ordered):
        own = self._kv_heads_read(query, key.shape[2])
        return dot_product_attention(
            query,
            own(key, 2),
            own(value, 2),
            query_positions=query_positions,
            key_positions=key_positions,
            query_segment_ids=query_segments,
            key_segment_ids=key_segments,
            ordered_positions=ordered,
            prefix=self._prefix(own),
            **self._options(),
        )

    def _prefix(self, own) -> Prefix | None:
        """The learned keys and values of the heads that this device's queries read."""
        prefix = prefix_of(self)
        return None if prefix is None else prefix._replace(key=own(prefix.key, 1), value=own(prefix.value, 1))

    def _kv_heads_read(self, query, kv_heads: int):
        """A function (array, axis of its heads) -> those heads that this device's query heads read."""
        heads = divided("heads")
        if heads == divided("kv_heads"):
            return lambda x, axis: x
        return kv_heads_read(query.shape[2], kv_heads, heads)

    def _options(self) -> dict[str, Any]:
        return dict(
            scale=self.scale,
            sliding_window=self.sliding_window,
            logits_soft_cap=self.logits_soft_cap,
            sinks=self.sinks[...] if self.has_sinks else None,
            implementation=self.implementation,
        )


def _after(out: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """key and value. XLA orders the write of the cache after the read only if it depends on it; else it copies the
    whole cache in every step."""
    zero = jnp.minimum(jnp.abs(out[0, 0, 0, 0]), 0)
    return key + zero, value + zero


def _scales_read(cache: LayerCache, own: Any) -> Any:
    """The scales of those heads of a cache in 8 bits that this device's query heads read; None of a floating one."""
    return None if cache.scales is None else tuple(own(scale, 1) for scale in cache.scales)


def _stored_positions(positions: Int[Array, "b t"], segment_ids: Int[Array, "b t"] | None) -> Int[Array, "b t"]:
    return positions if segment_ids is None else jnp.where(segment_ids == 0, EMPTY_POSITION, positions)
