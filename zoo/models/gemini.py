"""Gemini (arXiv 2312.11805, 2403.05530): decoders that read text, images, audio and video, dense or sparse.

    x = E[token] * sqrt(D), and at the places of media the soft tokens of their encoders
    serial layer (Pro, Nano):   x = x + [norm](attention(norm(x)));  x = x + [norm](ffn(norm(x)))
    parallel layer (Flash):     y = norm(x);  x = x + attention(y) + ffn(y)
    ffn: GeGLU, or in every n-th layer a sparse mixture of experts
    logits = [c * tanh](norm(x) . E^T [/ c])

The reports say what kind of model it is (decoder-only, multi-query attention, sparse experts in 1.5 Pro, parallel
sub-layers in 1.5 Flash, the two sizes of Nano) and no number of it besides. Every other choice is a field of
`zoo.models.gemini_config`, and its docstring says where it is taken from. Images come out as codes of a VQ tokenizer
that share the vocabulary.
"""

from typing import Any

import jax
from flax import nnx

from zoo.errors import UserError
from zoo.models.decoder import Decoder, LayerContext
from zoo.models.gemini_config import GeminiConfig as GeminiConfig
from zoo.models.gemma3n_audio import Gemma3nAudio, Gemma3nAudioConfig
from zoo.models.siglip import Siglip, SiglipConfig
from zoo.nn import (
    Attention,
    Execution,
    ExpertsConfig,
    GatedFeedForward,
    LayerCache,
    PlainFeedForward,
    RMSNorm,
    SoftTokenProjector,
    SparseFeedForward,
    gathered_outside_layers,
    place_soft_tokens,
    rope_angles,
)
from zoo.parallel import own_part


class GeminiLayer(nnx.Module):
    """Attention and a dense or sparse feed-forward, one after the other or side by side."""

    def __init__(self, config: GeminiConfig, layer: int, *, execution: Execution, rngs: nnx.Rngs):
        def norm():
            return RMSNorm(config.embed_dim, eps=config.norm_eps, execution=execution, rngs=rngs)

        self.parallel, self.post_norms = config.block == "parallel", config.post_norms
        self.is_global = config.window(layer) is None
        self.pre_attention_norm = norm()
        self.attention = Attention(
            config.embed_dim,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            scale=config.head_dim**-0.5,
            sliding_window=config.window(layer),
            logits_soft_cap=config.attn_logit_soft_cap,
            execution=execution,
            rngs=rngs,
        )
        self.sparse = config.is_sparse(layer)
        if self.sparse:
            assert config.experts is not None
            self.mlp: nnx.Module = SparseFeedForward(config.embed_dim, config.experts, execution=execution, rngs=rngs)
        else:
            feed_forward = GatedFeedForward if config.gated else PlainFeedForward
            self.mlp = feed_forward(config.embed_dim, config.hidden_dim, execution=execution, rngs=rngs)
        if not self.parallel:
            self.pre_ffw_norm = norm()
        if self.post_norms:
            self.post_attention_norm, self.post_ffw_norm = norm(), norm()

    def __call__(self, x, context: LayerContext, cache: LayerCache | None):
        normed = self.pre_attention_norm(x)
        angles = context.angles[self.is_global]
        attended, cache = self.attention(normed, angles, context.positions, context.segment_ids, cache)
        if self.post_norms:
            attended = self.post_attention_norm(attended)
        x = x + attended
        fed, statistics = self._feed_forward(normed if self.parallel else self.pre_ffw_norm(x), context)
        return x + (self.post_ffw_norm(fed) if self.post_norms else fed), cache, statistics

    def _feed_forward(self, x, context: LayerContext):
        if self.sparse:
            with jax.named_scope("experts"):
                return self.mlp(x, context.token_mask, context.rng)
        with jax.named_scope("mlp"):
            return self.mlp(x), None


class Gemini(Decoder):
    """Tokens and media to logits; see `Decoder`. `media`: a `zoo.data.Media`."""

    config: GeminiConfig

    def __init__(self, config: GeminiConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        super().__init__(config, execution=execution, rngs=rngs)
        if config.vision is not None:
            self.vision = Siglip(config.vision, execution=self.execution, rngs=rngs)
            self.vision_projector = self._projector(config.vision.embed_dim, config.vision_merge**2, rngs)
        if config.audio is not None:
            self.audio = Gemma3nAudio(config.audio, execution=self.execution, rngs=rngs)
            self.audio_projector = self._projector(config.audio.embed_dim, 1, rngs)

    @property
    def has_experts(self) -> bool:
        """Whether layers give statistics of a router."""
        return self.config.experts is not None

    def make_layer(self, position: int, *, rngs: nnx.Rngs) -> GeminiLayer:
        """The layer at a place of the repeating unit."""
        return GeminiLayer(self.config, position, execution=self.execution, rngs=rngs)

    def rotary(self, positions):
        """(sine and cosine of local layers, of global layers); None of layers that do not rotate."""
        config, local = self.config, super().rotary(positions)
        theta = config.global_rope_theta or config.rope_theta
        if not config.global_rope:
            return local, None
        if theta == config.rope_theta and config.global_rope_scaling is None:
            return local, local
        return local, rope_angles(positions, config.head_dim, theta, config.global_rope_scaling)

    def _projector(self, width: int, pooled: int, rngs: nnx.Rngs) -> SoftTokenProjector:
        config = self.config
        return SoftTokenProjector(
            width, config.embed_dim, pooled=pooled, eps=config.norm_eps, execution=self.execution, rngs=rngs
        )

    def embed(self, tokens, media: Any):
        """Words and, at their places, the soft tokens of images and audio."""
        x = self.embedder.encode(tokens)
        if media is None:
            return x
        if media.images is not None:
            if self.config.vision is None:
                raise UserError("this model has no image encoder (model.vision) and was given images")
            with jax.named_scope("vision_encoder"):
                images = media.images
                encoder: Any = gathered_outside_layers(self.vision, self.execution)
                encoded = encoder.encode_patches(images.patches, images.coordinates, images.segment_ids)
                soft = self.vision_projector(encoded)
            x = place_soft_tokens(x, soft, own_part(media.image_slots, "residual_length", axis=1))
        if media.audio is not None:
            if self.config.audio is None:
                raise UserError("this model has no audio encoder (model.audio) and was given audio")
            with jax.named_scope("audio_encoder"):
                encoder = gathered_outside_layers(self.audio, self.execution)
                encoded, _ = encoder.encode_clips(media.audio.mel, media.audio.mask)
                soft = self.audio_projector(encoded.reshape(len(encoded), -1, encoded.shape[-1]))
            x = place_soft_tokens(x, soft, own_part(media.audio_slots, "residual_length", axis=1))
        return x


# 1.5 Pro is a sparse mixture of experts, trained on several pods of 4,096 TPUs v4; how large was not published. Every
# other layer is sparse and top-2 as in GLaM; 0.34 trillion parameters, 50 billion of them active. A device takes in no
# more than 1.25 times the balanced load: no chip has the memory for everything that 32 devices could send it.
GEMINI_PRO_LIKE = GeminiConfig(
    vocab_size=262_144,
    embed_dim=8192,
    num_layers=64,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    hidden_dim=24_576,
    experts=ExpertsConfig(num_experts=32, experts_per_token=2, hidden_dim=12_288, exchange_capacity_factor=1.25),
    experts_every=2,
    global_rope=False,
)
# 1.5 Flash: dense, sub-layers in parallel.
GEMINI_FLASH_LIKE = GeminiConfig(
    vocab_size=262_144,
    embed_dim=6144,
    num_layers=48,
    num_heads=48,
    num_kv_heads=8,
    head_dim=128,
    hidden_dim=24_576,
    block="parallel",
    post_norms=False,
    global_rope=False,
)
# Gemini 1.0, section 2: 1.8B and 3.25B parameters. All else as in Gemma 2, which on-device runtimes know.
GEMINI_NANO_1 = GeminiConfig(
    vocab_size=256_000,
    embed_dim=2048,
    num_layers=20,
    num_heads=8,
    head_dim=256,
    hidden_dim=8832,
    attn_logit_soft_cap=50.0,
)
GEMINI_NANO_2 = GeminiConfig(
    vocab_size=256_000,
    embed_dim=2560,
    num_layers=28,
    num_heads=10,
    head_dim=256,
    hidden_dim=10_176,
    attn_logit_soft_cap=50.0,
)

# Minutes on two CPU cores: the width of gemma2-nano, with as many active parameters.
GEMINI_TINY_PRO = GeminiConfig(
    vocab_size=4096,
    embed_dim=128,
    num_layers=4,
    num_heads=4,
    head_dim=32,
    hidden_dim=384,
    sliding_window=64,
    experts=ExpertsConfig(num_experts=8, experts_per_token=2, hidden_dim=192),
    max_position_embeddings=256,
)
# Minutes on two CPU cores: reads 32 x 32 pixels as 16 patches and 0.8 s of speech as ten soft tokens, writes VQ codes.
# No post-norms: with them so short a run does not begin to hear (the loss of spoken digits stays that of guessing).
GEMINI_TINY_MULTIMODAL = GeminiConfig(
    vocab_size=1408,
    embed_dim=128,
    num_layers=4,
    num_heads=4,
    head_dim=32,
    hidden_dim=384,
    sliding_window=64,
    post_norms=False,
    max_position_embeddings=128,
    vision=SiglipConfig(embed_dim=96, num_layers=3, num_heads=3, hidden_dim=192, patch_size=8, image_size=32),
    audio=Gemma3nAudioConfig(
        embed_dim=96, num_layers=3, num_heads=3, reduction_factor=2, subsampling_channels=(16, 16), chunk_size=20
    ),
)

PRESETS = {
    "gemini-tiny-multimodal": GEMINI_TINY_MULTIMODAL,
    "gemini-tiny-pro": GEMINI_TINY_PRO,
    "gemini-pro-like": GEMINI_PRO_LIKE,
    "gemini-flash-like": GEMINI_FLASH_LIKE,
    "gemini-nano-1": GEMINI_NANO_1,
    "gemini-nano-2": GEMINI_NANO_2,
}
