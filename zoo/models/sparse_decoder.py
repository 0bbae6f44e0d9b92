"""What the sparse decoders of Mixtral's kind share: their sizes, their layer, an output head of their own.

x = E[token]
for each layer:  x = x + attention(norm(x));  x = x + ffn(norm(x))        ffn: experts, or dense
logits = norm(x) . W^T
"""

from dataclasses import dataclass

import jax
from flax import nnx

from zoo.errors import UserError
from zoo.models.decoder import Decoder, LayerContext, check_sizes, decoder_flops
from zoo.nn import Attention, Execution, ExpertsConfig, GatedFeedForward, LayerCache, RMSNorm, SparseFeedForward


@dataclass(frozen=True, kw_only=True)
class SparseDecoderConfig:
    """Architecture of a sparse decoder; what it has besides is in the subclass."""

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
    """The sparse feed-forward layers."""
    rope_theta: float
    """Base of the rotary frequencies."""
    norm_eps: float
    """Added to the mean square in every norm."""
    max_position_embeddings: int
    """Context length the model was trained for."""
    bos_token_id: int | None = None
    """Token before every document; None = none."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a generation."""
    pad_token_id: int = 0
    """Filler, never seen by a real token."""

    def __post_init__(self):
        check_sizes(self)

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
        return None

    @property
    def num_sparse_layers(self) -> int:
        """Layers that are a mixture of experts."""
        return self.num_layers

    def num_parameters(self) -> int:
        """Parameters of the whole model, embedding and head counted each."""
        return self._parameters(self.experts.num_parameters(self.embed_dim))

    def num_active_parameters(self) -> int:
        """Parameters that one token uses, embedding and head counted each."""
        return self._parameters(self.experts.num_active_parameters(self.embed_dim))

    def _parameters(self, experts: int) -> int:
        attention = 2 * self.embed_dim * self.head_dim * (self.num_heads + self.num_kv_heads)
        layers = self.num_layers * (attention + self._extra_attention_parameters() + 2 * self.embed_dim)
        dense = (self.num_layers - self.num_sparse_layers) * 3 * self.embed_dim * self._dense_hidden_dim()
        return layers + self.num_sparse_layers * experts + dense + self.embed_dim * (1 + 2 * self.vocab_size)

    def _extra_attention_parameters(self) -> int:
        """Parameters of a layer's attention besides its four matrices."""
        return 0

    def _dense_hidden_dim(self) -> int:
        """Width of gate and up of a layer that is not sparse, each."""
        return 0

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward floating-point operations per token of a sequence; a training step takes three times as many."""
        sparse = self.num_sparse_layers * self.experts.flops_per_token(self.embed_dim)
        dense = (self.num_layers - self.num_sparse_layers) * 6 * self.embed_dim * self._dense_hidden_dim()
        return decoder_flops(self, sequence_length, hidden_dim=0) + sparse + dense


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
    """Tokens to logits with an output head of its own; see `Decoder`. Subclasses say what their attention has."""

    def __init__(self, config, *, execution: Execution | None = None, rngs: nnx.Rngs):
        super().__init__(config, scaled=False, tied=False, execution=execution, rngs=rngs)

    @property
    def has_experts(self) -> bool:
        """Layers give statistics of their routers."""
        return True

    def make_layer(self, position: int, *, rngs: nnx.Rngs) -> nnx.Module:
        """The layer at a place of the repeating unit."""
        config, execution = self.config, self.execution
        attention = self.make_attention(position, rngs=rngs)
        mlp = self.make_feed_forward(position, rngs=rngs)
        return SparseDecoderLayer(config, attention, mlp, execution=execution, rngs=rngs)

    def make_attention(self, position: int, *, rngs: nnx.Rngs, **options) -> Attention:
        """The attention of that layer; `options` are those of `Attention`."""
        config = self.config
        return Attention(
            config.embed_dim,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            scale=config.head_dim**-0.5,
            sliding_window=config.window(position),
            logits_soft_cap=None,
            execution=self.execution,
            rngs=rngs,
            **options,
        )

    def make_feed_forward(self, position: int, *, rngs: nnx.Rngs) -> SparseFeedForward | GatedFeedForward:
        """The feed-forward of that layer."""
        return SparseFeedForward(self.config.embed_dim, self.config.experts, execution=self.execution, rngs=rngs)

    def make_norm(self, *, rngs: nnx.Rngs) -> RMSNorm:
        """The norm before the output head."""
        return plain_norm(self.config, execution=self.execution, rngs=rngs)


def check_window(window: int | None) -> None:
    """Raises `UserError` for a sliding window that sees nothing."""
    if window is not None and window < 1:
        raise UserError(f"model.sliding_window must be at least 1, got {window}")
