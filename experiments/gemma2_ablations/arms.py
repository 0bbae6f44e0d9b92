"""What is compared: one Gemma 2 model, and the same with one choice changed at equal parameters."""

import dataclasses
from dataclasses import dataclass

from zoo.models.gemini import GeminiConfig

BASE, MULTI_HEAD, WIDE, DEEP = "gemma 2", "full multi-head attention", "wide", "deep"
NO_CAPS, PRE_NORMS, GELU = "no soft-caps", "pre-norms only", "gelu"

CHANGES: dict[str, dict] = {
    BASE: {},
    MULTI_HEAD: {"num_kv_heads": 4},
    WIDE: {"num_layers": 4, "embed_dim": 160},
    DEEP: {"num_layers": 12, "embed_dim": 96},
    NO_CAPS: {"attn_logit_soft_cap": None, "final_logit_soft_cap": None},
    PRE_NORMS: {"post_norms": False},
    GELU: {"gated": False},
}
"""How each arm differs; the feed-forward width follows from equal parameters."""


@dataclass(frozen=True)
class Workload:
    """Sizes of one invocation."""

    embed_dim: int = 128
    """Model width of the base."""
    num_layers: int = 6
    """Layers of the base, local and global in turn."""
    hidden_dim: int = 384
    """Feed-forward width of the base."""
    vocab_size: int = 512
    """Tokens."""
    sequence_length: int = 128
    """T."""
    sliding_window: int = 64
    """Keys that a local layer sees in training."""


FULL = Workload()


def model_of(arm: str, workload: Workload) -> GeminiConfig:
    """The architecture of an arm: its parameters without the embedding are those of the base, to the nearest
    feed-forward width."""
    base = GeminiConfig(
        vocab_size=workload.vocab_size,
        embed_dim=workload.embed_dim,
        num_layers=workload.num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        hidden_dim=workload.hidden_dim,
        sliding_window=workload.sliding_window,
        attn_logit_soft_cap=50.0,
        final_logit_soft_cap=30.0,
        max_position_embeddings=workload.sequence_length,
    )
    changed = dataclasses.replace(base, **CHANGES[arm])
    matrices = 3 if changed.gated else 2
    per_width = matrices * changed.num_layers * changed.embed_dim
    rest = body_parameters(changed) - per_width * changed.hidden_dim
    return dataclasses.replace(changed, hidden_dim=round((body_parameters(base) - rest) / per_width))


def body_parameters(model: GeminiConfig) -> int:
    """Parameters without the embedding."""
    return model.num_parameters() - model.vocab_size * model.embed_dim
