"""gpt-oss (arXiv 2508.10925): sparse layers, windows of 128 in every other layer, attention sinks, YaRN, biases.

Like Mixtral (`zoo.models.mixtral`), but that the router takes its softmax after the choice, that experts are clipped
SwiGLU with biases, that attention has biases and a learned sink per head, and that RoPE is stretched by YaRN.
Presets at the bottom.
"""

from dataclasses import dataclass, replace

from flax import nnx

from zoo.errors import UserError
from zoo.models.mixtral import SparseDecoder, SparseDecoderLayer, check_sizes
from zoo.nn import rope_angles
from zoo.nn.experts import ExpertsConfig, SparseFeedForward
from zoo.nn.rope import YarnScaling
from zoo.training.mfu import decoder_forward_flops_per_token


@dataclass(frozen=True)
class GptOssConfig:
    """Architecture of a gpt-oss model."""

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
    bos_token_id: int | None = None
    """Token before every document; None = none."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a generation."""
    pad_token_id: int = 0
    """Filler, never seen by a real token."""

    def __post_init__(self):
        check_sizes(self, "sliding_window")
        if not self.layer_types or set(self.layer_types) - {"local", "global"}:
            raise UserError(f"model.layer_types must be a sequence of 'local' and 'global', got {self.layer_types}")

    @property
    def final_logit_soft_cap(self) -> None:
        """Logits have no cap."""
        return None

    @property
    def pattern_length(self) -> int:
        """Layers of the repeating unit."""
        return len(self.layer_types)

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer; None = global."""
        return self.sliding_window if self.layer_types[layer % len(self.layer_types)] == "local" else None

    def num_parameters(self) -> int:
        """Parameters of the whole model, embedding and head counted each."""
        return self._parameters(self.experts.num_parameters(self.embed_dim))

    def num_active_parameters(self) -> int:
        """Parameters that one token uses, embedding and head counted each."""
        return self._parameters(self.experts.num_active_parameters(self.embed_dim))

    def _parameters(self, experts: int) -> int:
        width, heads, kv_heads = self.embed_dim, self.num_heads, self.num_kv_heads
        matrices = 2 * width * self.head_dim * (heads + kv_heads)
        biases_and_sinks = self.head_dim * (heads + 2 * kv_heads) + width + heads
        layer = matrices + biases_and_sinks + experts + 2 * width
        return self.num_layers * layer + width + 2 * self.vocab_size * width

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


class GptOss(SparseDecoder):
    """Tokens to logits; see `Decoder`."""

    config: GptOssConfig

    def rotary(self, positions):
        """Sine and cosine of YaRN's angles."""
        config = self.config
        return rope_angles(positions, config.head_dim, config.rope_theta, config.rope_scaling)

    def _layer(self, layer: int, *, rngs: nnx.Rngs) -> nnx.Module:
        config, execution = self.config, self.execution
        attention = self._attention(layer, rngs=rngs, bias=True, sinks=True)
        mlp = SparseFeedForward(config.embed_dim, config.experts, execution=execution, rngs=rngs)
        return SparseDecoderLayer(config, attention, mlp, execution=execution, rngs=rngs)


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
