"""Gemma 2 (arXiv 2408.00118): local and global layers in turn, soft-caps, pre- and post-norms, grouped queries, GeGLU.

    x = E[token] * sqrt(D)
    for each layer:  x = x + norm(attention(norm(x)));  x = x + norm(geglu(norm(x)))
    logits = c * tanh(norm(x) . E^T / c)

Presets at the bottom: sizes of the report's tables 1-3, and small ones for one CPU.
"""

from dataclasses import dataclass, replace

import jax
from flax import nnx

from zoo.models.decoder import (
    Decoder,
    LayerContext,
    check_layer_types,
    check_positive,
    check_sizes,
    decoder_flops,
)
from zoo.nn import Attention, Execution, GatedFeedForward, LayerCache, RMSNorm


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
        check_sizes(self, "hidden_dim", "sliding_window")
        check_layer_types(self.layer_types)
        check_positive(self, "query_pre_attn_scalar", "attn_logit_soft_cap", "final_logit_soft_cap")

    @property
    def pattern_length(self) -> int:
        """Layers of the repeating unit."""
        return len(self.layer_types)

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
        return decoder_flops(self, sequence_length, hidden_dim=self.hidden_dim)


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

    def __call__(self, x, context: LayerContext, cache: LayerCache | None):
        attended, cache = self.attention(
            self.pre_attention_norm(x), context.angles, context.positions, context.segment_ids, cache
        )
        x = x + self.post_attention_norm(attended)
        with jax.named_scope("mlp"):
            x = x + self.post_ffw_norm(self.mlp(self.pre_ffw_norm(x)))
        return x, cache, None


class Gemma2(Decoder):
    """Tokens to logits; see `Decoder`."""

    config: Gemma2Config

    def make_layer(self, position: int, *, rngs: nnx.Rngs) -> DecoderLayer:
        """The layer at a place of the repeating unit."""
        return DecoderLayer(self.config, position, execution=self.execution, rngs=rngs)


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
# Arithmetic after training: seconds for a few hundred steps on one CPU core.
GEMMA2_PICO = Gemma2Config(
    vocab_size=320,
    embed_dim=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_dim=256,
    query_pre_attn_scalar=16,
    sliding_window=64,
    max_position_embeddings=128,
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
    "gemma2-pico": GEMMA2_PICO,
    "gemma2-mini": GEMMA2_MINI,
}
