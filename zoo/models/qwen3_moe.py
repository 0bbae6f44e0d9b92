"""Qwen3-MoE (arXiv 2505.09388): 128 small experts, eight of them per token, and norms of queries and keys.

Like Mixtral (`zoo.models.sparse_decoder`), but that queries and keys are normed before they are rotated, that some
layers may be dense, and that the weights of a token's experts are renormalised only by `routing`. Presets at the
bottom.
"""

from dataclasses import dataclass
from typing import Any

from flax import nnx

from zoo.errors import UserError
from zoo.models.decoder import check_sizes
from zoo.models.mixtral import mixtral_experts
from zoo.models.sparse_decoder import SparseDecoder, SparseDecoderConfig, check_window
from zoo.nn import Attention, GatedFeedForward, SparseFeedForward


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(SparseDecoderConfig):
    """Architecture of a Qwen3-MoE model. `experts.routing` "softmax_topk_renormalised" is `norm_topk_prob`,
    "softmax_topk" is without."""

    hidden_dim: int
    """Width of gate and up of a dense layer, each; of no account where there is none."""
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

    def __post_init__(self):
        check_sizes(self, "hidden_dim")
        if not self.layer_kinds or set(self.layer_kinds) - {"sparse", "dense"} or "sparse" not in self.layer_kinds:
            raise UserError(
                f"model.layer_kinds must hold 'sparse' and perhaps 'dense', at least one 'sparse': {self.layer_kinds}"
            )
        check_window(self.sliding_window)

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

    def _extra_attention_parameters(self) -> int:
        return 2 * self.head_dim

    def _dense_hidden_dim(self) -> int:
        return self.hidden_dim


class Qwen3Moe(SparseDecoder):
    """Tokens to logits; see `Decoder`."""

    config: Qwen3MoeConfig

    def make_attention(self, position: int, *, rngs: nnx.Rngs, **options) -> Attention:
        """With norms of queries and keys."""
        return super().make_attention(position, rngs=rngs, qk_norm_eps=self.config.norm_eps, **options)

    def make_feed_forward(self, position: int, *, rngs: nnx.Rngs) -> SparseFeedForward | GatedFeedForward:
        """Sparse or dense."""
        config, execution = self.config, self.execution
        if config.is_sparse(position):
            return super().make_feed_forward(position, rngs=rngs)
        return GatedFeedForward(config.embed_dim, config.hidden_dim, activation="silu", execution=execution, rngs=rngs)


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
