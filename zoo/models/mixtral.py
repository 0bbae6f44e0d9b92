"""Mixtral (arXiv 2401.04088): every feed-forward layer is a sparse mixture of eight experts, two of them per token.

    x = E[token]
    for each layer:  x = x + attention(norm(x));  x = x + experts(norm(x))
    logits = norm(x) . W^T

The decoder layer here is also Qwen3-MoE's and gpt-oss's, whose files say what they add. Presets at the bottom.
"""

from dataclasses import dataclass

import jax
from flax import nnx

from zoo.errors import UserError
from zoo.models.decoder import Decoder, LayerContext
from zoo.nn import Attention, Embedder, Execution, LayerCache, RMSNorm, build_layers
from zoo.nn.experts import ExpertsConfig, SparseFeedForward
from zoo.nn.feed_forward import GatedFeedForward
from zoo.training.mfu import decoder_forward_flops_per_token


def check_sizes(config, *more: str) -> None:
    """Raises `UserError` for sizes that no model has."""
    for name in ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                 "max_position_embeddings", *more):  # fmt: skip
        if getattr(config, name) < 1:
            raise UserError(f"model.{name} must be at least 1, got {getattr(config, name)}")
    if config.num_heads % config.num_kv_heads:
        raise UserError(f"model.num_heads={config.num_heads} is not a multiple of num_kv_heads={config.num_kv_heads}")
    if config.head_dim % 2:
        raise UserError(f"model.head_dim must be even for rotary positions, got {config.head_dim}")
    for name in ("rope_theta", "norm_eps"):
        if not getattr(config, name) > 0:
            raise UserError(f"model.{name} must be positive, got {getattr(config, name)}")


@dataclass(frozen=True)
class MixtralConfig:
    """Architecture of a Mixtral model."""

    vocab_size: int
    """Rows of the embedding and of the output head."""
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
    experts: ExpertsConfig
    """The sparse feed-forward of every layer."""
    sliding_window: int | None = None
    """Keys that a query sees, its own position included, in every layer; None = all (the released models)."""
    rope_theta: float = 1_000_000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-5
    """Added to the mean square in every norm."""
    max_position_embeddings: int = 32_768
    """Context length the model was trained for."""
    bos_token_id: int | None = 1
    """Token before every document; None = none."""
    eos_token_ids: tuple[int, ...] = (2,)
    """Tokens that end a generation."""
    pad_token_id: int = 0
    """Filler, never seen by a real token."""

    def __post_init__(self):
        check_sizes(self)
        if self.sliding_window is not None and self.sliding_window < 1:
            raise UserError(f"model.sliding_window must be at least 1, got {self.sliding_window}")

    @property
    def final_logit_soft_cap(self) -> None:
        """Logits have no cap."""
        return None

    @property
    def pattern_length(self) -> int:
        """Layers of the repeating unit."""
        return 1

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer; None = global."""
        return self.sliding_window

    def num_parameters(self) -> int:
        """Parameters of the whole model, embedding and head counted each."""
        return self._parameters(self.experts.num_parameters(self.embed_dim))

    def num_active_parameters(self) -> int:
        """Parameters that one token uses, embedding and head counted each."""
        return self._parameters(self.experts.num_active_parameters(self.embed_dim))

    def _parameters(self, experts: int) -> int:
        attention = 2 * self.embed_dim * self.head_dim * (self.num_heads + self.num_kv_heads)
        layer = attention + experts + 2 * self.embed_dim
        return self.num_layers * layer + self.embed_dim + 2 * self.vocab_size * self.embed_dim

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward floating-point operations per token of a sequence; a training step takes three times as many."""
        return decoder_forward_flops_per_token(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            hidden_dim=self.experts.active_hidden_dim,
            vocab_size=self.vocab_size,
            windows=[self.window(layer) for layer in range(self.num_layers)],
            sequence_length=sequence_length,
            router_experts=self.experts.num_experts,
        )


class SparseDecoderLayer(nnx.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)); norms multiply with their scale, `mlp` is sparse or dense."""

    def __init__(
        self, config, attention: Attention, mlp: SparseFeedForward | GatedFeedForward, *, execution, rngs: nnx.Rngs
    ):
        self.pre_attention_norm = plain_norm(config, execution=execution, rngs=rngs)
        self.attention = attention
        self.pre_ffw_norm = plain_norm(config, execution=execution, rngs=rngs)
        self.mlp = mlp

    def __call__(self, x, context: LayerContext, cache: LayerCache | None):
        attended, cache = self.attention(
            self.pre_attention_norm(x), context.angles, context.positions, context.segment_ids, cache
        )
        x = x + attended
        statistics = None
        with jax.named_scope("mlp"):
            normed = self.pre_ffw_norm(x)
            if isinstance(self.mlp, SparseFeedForward):
                y, statistics = self.mlp(normed, context.token_mask, context.rng)
            else:
                y = self.mlp(normed)
        return x + y, cache, statistics


def plain_norm(config, *, execution: Execution, rngs: nnx.Rngs) -> RMSNorm:
    """x / rms(x) * scale over the model's width."""
    return RMSNorm(config.embed_dim, eps=config.norm_eps, zero_centred=False, execution=execution, rngs=rngs)


class SparseDecoder(Decoder):
    """Tokens to logits with an output head of its own; see `Decoder`. Subclasses make the layers."""

    def __init__(self, config, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution()
        self.config, self.execution = config, execution
        self.embedder = Embedder(
            config.vocab_size, config.embed_dim, scaled=False, tied=False, execution=execution, rngs=rngs
        )
        self.layers = build_layers(
            lambda position, rngs: self._layer(position, rngs=rngs),
            config.num_layers,
            config.pattern_length,
            execution=execution,
            rngs=rngs,
        )
        self.final_norm = plain_norm(config, execution=execution, rngs=rngs)

    @property
    def has_experts(self) -> bool:
        """Layers give statistics of their routers."""
        return True

    def _layer(self, layer: int, *, rngs: nnx.Rngs) -> nnx.Module:
        """The layer at a place of the repeating unit."""
        raise NotImplementedError

    def _attention(self, layer: int, *, rngs: nnx.Rngs, **options) -> Attention:
        config = self.config
        return Attention(
            config.embed_dim,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            scale=config.head_dim**-0.5,
            sliding_window=config.window(layer),
            logits_soft_cap=None,
            execution=self.execution,
            rngs=rngs,
            **options,
        )


class Mixtral(SparseDecoder):
    """Tokens to logits; see `Decoder`."""

    config: MixtralConfig

    def _layer(self, layer: int, *, rngs: nnx.Rngs) -> nnx.Module:
        config, execution = self.config, self.execution
        attention = self._attention(layer, rngs=rngs)
        mlp = SparseFeedForward(config.embed_dim, config.experts, execution=execution, rngs=rngs)
        return SparseDecoderLayer(config, attention, mlp, execution=execution, rngs=rngs)


def mixtral_experts(num_experts: int, experts_per_token: int, hidden_dim: int, balancing: float = 0.02, **options):
    """Mixtral's kind of experts: softmax, top-k, renormalised; SwiGLU; no router z-loss. The balancing coefficient is
    that of the released config.json (router_aux_loss_coef)."""
    return ExpertsConfig(
        num_experts,
        experts_per_token,
        hidden_dim,
        routing="softmax_topk_renormalised",
        activation="silu",
        load_balancing_coefficient=balancing,
        router_z_coefficient=0.0,
        **options,
    )


# arXiv 2401.04088, table 1; 46.7 billion parameters, 12.9 of them active.
MIXTRAL_8X7B = MixtralConfig(
    vocab_size=32_000,
    embed_dim=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    experts=mixtral_experts(8, 2, 14_336),
)
# config.json of Mixtral-8x22B-v0.1; 140.6 billion parameters, 39 of them active.
MIXTRAL_8X22B = MixtralConfig(
    vocab_size=32_000,
    embed_dim=6144,
    num_layers=56,
    num_heads=48,
    num_kv_heads=8,
    head_dim=128,
    experts=mixtral_experts(8, 2, 16_384, balancing=0.001),
    max_position_embeddings=65_536,
)

PRESETS = {"mixtral-8x7b": MIXTRAL_8X7B, "mixtral-8x22b": MIXTRAL_8X22B}
