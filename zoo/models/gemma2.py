"""Gemma 2 (arXiv 2408.00118): local and global layers in turn, soft-caps, pre- and post-norms, grouped queries, GeGLU.

    x = E[token] * sqrt(D)
    for each layer:  x = x + norm(attention(norm(x)));  x = x + norm(geglu(norm(x)))
    logits = c * tanh(norm(x) . E^T / c)

Presets at the bottom: sizes of the report's tables 1-3, and small ones for one CPU.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.errors import UserError
from zoo.kernels.platform import target_platform
from zoo.nn import (
    Attention,
    Embedder,
    Execution,
    GatedFeedForward,
    LayerCache,
    RMSNorm,
    build_layers,
    empty_cache,
    rope_angles,
    run_layers,
)
from zoo.parallel import axis_divisions, own_part, spmd, state_axes
from zoo.training.mfu import decoder_forward_flops_per_token

Cache = tuple[LayerCache, ...]


@dataclass(frozen=True)
class Gemma2Config:
    """Architecture of a Gemma 2 model."""

    vocab_size: int
    """Rows of the embedding."""
    embed_dim: int
    """Model width D."""
    num_layers: int
    """Decoder layers."""
    num_heads: int
    """Query heads N."""
    num_kv_heads: int
    """Key/value heads K; N is a multiple of K."""
    head_dim: int
    """Width H of one head."""
    hidden_dim: int
    """Width of gate and up of the feed-forward layer, each (the report's "feedforward dim" counts both)."""
    query_pre_attn_scalar: float
    """Scores are multiplied by this ** -0.5: head_dim for 2B and 9B, D / N = 144 for 27B."""
    sliding_window: int = 4096
    """Keys that a query of a local layer sees, its own position included."""
    layer_types: tuple[str, ...] = ("local", "global")
    """The repeating pattern: layer i is layer_types[i % len]."""
    attn_logit_soft_cap: float | None = 50.0
    """c of the attention scores' c * tanh(s / c); None = no cap."""
    final_logit_soft_cap: float | None = 30.0
    """c of the output logits; None = no cap."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies, local and global layers alike."""
    norm_eps: float = 1e-6
    """Added to the mean square in every norm."""
    max_position_embeddings: int = 8192
    """Context length the model was trained for."""
    bos_token_id: int = 2
    """Token before every document."""
    eos_token_ids: tuple[int, ...] = (1,)
    """Tokens that end a generation."""
    pad_token_id: int = 0
    """Filler, never seen by a real token."""

    def __post_init__(self):
        for name in ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_dim",
                     "sliding_window", "max_position_embeddings"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"model.num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise UserError(f"model.head_dim must be even for rotary positions, got {self.head_dim}")
        if not self.layer_types or set(self.layer_types) - {"local", "global"}:
            raise UserError(f"model.layer_types must be a sequence of 'local' and 'global', got {self.layer_types}")
        for name in ("query_pre_attn_scalar", "rope_theta", "norm_eps", "attn_logit_soft_cap", "final_logit_soft_cap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"model.{name} must be positive, got {value}")

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer; None = global."""
        return self.sliding_window if self.layer_types[layer % len(self.layer_types)] == "local" else None

    def num_parameters(self) -> int:
        """Parameters of the whole model, the embedding counted once (it is tied)."""
        attention = 2 * self.embed_dim * self.head_dim * (self.num_heads + self.num_kv_heads)
        layer = attention + 3 * self.embed_dim * self.hidden_dim + 4 * self.embed_dim
        return self.num_layers * layer + self.embed_dim + self.vocab_size * self.embed_dim

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward floating-point operations per token of a sequence; a training step takes three times as many."""
        return decoder_forward_flops_per_token(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            hidden_dim=self.hidden_dim,
            vocab_size=self.vocab_size,
            windows=[self.window(layer) for layer in range(self.num_layers)],
            sequence_length=sequence_length,
        )


class DecoderLayer(nnx.Module):
    """x + norm(attention(norm(x))), then x + norm(geglu(norm(x))): a norm on the way into and out of each sub-layer."""

    def __init__(self, config: Gemma2Config, layer: int, *, execution: Execution, rngs: nnx.Rngs):
        def norm():
            return RMSNorm(config.embed_dim, eps=config.norm_eps, execution=execution, rngs=rngs)

        self.pre_attention_norm = norm()
        self.attention = Attention(
            config.embed_dim,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            scale=config.query_pre_attn_scalar**-0.5,
            sliding_window=config.window(layer),
            logits_soft_cap=config.attn_logit_soft_cap,
            execution=execution,
            rngs=rngs,
        )
        self.post_attention_norm = norm()
        self.pre_ffw_norm = norm()
        self.mlp = GatedFeedForward(config.embed_dim, config.hidden_dim, execution=execution, rngs=rngs)
        self.post_ffw_norm = norm()

    def __call__(self, x, angles, positions, segment_ids, cache: LayerCache | None):
        attended, cache = self.attention(self.pre_attention_norm(x), angles, positions, segment_ids, cache)
        x = x + self.post_attention_norm(attended)
        with jax.named_scope("mlp"):
            x = x + self.post_ffw_norm(self.mlp(self.pre_ffw_norm(x)))
        return x, cache


class Gemma2(nnx.Module):
    """Tokens to logits; see `zoo.nn.stacking` for the two layouts of `layers`."""

    def __init__(self, config: Gemma2Config, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution()
        self.config, self.execution = config, execution
        self.embedder = Embedder(config.vocab_size, config.embed_dim, execution=execution, rngs=rngs)
        self.layers = build_layers(
            lambda position, rngs: DecoderLayer(config, position, execution=execution, rngs=rngs),
            config.num_layers,
            len(config.layer_types),
            execution=execution,
            rngs=rngs,
        )
        self.final_norm = RMSNorm(config.embed_dim, eps=config.norm_eps, execution=execution, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        positions: Int[Array, "b t"] | None = None,
        segment_ids: Int[Array, "b t"] | None = None,
        media: None = None,
        cache: Cache | None = None,
    ) -> Float[Array, "b t v"] | tuple[Float[Array, "b t v"], Cache]:
        """float32 logits of the next token; with a cache also the cache with these tokens in it.

        positions: default 0..T-1, with a cache the tokens after those it holds. Within a segment they rise by one per
        token. segment_ids: contiguous runs that do not see each other, 0 = padding. With a cache every row is one
        sequence, and prompts of unequal length are padded on the left.
        """
        hidden, new_cache = self._run(tokens, positions, segment_ids, media, cache)
        logits = self.logits(hidden)
        return logits if new_cache is None else (logits, new_cache)

    def hidden_states(
        self,
        tokens: Int[Array, "b t"],
        *,
        positions: Int[Array, "b t"] | None = None,
        segment_ids: Int[Array, "b t"] | None = None,
        media: None = None,
        cache: Cache | None = None,
    ) -> Float[Array, "b t d"] | tuple[Float[Array, "b t d"], Cache]:
        """Hidden states after the final norm, in the compute dtype; arguments as for the call."""
        hidden, new_cache = self._run(tokens, positions, segment_ids, media, cache)
        return hidden if new_cache is None else (hidden, new_cache)

    def _run(self, tokens, positions, segment_ids, media, cache) -> tuple[Float[Array, "b t d"], Cache | None]:
        if media is not None:
            raise ValueError("Gemma 2 reads text only: media must be None")
        if positions is None:
            start = 0 if cache is None else jnp.max(cache[0].cursor)
            positions = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        positions = jnp.broadcast_to(positions, tokens.shape)
        graphdef, state = nnx.split(self)

        def run(state, tokens, positions, segment_ids, cache):
            return nnx.merge(graphdef, state)._run_parts(tokens, positions, segment_ids, cache)

        # Positions and segments are whole rows: attention asks about keys of other devices.
        rows, whole = ("batch", "length"), ("batch", None)
        cache_axes: Any = None if cache is None else tuple(layer.axes for layer in cache)
        in_axes = (state_axes(state), rows, whole, None if segment_ids is None else whole, cache_axes)
        new_axes = None if cache is None else tuple(replace(layer, empty=False) for layer in cache_axes)
        out_axes = (("batch", "residual_length", None), new_axes)
        batch, length = tokens.shape
        sizes = {"batch": batch, "length": length, "residual_length": length}
        return spmd(run, in_axes, out_axes, sizes)(state, tokens, positions, segment_ids, cache)

    def _run_parts(self, tokens, positions, segment_ids, cache) -> tuple[Float[Array, "b t d"], Cache | None]:
        """`_run` on one device's part of the arrays; tokens of the residual stream come out."""
        with jax.named_scope("embed"):
            x = self.embedder.encode(tokens)
            own_positions = own_part(positions, "length", axis=1)
            angles = rope_angles(own_positions, self.config.head_dim, self.config.rope_theta)

        def apply(layer: DecoderLayer, x, layer_cache):
            return layer(x, angles, positions, segment_ids, layer_cache)

        x, new_cache = run_layers(self.layers, x, apply, cache, self.execution)
        return self.final_norm(x), new_cache

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """float32 logits, soft-capped, of hidden states after the final norm."""
        with jax.named_scope("logits"):
            return self.embedder.decode(hidden, self.config.final_logit_soft_cap)

    def output_embedding(self) -> Float[Array, "v d"]:
        """The output head (the tied embedding) in the compute dtype, for losses that work on parts of the logits."""
        return self.embedder.embedding[...].astype(self.execution.dtype)

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
        lead = (config.num_layers // len(config.layer_types),) if scanned else ()
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


GEMMA2_2B = Gemma2Config(
    vocab_size=256_000,
    embed_dim=2304,
    num_layers=26,
    num_heads=8,
    num_kv_heads=4,
    head_dim=256,
    hidden_dim=9216,
    query_pre_attn_scalar=256,
)
GEMMA2_9B = Gemma2Config(
    vocab_size=256_000,
    embed_dim=3584,
    num_layers=42,
    num_heads=16,
    num_kv_heads=8,
    head_dim=256,
    hidden_dim=14_336,
    query_pre_attn_scalar=256,
)
GEMMA2_27B = Gemma2Config(
    vocab_size=256_000,
    embed_dim=4608,
    num_layers=46,
    num_heads=32,
    num_kv_heads=16,
    head_dim=128,
    hidden_dim=36_864,
    query_pre_attn_scalar=144,
)
# The default run of `zoo.train`: minutes on two CPU cores.
GEMMA2_NANO = Gemma2Config(
    vocab_size=4096,
    embed_dim=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    hidden_dim=384,
    query_pre_attn_scalar=32,
    sliding_window=64,
    max_position_embeddings=256,
)
# 35.7M parameters: large enough to time, small enough for a laptop.
GEMMA2_MINI = Gemma2Config(
    vocab_size=8192,
    embed_dim=512,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    hidden_dim=2048,
    query_pre_attn_scalar=64,
    sliding_window=256,
    max_position_embeddings=1024,
)

# Instruction-tuned models have the same architecture; their turns end with <end_of_turn> = 107.
_TURN_ENDS = (1, 107)

PRESETS = {
    "gemma2-2b": GEMMA2_2B,
    "gemma2-2b-it": replace(GEMMA2_2B, eos_token_ids=_TURN_ENDS),
    "gemma2-9b": GEMMA2_9B,
    "gemma2-9b-it": replace(GEMMA2_9B, eos_token_ids=_TURN_ENDS),
    "gemma2-27b": GEMMA2_27B,
    "gemma2-27b-it": replace(GEMMA2_27B, eos_token_ids=_TURN_ENDS),
    "gemma2-nano": GEMMA2_NANO,
    "gemma2-mini": GEMMA2_MINI,
}
