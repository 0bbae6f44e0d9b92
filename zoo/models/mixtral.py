"""Mixtral (arXiv 2401.04088): every feed-forward layer is a sparse mixture of eight experts, two of them per token.

The model is that of `zoo.models.sparse_decoder`. Presets at the bottom.
"""

from dataclasses import dataclass

from zoo.models.sparse_decoder import SparseDecoder, SparseDecoderConfig, check_window
from zoo.nn import ExpertsConfig


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(SparseDecoderConfig):
    """Architecture of a Mixtral model."""

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

    def __post_init__(self):
        super().__post_init__()
        check_window(self.sliding_window)

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer; None = global."""
        return self.sliding_window


class Mixtral(SparseDecoder):
    """Tokens to logits; see `Decoder`."""

    config: MixtralConfig


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
