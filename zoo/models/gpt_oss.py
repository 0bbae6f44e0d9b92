"""gpt-oss (arXiv 2508.10925): sparse layers, windows of 128 in every other layer, attention sinks, YaRN, biases.

Like Mixtral (`zoo.models.sparse_decoder`), but that the router takes its softmax after the choice, that experts are
clipped SwiGLU with biases, that attention has biases and a learned sink per head, and that RoPE is stretched by YaRN.
Presets at the bottom.
"""

from dataclasses import dataclass, replace

from flax import nnx

from zoo.models.decoder import check_layer_types, check_sizes
from zoo.models.sparse_decoder import SparseDecoder, SparseDecoderConfig
from zoo.nn import Attention, ExpertsConfig, rope_angles
from zoo.nn.rope import YarnScaling


@dataclass(frozen=True, kw_only=True)
class GptOssConfig(SparseDecoderConfig):
    """Architecture of a gpt-oss model."""

    sliding_window: int = 128
    """Keys that a query of a local layer sees, its own position included."""
    layer_types: tuple[str, ...] = ("local", "global")
    """The repeating pattern: layer i is layer_types[i % len]."""
    rope_theta: float = 150_000.0
    """Base of the rotary frequencies."""
    rope_scaling: YarnScaling | None = YarnScaling(32.0, 4096, truncate=False)
    """How the frequencies are stretched; None = not at all."""
    norm_eps: float = 1e-5
    """Added to the mean square in every norm."""
    max_position_embeddings: int = 131_072
    """Context length the model was trained for."""

    def __post_init__(self):
        check_sizes(self, "sliding_window")
        check_layer_types(self.layer_types)

    @property
    def pattern_length(self) -> int:
        """Layers of the repeating unit."""
        return len(self.layer_types)

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer; None = global."""
        return self.sliding_window if self.layer_types[layer % len(self.layer_types)] == "local" else None

    def _extra_attention_parameters(self) -> int:
        """Biases of queries, keys, values and output, and the sinks."""
        return self.head_dim * (self.num_heads + 2 * self.num_kv_heads) + self.embed_dim + self.num_heads


class GptOss(SparseDecoder):
    """Tokens to logits; see `Decoder`."""

    config: GptOssConfig

    def rotary(self, positions):
        """Sine and cosine of YaRN's angles."""
        config = self.config
        return rope_angles(positions, config.head_dim, config.rope_theta, config.rope_scaling)

    def make_attention(self, position: int, *, rngs: nnx.Rngs, **options) -> Attention:
        """With biases and sinks."""
        return super().make_attention(position, rngs=rngs, bias=True, sinks=True, **options)


def gpt_oss_experts(num_experts: int, experts_per_token: int, hidden_dim: int, balancing: float = 0.001):
    """gpt-oss's kind of experts: top-k, then softmax of the chosen logits; clipped SwiGLU; biases everywhere."""
    return ExpertsConfig(
        num_experts,
        experts_per_token,
        hidden_dim,
        routing="topk_softmax",
        activation="clipped_swiglu",
        router_bias=True,
        expert_bias=True,
        load_balancing_coefficient=balancing,
        router_z_coefficient=0.0,
    )


# arXiv 2508.10925, table 1 and config.json; 20.9 and 116.8 billion parameters. Answers end with <|return|> = 200002.
GPT_OSS_20B = GptOssConfig(
    vocab_size=201_088,
    embed_dim=2880,
    num_layers=24,
    num_heads=64,
    num_kv_heads=8,
    head_dim=64,
    experts=gpt_oss_experts(32, 4, 2880, balancing=0.9),
    eos_token_ids=(200_002,),
    pad_token_id=199_999,
)
GPT_OSS_120B = replace(GPT_OSS_20B, num_layers=36, experts=gpt_oss_experts(128, 4, 2880, balancing=0.9))

PRESETS = {"gpt-oss-20b": GPT_OSS_20B, "gpt-oss-120b": GPT_OSS_120B}
