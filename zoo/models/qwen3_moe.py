"""Qwen3-MoE (arXiv 2505.09388): 128 small experts, eight of them per token, and norms of queries and keys.

Like Mixtral (`zoo.models.mixtral`), but that queries and keys are normed before they are rotated, that some layers may
be dense, and that the weights of a token's experts are renormalised only by `routing`. Presets at the bottom.
"""

from dataclasses import dataclass
from typing import Any

from flax import nnx

from zoo.errors import UserError
from zoo.models.mixtral import SparseDecoder, SparseDecoderLayer, check_sizes, mixtral_experts
from zoo.nn.experts import ExpertsConfig, SparseFeedForward
from zoo.nn.feed_forward import GatedFeedForward
from zoo.training.mfu import decoder_forward_flops_per_token


@dataclass(frozen=True)
class Qwen3MoeConfig:
    """Architecture of a Qwen3-MoE model."""

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
    hidden_dim: int
    """Width of gate and up of a dense layer, each; of no account where there is none."""
    experts: ExpertsConfig
    """The sparse feed-forward; routing "softmax_topk_renormalised" is `norm_topk_prob`, "softmax_topk" is without."""
    layer_kinds: tuple[str, ...] = ("sparse",)
    """The repeating pattern of "sparse" and "dense" layers (decoder_sparse_step, mlp_only_layers)."""
    sliding_window: int | None = None
    """Keys that a query sees, its own position included, in every layer; None = all (the released models)."""
    rope_theta: float = 1_000_000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-6
    """Added to the mean square in every norm."""
    max_position_embeddings: int = 40_960
    """Context length the model was trained for."""
    bos_token_id: int | None = None
    """Token before every document; None = none."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a generation."""
    pad_token_id: int = 0
    """Filler, never seen by a real token."""

    def __post_init__(self):
        check_sizes(self, "hidden_dim")
        if not self.layer_kinds or set(self.layer_kinds) - {"sparse", "dense"} or "sparse" not in self.layer_kinds:
            raise UserError(
                f"model.layer_kinds must hold 'sparse' and perhaps 'dense', at least one 'sparse': {self.layer_kinds}"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise UserError(f"model.sliding_window must be at least 1, got {self.sliding_window}")

    @property
    def final_logit_soft_cap(self) -> None:
        """Logits have no cap."""
        return None

    @property
    def pattern_length(self) -> int:
        """Layers of the repeating unit."""
        return len(self.layer_kinds)

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer; None = global."""
        return self.sliding_window

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer is a mixture of experts."""
        return self.layer_kinds[layer % len(self.layer_kinds)] == "sparse"

    @property
    def num_sparse_layers(self) -> int:
        """Layers that are a mixture of experts."""
        return sum(map(self.is_sparse, range(self.num_layers)))

    def num_parameters(self) -> int:
        """Parameters of the whole model, embedding and head counted each."""
        return self._parameters(self.experts.num_parameters(self.embed_dim))

    def num_active_parameters(self) -> int:
        """Parameters that one token uses, embedding and head counted each."""
        return self._parameters(self.experts.num_active_parameters(self.embed_dim))

    def _parameters(self, experts: int) -> int:
        attention = 2 * self.embed_dim * self.head_dim * (self.num_heads + self.num_kv_heads) + 2 * self.head_dim
        dense = (self.num_layers - self.num_sparse_layers) * 3 * self.embed_dim * self.hidden_dim
        layers = self.num_layers * (attention + 2 * self.embed_dim) + self.num_sparse_layers * experts + dense
        return layers + self.embed_dim + 2 * self.vocab_size * self.embed_dim

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward floating-point operations per token of a sequence; a training step takes three times as many."""
        without = decoder_forward_flops_per_token(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            hidden_dim=0,
            vocab_size=self.vocab_size,
            windows=[self.window(layer) for layer in range(self.num_layers)],
            sequence_length=sequence_length,
        )
        dense = 6 * self.embed_dim * self.hidden_dim * (self.num_layers - self.num_sparse_layers)
        return without + dense + self.num_sparse_layers * self.experts.flops_per_token(self.embed_dim)


class Qwen3Moe(SparseDecoder):
    """Tokens to logits; see `Decoder`."""

    config: Qwen3MoeConfig

    def _layer(self, layer: int, *, rngs: nnx.Rngs) -> nnx.Module:
        config, execution = self.config, self.execution
        attention = self._attention(layer, rngs=rngs, qk_norm_eps=config.norm_eps)
        if config.is_sparse(layer):
            mlp = SparseFeedForward(config.embed_dim, config.experts, execution=execution, rngs=rngs)
        else:
            mlp = GatedFeedForward(
                config.embed_dim, config.hidden_dim, activation="silu", execution=execution, rngs=rngs
            )
        return SparseDecoderLayer(config, attention, mlp, execution=execution, rngs=rngs)


# Turns end with <|im_end|> = 151645, documents with <|endoftext|> = 151643.
_SPECIAL: dict[str, Any] = {"bos_token_id": 151_643, "eos_token_ids": (151_645, 151_643), "pad_token_id": 151_643}

# config.json of Qwen3-30B-A3B and Qwen3-235B-A22B; 30.5 and 235.1 billion parameters, 3.3 and 22.2 of them active.
QWEN3_30B_A3B = Qwen3MoeConfig(
    vocab_size=151_936,
    embed_dim=2048,
    num_layers=48,
    num_heads=32,
    num_kv_heads=4,
    head_dim=128,
    hidden_dim=6144,
    experts=mixtral_experts(128, 8, 768, balancing=0.001),
    **_SPECIAL,
)
QWEN3_235B_A22B = Qwen3MoeConfig(
    vocab_size=151_936,
    embed_dim=4096,
    num_layers=94,
    num_heads=64,
    num_kv_heads=4,
    head_dim=128,
    hidden_dim=12_288,
    experts=mixtral_experts(128, 8, 1536, balancing=0.001),
    **_SPECIAL,
)

PRESETS = {"qwen3-30b-a3b": QWEN3_30B_A3B, "qwen3-235b-a22b": QWEN3_235B_A22B}
