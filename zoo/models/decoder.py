"""What all decoder-only models share: tokens to logits through a stack of layers, cached or not, on any mesh.

An architecture's own file gives its config, its layer and its presets; `Decoder` gives the rest.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.kernels.platform import target_platform
from zoo.nn import Embedder, Execution, LayerCache, empty_cache, rope_angles, run_layers
from zoo.parallel import axis_divisions, divided, own_part, spmd, state_axes, sum_over

Cache = tuple[LayerCache, ...]


class DecoderConfig(Protocol):
    """What `Decoder` reads from an architecture's config."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def embed_dim(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def rope_theta(self) -> float: ...
    @property
    def final_logit_soft_cap(self) -> float | None: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def pattern_length(self) -> int:
        """Layers of the repeating unit."""

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer; None = global."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["angles", "positions", "segment_ids", "token_mask", "rng"],
    meta_fields=[],
)
@dataclass(frozen=True)
class LayerContext:
    """What every layer is told besides the residual stream."""

    angles: Any
    """As `Decoder.rotary` gives them, of this device's tokens."""
    positions: Int[Array, "#b row"]
    """Of whole rows, like the segments: attention asks about keys of other devices."""
    segment_ids: Int[Array, "b row"] | None
    """Contiguous runs that do not see each other; 0 = padding."""
    token_mask: Bool[Array, "b t"] | None
    """Which tokens of a sub-layer are no padding; None = all."""
    rng: Key[Array, ""] | None
    """The layer's own randomness; None = not training."""


class Decoder(nnx.Module):
    """Tokens to logits; see `zoo.nn.stacking` for the two layouts of `layers`.

    A subclass sets `config`, `execution`, `embedder`, `layers` and `final_norm`, whose layers are
    called as `layer(x, context: LayerContext, cache) -> (x, cache, statistics of its router or None)`.
    """

    config: Any
    execution: Execution
    embedder: Embedder
    layers: nnx.List
    final_norm: nnx.Module

    @property
    def has_experts(self) -> bool:
        """Whether layers give statistics of a router."""
        return False

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        positions: Int[Array, "b t"] | None = None,
        segment_ids: Int[Array, "b t"] | None = None,
        media: Any = None,
        cache: Cache | None = None,
    ) -> Float[Array, "b t v"] | tuple[Float[Array, "b t v"], Cache]:
        """float32 logits of the next token; with a cache also the cache with these tokens in it.

        positions: default 0..T-1, with a cache the tokens after those it holds. Within a segment they rise by one per
        token. segment_ids: contiguous runs that do not see each other, 0 = padding. With a cache every row is one
        sequence, and prompts of unequal length are padded on the left.
        """
        hidden, new_cache, _ = self._run(tokens, positions, segment_ids, media, cache, None)
        logits = self.logits(hidden)
        return logits if new_cache is None else (logits, new_cache)

    def hidden_states(
        self,
        tokens: Int[Array, "b t"],
        *,
        positions: Int[Array, "b t"] | None = None,
        segment_ids: Int[Array, "b t"] | None = None,
        media: Any = None,
        cache: Cache | None = None,
    ) -> Float[Array, "b t d"] | tuple[Float[Array, "b t d"], Cache]:
        """Hidden states after the final norm, in the compute dtype; arguments as for the call."""
        hidden, new_cache, _ = self._run(tokens, positions, segment_ids, media, cache, None)
        return hidden if new_cache is None else (hidden, new_cache)

    def hidden_and_routing(
        self,
        tokens: Int[Array, "b t"],
        *,
        positions: Int[Array, "b t"] | None = None,
        segment_ids: Int[Array, "b t"] | None = None,
        media: Any = None,
        rng: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "b t d"], Any]:
        """Hidden states as `hidden_states`, and the routers' statistics of the whole batch, stacked over the layers
        that have one; None without experts. `rng` is given in training only: it turns on jitter and the capacity of
        training."""
        hidden, _, statistics = self._run(tokens, positions, segment_ids, media, None, rng)
        return hidden, statistics

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """float32 logits, soft-capped, of hidden states after the final norm."""
        with jax.named_scope("logits"):
            return self.embedder.decode(hidden, self.config.final_logit_soft_cap)

    def output_embedding(self) -> Float[Array, "v d"]:
        """The output head in the compute dtype, for losses that work on parts of the logits."""
        table: Any = self.embedder.output_table()
        return table.astype(self.execution.dtype)

    def rotary(self, positions: Int[Array, "b t"]) -> Any:
        """What the layers rotate queries and keys by."""
        return rope_angles(positions, self.config.head_dim, self.config.rope_theta)

    def embed(self, tokens: Int[Array, "b t"], media: Any) -> Float[Array, "b t d"]:
        """The residual stream before the first layer. On a mesh: from a device's tokens, its part of the stream."""
        if media is not None:
            raise ValueError(f"{type(self).__name__} reads text only: media must be None")
        return self.embedder.encode(tokens)

    def _run(self, tokens, positions, segment_ids, media, cache, rng):
        if positions is None:
            start = 0 if cache is None else jnp.max(cache[0].cursor)
            positions = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        positions = jnp.broadcast_to(positions, tokens.shape)
        graphdef, state = nnx.split(self)

        def run(state, tokens, positions, segment_ids, media, cache, rng):
            model: Decoder = nnx.merge(graphdef, state)
            return model._run_parts(tokens, positions, segment_ids, media, cache, rng)

        # Positions and segments are whole rows: attention asks about keys of other devices.
        rows, whole = ("batch", "length"), ("batch", None)
        cache_axes: Any = None if cache is None else tuple(layer.axes for layer in cache)
        in_axes = (
            state_axes(state),
            rows,
            whole,
            None if segment_ids is None else whole,
            None if media is None else ("batch",),
            cache_axes,
            None if rng is None else (),
        )
        new_axes = None if cache is None else tuple(replace(layer, empty=False) for layer in cache_axes)
        out_axes = (("batch", "residual_length", None), new_axes, () if self.has_experts else None)
        batch, length = tokens.shape
        sizes = {"batch": batch, "length": length, "residual_length": length}
        return spmd(run, in_axes, out_axes, sizes)(state, tokens, positions, segment_ids, media, cache, rng)

    def _run_parts(self, tokens, positions, segment_ids, media, cache, rng):
        """`_run` on one device's part of the arrays; tokens of the residual stream come out."""
        with jax.named_scope("embed"):
            x = self.embed(tokens, media)
            angles = self.rotary(own_part(positions, "length", axis=1))
        mask = None if segment_ids is None else own_part(segment_ids != 0, "length", axis=1)
        context = LayerContext(angles, positions, segment_ids, mask, None)

        def apply(layer, x, layer_cache, index):
            own = None if rng is None else jax.random.fold_in(rng, index)
            return layer(x, replace(context, rng=own), layer_cache)

        x, new_cache, statistics = run_layers(self.layers, x, apply, cache, self.execution)
        tokens_of = divided("batch") + divided("length")
        statistics = jax.tree.map(lambda total: sum_over(total, tokens_of), statistics)
        return self.final_norm(x), new_cache, statistics

    def init_cache(self, batch_size: int, max_length: int, dtype: jnp.dtype | None = None) -> Cache:
        """An empty cache for `max_length` tokens: at most W slots on a local layer, `max_length` on a global one.

        Devices that share the tokens of a sequence share the slots of global layers (`LayerCache.shared`). Each has as
        many as the others, on accelerators a multiple of 128.
        """
        config, scanned = self.config, self.execution.scan_layers
        devices = axis_divisions("slots")
        # Otherwise a TPU stores the slots transposed and copies the whole cache into and out of every program.
        multiple = devices if target_platform() == "cpu" else 128 * devices
        max_length = -(-max_length // multiple) * multiple
        lead = (config.num_layers // config.pattern_length,) if scanned else ()
        return tuple(
            empty_cache(
                batch_size,
                min(config.window(layer) or max_length, max_length),
                config.num_kv_heads,
                config.head_dim,
                dtype or self.execution.dtype,
                lead,
                shared=devices > 1 and config.window(layer) is None,
            )
            for layer in range(len(self.layers))
        )
