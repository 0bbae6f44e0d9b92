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

from zoo.errors import UserError
from zoo.kernels.platform import target_platform
from zoo.nn import Embedder, Execution, LayerCache, RMSNorm, build_layers, empty_cache, rope_angles, run_layers
from zoo.parallel import axis_divisions, divided, own_part, spmd, state_axes, sum_over
from zoo.training.mfu import decoder_forward_flops_per_token

Cache = tuple[LayerCache, ...]


class DecoderFields(Protocol):
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
    def norm_eps(self) -> float: ...
    @property
    def final_logit_soft_cap(self) -> float | None: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def pattern_length(self) -> int:
        """Layers of the repeating unit."""

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer; None = global."""


def check_sizes(config: Any, *more: str) -> None:
    """Raises `UserError` for sizes that no decoder has; `more` are names of further sizes of this one."""
    for name in ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                 "max_position_embeddings", *more):  # fmt: skip
        if getattr(config, name) < 1:
            raise UserError(f"model.{name} must be at least 1, got {getattr(config, name)}")
    if config.num_heads % config.num_kv_heads:
        raise UserError(f"model.num_heads={config.num_heads} is not a multiple of num_kv_heads={config.num_kv_heads}")
    if config.head_dim % 2:
        raise UserError(f"model.head_dim must be even for rotary positions, got {config.head_dim}")
    check_positive(config, "rope_theta", "norm_eps")


def check_positive(config: Any, *names: str) -> None:
    """Raises `UserError` for a field that is neither above zero nor None."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"model.{name} must be positive, got {value}")


def check_layer_types(layer_types: tuple[str, ...]) -> None:
    """Raises `UserError` for a pattern that is not of local and global layers."""
    if not layer_types or set(layer_types) - {"local", "global"}:
        raise UserError(f"model.layer_types must be a sequence of 'local' and 'global', got {layer_types}")


def decoder_flops(config: Any, sequence_length: int, *, hidden_dim: int) -> float:
    """Forward floating-point operations per token of a decoder all of whose feed-forward layers have this width."""
    return decoder_forward_flops_per_token(
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        hidden_dim=hidden_dim,
        vocab_size=config.vocab_size,
        windows=[config.window(layer) for layer in range(config.num_layers)],
        sequence_length=sequence_length,
    )


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

    A subclass makes the layers, which are called as
    `layer(x, context: LayerContext, cache) -> (x, cache, statistics of its router or None)`.
    """

    config: Any

    def __init__(
        self,
        config: DecoderFields,
        *,
        scaled: bool = True,
        tied: bool = True,
        execution: Execution | None = None,
        rngs: nnx.Rngs,
    ):
        """scaled, tied: of the `Embedder`."""
        execution = execution or Execution()
        self.config, self.execution = config, execution
        self.embedder = Embedder(
            config.vocab_size, config.embed_dim, scaled=scaled, tied=tied, execution=execution, rngs=rngs
        )
        self.layers = build_layers(
            lambda position, rngs: self.make_layer(position, rngs=rngs),
            config.num_layers,
            config.pattern_length,
            execution=execution,
            rngs=rngs,
        )
        self.final_norm = self.make_norm(rngs=rngs)

    def make_layer(self, position: int, *, rngs: nnx.Rngs) -> nnx.Module:
        """The layer at a place of the repeating unit."""
        raise NotImplementedError

    def make_norm(self, *, rngs: nnx.Rngs) -> nnx.Module:
        """The norm before the output head."""
        return RMSNorm(self.config.embed_dim, eps=self.config.norm_eps, execution=self.execution, rngs=rngs)

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

        dtype: of keys and values; None = the compute dtype; int8 = 8 bits with a scale for each token and head. Raises
        `UserError` for int8 where a Pallas kernel is named, which reads no such cache in a decode step.
        """
        dtype = jnp.dtype(self.execution.dtype if dtype is None else dtype)
        kernel = self.execution.attention_implementation or ""
        if dtype == jnp.int8 and kernel.startswith("pallas"):
            raise UserError(f"a cache in int8 cannot be decoded from by {kernel}: leave it out, or name xla")
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
                dtype,
                lead,
                shared=devices > 1 and config.window(layer) is None,
            )
            for layer in range(len(self.layers))
        )
