"""What a Gemini model is made of; the model itself is in `zoo.models.gemini`."""

import math
from dataclasses import dataclass
from typing import Literal

from zoo.errors import UserError
from zoo.models.decoder import check_layer_types, check_positive, check_sizes, decoder_flops
from zoo.models.gemma3n_audio import Gemma3nAudioConfig
from zoo.models.siglip import SiglipConfig
from zoo.nn import ExpertsConfig
from zoo.nn.rope import RopeScaling


@dataclass(frozen=True)
class GeminiConfig:
    """Architecture of a Gemini model."""

    vocab_size: int
    """Rows of the embedding: words, media tokens and image codes (`zoo.data.MediaVocabulary`). Not published; 256k
    words as in Gemma."""
    embed_dim: int
    """Model width D. Not published."""
    num_layers: int
    """Decoder layers. Not published."""
    num_heads: int
    """Query heads N. Not published."""
    head_dim: int
    """Width H of one head. Not published; 128 or 256 as in Gemma 2."""
    hidden_dim: int
    """Width of gate and up of a dense feed-forward layer, each. Not published."""
    num_kv_heads: int = 1
    """Key/value heads K: 1 is multi-query attention (Gemini 1.0, section 2)."""
    sliding_window: int = 4096
    """Keys that a query of a local layer sees, its own position included. Not published; as in Gemma 2."""
    layer_types: tuple[str, ...] = ("local", "global")
    """The repeating pattern: layer i is layer_types[i % len]. Not published; as in Gemma 2."""
    block: Literal["serial", "parallel"] = "serial"
    """Sub-layers one after the other, or both on the same normed input (1.5 Flash; formula as in PaLM, arXiv
    2204.02311, section 2)."""
    gated: bool = True
    """Dense feed-forward layers: True = GeGLU, False = down(gelu(up(x))) without a gate, for comparisons with it. Not
    published; True as in Gemma 2."""
    post_norms: bool = True
    """Norms on the way out of sub-layers, too. Not published; as in Gemma 2."""
    attn_logit_soft_cap: float | None = None
    """c of the attention scores' c * tanh(s / c). Not published; as in Gemma 3 (none) or Gemma 2 (50)."""
    final_logit_soft_cap: float | None = 30.0
    """c of the output logits. Not published; as in Gemma 2."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies, of global layers unless global_rope_theta says otherwise. Not published; as in
    Gemma 2."""
    global_rope: bool = True
    """Whether global layers rotate queries and keys; without, they see content only and carry over to longer
    sequences. Not published; True as in Gemma 2, False as in Command A (arXiv 2504.00698, section 2.1)."""
    global_rope_theta: float | None = None
    """Base of global layers; None = rope_theta. Gemma 3 (arXiv 2503.19786, section 2) has 1M there and 10k in local
    layers; its config.json calls the two rope_theta and rope_local_base_freq."""
    global_rope_scaling: RopeScaling | None = None
    """How the frequencies of global layers are stretched, as config.json's rope_scaling of Gemma 3: linear, YaRN or
    Llama 3's; None = not at all."""
    norm_eps: float = 1e-6
    """Added to the mean square in every norm. Not published; as in Gemma 2."""
    experts: ExpertsConfig | None = None
    """Sparse layers (1.5 Pro); None = all dense. Not published beyond "sparse mixture-of-experts"."""
    experts_every: int = 1
    """Every n-th layer is sparse, the last of each n. Not published; 1 as in Mixtral, 2 as in GShard and GLaM."""
    vision: SiglipConfig | None = None
    """Image encoder; None = reads no images. Not published; SigLIP as in Gemma 3."""
    vision_merge: int = 2
    """merge x merge patches become one soft token. Not published; average pooling as in Gemma 3."""
    audio: Gemma3nAudioConfig | None = None
    """Audio encoder; None = hears nothing. USM features at 16 kHz (Gemini 1.0, section 2); as in Gemma 3n."""
    max_position_embeddings: int = 32_768
    """Context length the model was trained for (Gemini 1.0: 32k)."""
    bos_token_id: int = 2
    """Token before every document."""
    eos_token_ids: tuple[int, ...] = (1,)
    """Tokens that end a generation."""
    pad_token_id: int = 0
    """Filler, never seen by a real token."""

    def __post_init__(self):
        check_sizes(self, "hidden_dim", "sliding_window", "experts_every", "vision_merge")
        check_layer_types(self.layer_types)
        check_positive(self, "attn_logit_soft_cap", "final_logit_soft_cap", "global_rope_theta")
        if self.block not in ("serial", "parallel"):
            raise UserError(f"model.block must be 'serial' or 'parallel', got {self.block!r}")
        if self.block == "parallel" and self.post_norms:
            raise UserError("model.post_norms must be false where model.block is 'parallel': it has one norm a layer")
        if not self.gated and self.experts is not None:
            raise UserError("model.gated must be true where model.experts is set: experts have gates")
        if not (self.global_rope and "global" in self.layer_types):
            for name in ("global_rope_theta", "global_rope_scaling"):
                if getattr(self, name) is not None:
                    raise UserError(f"model.{name} is of global layers that rotate, and this model has none")

    @property
    def pattern_length(self) -> int:
        """Layers of the repeating unit: of local and global ones and of dense and sparse ones."""
        return math.lcm(len(self.layer_types), 1 if self.experts is None else self.experts_every)

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer; None = global."""
        return self.sliding_window if self.layer_types[layer % len(self.layer_types)] == "local" else None

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer is a mixture of experts."""
        return self.experts is not None and layer % self.experts_every == self.experts_every - 1

    @property
    def num_sparse_layers(self) -> int:
        """Layers that are a mixture of experts."""
        return sum(map(self.is_sparse, range(self.num_layers)))

    def num_parameters(self) -> int:
        """Parameters of the whole model, encoders included; the embedding counted once (it is tied)."""
        sparse = 0 if self.experts is None else self.experts.num_parameters(self.embed_dim)
        return self._parameters(sparse) + self._encoder_parameters()

    def num_active_parameters(self) -> int:
        """Parameters that one token passes through, encoders left out."""
        return self._parameters(0 if self.experts is None else self.experts.num_active_parameters(self.embed_dim))

    def _parameters(self, sparse: int) -> int:
        attention = 2 * self.embed_dim * self.head_dim * (self.num_heads + self.num_kv_heads)
        norms = {"parallel": 1, "serial": 4 if self.post_norms else 2}[self.block] * self.embed_dim
        dense_layers = self.num_layers - self.num_sparse_layers
        feed_forward = (
            dense_layers * (3 if self.gated else 2) * self.embed_dim * self.hidden_dim + self.num_sparse_layers * sparse
        )
        return self.num_layers * (attention + norms) + feed_forward + self.embed_dim * (1 + self.vocab_size)

    def _encoder_parameters(self) -> int:
        widths = [(encoder, encoder.embed_dim) for encoder in (self.vision, self.audio) if encoder is not None]
        return sum(encoder.num_parameters() + width + width * self.embed_dim for encoder, width in widths)

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward floating-point operations per token of text; a training step takes three times as many. Encoders are
        not counted."""
        flops = decoder_flops(self, sequence_length, hidden_dim=self.hidden_dim)
        if not self.gated:
            return flops - 2 * self.num_layers * self.embed_dim * self.hidden_dim
        if self.experts is None:
            return flops
        extra = self.experts.flops_per_token(self.embed_dim) - 6 * self.embed_dim * self.hidden_dim
        return flops + self.num_sparse_layers * extra
