"""Gemma 3n's audio encoder: the conformer of the Universal Speech Model (arXiv 2303.01037) on log-mel features.

    x = projection(subsampling(subsampling(mel)))           a quarter of the frames; see `SubsamplingConvolution`
    x = conformer(x, mask)                                  each layer; see `zoo.nn.conformer`
    hidden = x[::reduction], zeros where that is padding

Gemini's reports say that it hears USM features at 16 kHz (Gemini 1.0, section 2); USM's own weights and code are not
public. Source of names and details: transformers 5.23, models/gemma3n. Features: `zoo.data.log_mel`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from zoo.data.log_mel import USM_SILENCE
from zoo.errors import UserError
from zoo.nn import Execution, build_layers, run_layers
from zoo.nn.conformer import FFW_FACTOR, ConformerBlock, conformer_block_parameters
from zoo.nn.parameters import fan_in_normal, parameter, project
from zoo.nn.subsampling import SubsamplingConvolution


@dataclass(frozen=True)
class Gemma3nAudioConfig:
    """Architecture of a Gemma 3n audio encoder."""

    embed_dim: int
    """Model width D."""
    num_layers: int
    """Conformer layers."""
    num_heads: int
    """Attention heads; each has width D / num_heads."""
    num_mel_bins: int = 128
    """Log-mel features of a frame."""
    chunk_size: int = 12
    """Queries that attention works on together; changes no result."""
    left_context: int = 13
    """Frames that attention sees up to its own, which counts."""
    right_context: int = 0
    """Frames that attention sees after its own."""
    attn_logit_soft_cap: float = 50.0
    """c of the attention scores' c * tanh(s / c)."""
    conv_kernel_size: int = 5
    """Frames of the light convolution, the last of which is its own."""
    residual_weight: float = 0.5
    """Factor of a feed-forward's output."""
    reduction_factor: int = 4
    """Every n-th frame of the last layer is kept."""
    subsampling_channels: tuple[int, int] = (128, 32)
    """Channels after each of the two convolutions in front."""
    subsampling_kernel: tuple[int, int] = (3, 3)
    """Frames and frequencies that they see."""
    subsampling_stride: tuple[int, int] = (2, 2)
    """Factors by which each of them shortens time and frequency."""
    group_norm_eps: float = 1e-3
    """Added to the variance in their norms."""
    norm_eps: float = 1e-6
    """Added to the mean square in the norms of the light convolution."""
    clip: float = 1e10
    """Bound of activations around attention, convolution and feed-forward ("gradient_clipping")."""

    def __post_init__(self):
        for name in ("embed_dim", "num_layers", "num_heads", "num_mel_bins", "chunk_size", "left_context",
                     "conv_kernel_size", "reduction_factor"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"audio.{name} must be at least 1, got {getattr(self, name)}")
        if self.right_context < 0:
            raise UserError(f"audio.right_context must not be negative, got {self.right_context}")
        if self.embed_dim % self.num_heads or self.embed_dim % 2:
            raise UserError(
                f"audio.embed_dim={self.embed_dim} must be even and a multiple of num_heads={self.num_heads}"
            )
        for name in ("subsampling_channels", "subsampling_kernel", "subsampling_stride"):
            if len(getattr(self, name)) != 2 or min(getattr(self, name)) < 1:
                raise UserError(f"audio.{name} must be two numbers of at least 1, got {getattr(self, name)}")
        for name in ("attn_logit_soft_cap", "group_norm_eps", "norm_eps", "clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"audio.{name} must be positive, got {getattr(self, name)}")

    @property
    def ffw_dim(self) -> int:
        """Feed-forward width."""
        return FFW_FACTOR * self.embed_dim

    @property
    def subsampling(self) -> int:
        """Mel frames for each frame of the conformer."""
        return self.subsampling_stride[0] ** 2

    @property
    def reduction(self) -> int:
        """Mel frames for each frame of the result."""
        return self.subsampling * self.reduction_factor

    @property
    def subsampled_bins(self) -> tuple[int, int]:
        """Frequencies after each of the two convolutions."""
        first = SubsamplingConvolution.output_bins(
            self.num_mel_bins, self.subsampling_kernel[1], self.subsampling_stride[1]
        )
        return first, SubsamplingConvolution.output_bins(first, self.subsampling_kernel[1], self.subsampling_stride[1])

    def num_parameters(self) -> int:
        """Parameters of the whole encoder."""
        first, second = self.subsampling_channels
        window = self.subsampling_kernel[0] * self.subsampling_kernel[1]
        convolutions = window * (first + first * second) + first + second
        projection = self.subsampled_bins[1] * second * self.embed_dim
        layer = conformer_block_parameters(self.embed_dim, self.num_heads, self.conv_kernel_size)
        return convolutions + projection + self.num_layers * layer


class Gemma3nAudio(nnx.Module):
    """Log-mel frames to one vector for every `config.reduction` of them."""

    def __init__(self, config: Gemma3nAudioConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution()
        self.config, self.execution = config, execution

        def convolution(in_channels: int, out_channels: int):
            return SubsamplingConvolution(
                in_channels,
                out_channels,
                config.subsampling_kernel,
                config.subsampling_stride,
                eps=config.group_norm_eps,
                execution=execution,
                rngs=rngs,
            )

        first, second = config.subsampling_channels
        self.first_convolution, self.second_convolution = convolution(1, first), convolution(first, second)
        bins = config.subsampled_bins[1]
        self.projection = parameter(
            rngs,
            (bins, second, config.embed_dim),
            (None, None, "embed"),
            fan_in_normal(bins * second),
            execution.weight_dtype,
        )
        self.layers = build_layers(
            lambda _, rngs: ConformerBlock(
                config.embed_dim,
                config.num_heads,
                chunk=config.chunk_size,
                left=config.left_context,
                right=config.right_context,
                soft_cap=config.attn_logit_soft_cap,
                kernel=config.conv_kernel_size,
                residual_weight=config.residual_weight,
                clip=config.clip,
                norm_eps=config.norm_eps,
                execution=execution,
                rngs=rngs,
            ),
            config.num_layers,
            1,
            execution=execution,
            rngs=rngs,
        )

    def __call__(self, audio_mel: Float[Array, "b f m"], audio_mel_mask: Bool[Array, "b f"]) -> Float[Array, "b n d"]:
        """The last layer's result for every `config.reduction`-th frame, in the compute dtype; zeros where that is
        padding.

        audio_mel: log-mel features. audio_mel_mask: True = PADDING, as in the public implementation. The last real
        frames look ahead by up to 6 frames, into padding, too: it should be silence, as the feature extractor has it.
        """
        hidden, mask = self._run(audio_mel, ~audio_mel_mask, keep=False)[:2]
        kept, factor = mask[:, :: self.config.reduction_factor], self.config.reduction_factor
        return jnp.where(kept[..., None], hidden[:, ::factor], 0)

    def output_mask(self, audio_mel_mask: Bool[Array, "b f"]) -> Bool[Array, "b n"]:
        """Which vectors of the call's result are padding (True), like `audio_mel_mask`."""
        return self._subsampled(audio_mel_mask)[:, :: self.config.reduction_factor]

    def encode_clips(
        self, mel: Float[Array, "b a f m"], mask: Bool[Array, "b a f"]
    ) -> tuple[Float[Array, "b a n d"], Bool[Array, "b a n"]]:
        """(vectors, which of them are real) of A clips in each row, each encoded by itself; zeros where padding is.

        mask: True = a REAL frame; others are heard as silence, whatever they hold. n = F / config.reduction, which must
        be whole: ValueError otherwise. A clip with k real frames has ceil(k / config.reduction) real vectors.
        """
        batch, clips, frames, _ = mel.shape
        if frames % self.config.reduction:
            raise ValueError(f"clips of {frames} mel frames are not a multiple of {self.config.reduction} frames")
        heard = jnp.where(mask[..., None], mel, USM_SILENCE)
        padding = ~mask.reshape(batch * clips, frames)
        out = self(heard.reshape(batch * clips, frames, -1), padding)
        return out.reshape(batch, clips, *out.shape[1:]), ~self.output_mask(padding).reshape(batch, clips, -1)

    def hidden_states(
        self, audio_mel: Float[Array, "b f m"], audio_mel_mask: Bool[Array, "b f"]
    ) -> Float[Array, "l b t d"]:
        """The subsampled features and the result of each layer, before frames are dropped: num_layers + 1 of them."""
        return self._run(audio_mel, ~audio_mel_mask, keep=True)[2]

    def _run(self, mel, mask, *, keep: bool):
        """(residual stream after the last layer, which frames of it are real, all of them or None)."""
        if mel.shape[-1] != self.config.num_mel_bins or mask.shape != mel.shape[:2]:
            raise ValueError(
                f"audio_mel must be [B, F, {self.config.num_mel_bins}] and its mask [B, F], got {mel.shape} and "
                f"{mask.shape}"
            )
        with jax.named_scope("subsampling"):
            x = mel[..., None].astype(self.execution.dtype)
            x = self.second_convolution(self.first_convolution(x))
            x = project("btfc,fcd->btd", x, self.projection[...])
        mask = self._subsampled(mask)

        def apply(layer, x, cache, _):
            x = layer(x, mask)
            return x, cache, x if keep else None

        hidden, _, states = run_layers(self.layers, x, apply, None, self.execution)
        return hidden, mask, jnp.concatenate([x[None], states]) if keep else None

    def _subsampled(self, mask: Bool[Array, "b f"]) -> Bool[Array, "b t"]:
        """Of the frame with which the conformer's frame begins."""
        return mask[:, :: self.config.subsampling]


# Gemma 3n's own (E2B and E4B): 0.68 G parameters, 6.25 vectors a second.
GEMMA3N_AUDIO = Gemma3nAudioConfig(embed_dim=1536, num_layers=12, num_heads=8)

PRESETS = {"gemma3n-audio": GEMMA3N_AUDIO}
