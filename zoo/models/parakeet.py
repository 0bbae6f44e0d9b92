"""Parakeet's encoder, a Fast Conformer (arXiv 2305.05084): log-mel features to an eighth of their frames.

    x = projection(convolutions(mel))       the first over all, the others over each channel by itself and then across
    x = conformer(x, mask)                  each layer; see `zoo.nn.fast_conformer`

Source of names and details: transformers 5.23, models/parakeet. For inference: batch norms keep the statistics of the
checkpoint.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from zoo.errors import UserError
from zoo.nn import Execution, build_layers, run_layers
from zoo.nn.fast_conformer import FastConformerBlock, fast_conformer_block_parameters
from zoo.nn.parameters import fan_in_normal, parameter, precision_of, project

STRIDE = 2
"""Of every convolution in front, over time and frequency."""


@dataclass(frozen=True)
class ParakeetConfig:
    """Architecture of a Parakeet encoder."""

    embed_dim: int
    """Model width D."""
    num_layers: int
    """Conformer layers."""
    num_heads: int
    """Attention heads; each has width D / num_heads."""
    hidden_dim: int
    """Feed-forward width F."""
    num_mel_bins: int = 80
    """Log-mel features of a frame."""
    conv_kernel_size: int = 9
    """Frames of a layer's convolution, around its own."""
    subsampling_factor: int = 8
    """Mel frames for each frame of the result: a power of two."""
    subsampling_channels: int = 256
    """Channels of the convolutions in front."""
    subsampling_kernel: int = 3
    """Frames and frequencies that they see."""
    scale_input: bool = True
    """Whether their result is multiplied by sqrt(D)."""

    def __post_init__(self):
        for name in ("embed_dim", "num_layers", "num_heads", "hidden_dim", "num_mel_bins", "subsampling_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"parakeet.{name} must be at least 1, got {getattr(self, name)}")
        if self.embed_dim % self.num_heads or self.embed_dim % 2:
            raise UserError(
                f"parakeet.embed_dim={self.embed_dim} must be even and a multiple of num_heads={self.num_heads}"
            )
        for name in ("conv_kernel_size", "subsampling_kernel"):
            if getattr(self, name) % 2 != 1:
                raise UserError(f"parakeet.{name} must be odd, got {getattr(self, name)}")
        factor = self.subsampling_factor
        if factor < 2 or factor & (factor - 1):
            raise UserError(f"parakeet.subsampling_factor must be a power of two from 2, got {factor}")
        if self.num_mel_bins % factor:
            raise UserError(f"parakeet.num_mel_bins={self.num_mel_bins} is not a multiple of {factor}")

    @property
    def num_convolutions(self) -> int:
        """Convolutions with stride 2."""
        return int(math.log2(self.subsampling_factor))

    @property
    def subsampled_bins(self) -> int:
        """Frequencies after them."""
        return self.num_mel_bins // self.subsampling_factor

    def num_parameters(self) -> int:
        """Parameters of the whole encoder, the statistics of batch norms included."""
        width, channels, window = self.embed_dim, self.subsampling_channels, self.subsampling_kernel**2
        more = (window + 1) * channels + (channels + 1) * channels
        front = (window + 1) * channels + (self.num_convolutions - 1) * more
        projection = (self.subsampled_bins * channels + 1) * width
        layer = fast_conformer_block_parameters(width, self.hidden_dim, self.conv_kernel_size)
        return front + projection + self.num_layers * layer


class _Convolution(nnx.Module):
    """conv(x) + b over time and frequency; each channel by itself where there is one input channel for all."""

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int, *, execution, rngs):
        shape, dtype = (size, size, in_channels, out_channels), execution.weight_dtype
        self.stride = stride
        self.kernel = parameter(rngs, shape, (None,) * 4, fan_in_normal(size * size * in_channels), dtype)
        self.bias = parameter(rngs, (out_channels,), ("norm",), jax.nn.initializers.zeros, dtype)

    def __call__(self, x: Float[Array, "b t f c"]) -> Float[Array, "b s g e"]:
        side = (self.kernel.shape[0] - 1) // 2
        out = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (self.stride, self.stride),
            ((side, side), (side, side)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1] // self.kernel.shape[2],
            precision=precision_of(x.dtype),
        )
        return out + self.bias[...].astype(x.dtype)


class Parakeet(nnx.Module):
    """Log-mel frames to one vector for every `config.subsampling_factor` of them."""

    def __init__(self, config: ParakeetConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution()
        self.config, self.execution = config, execution
        channels, size = config.subsampling_channels, config.subsampling_kernel
        self.first = _Convolution(1, channels, size, STRIDE, execution=execution, rngs=rngs)
        count = config.num_convolutions - 1
        self.depthwise = nnx.List(
            [_Convolution(1, channels, size, STRIDE, execution=execution, rngs=rngs) for _ in range(count)]
        )
        self.pointwise = nnx.List(
            [_Convolution(channels, channels, 1, 1, execution=execution, rngs=rngs) for _ in range(count)]
        )
        bins, width, dtype = config.subsampled_bins, config.embed_dim, execution.weight_dtype
        init = fan_in_normal(bins * channels)
        self.projection = parameter(rngs, (bins, channels, width), (None, None, "embed"), init, dtype)
        self.projection_bias = parameter(rngs, (width,), ("norm",), jax.nn.initializers.zeros, dtype)
        self.layers = build_layers(
            lambda _, rngs: FastConformerBlock(
                width, config.num_heads, config.hidden_dim, config.conv_kernel_size, execution=execution, rngs=rngs
            ),
            config.num_layers,
            1,
            execution=execution,
            rngs=rngs,
        )

    def __call__(
        self, input_features: Float[Array, "b f m"], attention_mask: Int[Array, "b f"] | None = None
    ) -> Float[Array, "b t d"]:
        """The last layer's result, in the compute dtype; where padding is it means nothing.

        input_features: log-mel features. attention_mask: 1 = a real frame, 0 = padding at the end, as in the public
        implementation; None = all are real. The last real frame looks ahead by one frame, into padding, too, which
        should be zero there.
        """
        return self._run(input_features, attention_mask, keep=False)[0]

    def output_mask(self, attention_mask: Int[Array, "b f"]) -> Bool[Array, "b t"]:
        """Which vectors of the call's result are real."""
        lengths, frames = attention_mask.sum(-1), attention_mask.shape[1]
        for _ in range(self.config.num_convolutions):
            lengths, frames = _shortened(lengths), _shortened(frames)
        return jnp.arange(frames) < lengths[:, None]

    def hidden_states(
        self, input_features: Float[Array, "b f m"], attention_mask: Int[Array, "b f"] | None = None
    ) -> Float[Array, "n b t d"]:
        """What enters the first layer and the result of each: num_layers + 1 of them."""
        return self._run(input_features, attention_mask, keep=True)[1]

    def _run(self, features, attention_mask, *, keep: bool):
        """(result of the last layer, all of them or None)."""
        if features.shape[-1] != self.config.num_mel_bins:
            raise ValueError(f"input_features must be [B, F, {self.config.num_mel_bins}], got {features.shape}")
        if attention_mask is None:
            attention_mask = jnp.ones(features.shape[:2], jnp.int32)
        with jax.named_scope("subsampling"):
            x = self._subsampled(features.astype(self.execution.dtype), attention_mask.sum(-1))
        mask = self.output_mask(attention_mask)

        def apply(layer, x, cache, _):
            x = layer(x, mask)
            return x, cache, x if keep else None

        hidden, _, states = run_layers(self.layers, x, apply, None, self.execution)
        return hidden, jnp.concatenate([x[None], states]) if keep else None

    def _subsampled(self, features, lengths):
        x, lengths = self.first(features[..., None]), _shortened(lengths)
        x = jax.nn.relu(_masked(x, lengths))
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x, lengths = depthwise(x), _shortened(lengths)
            x = jax.nn.relu(_masked(pointwise(_masked(x, lengths)), lengths))
        x = project("btfc,fcd->btd", x, self.projection[...]) + self.projection_bias[...].astype(x.dtype)
        return x * jnp.asarray(math.sqrt(x.shape[-1]), x.dtype) if self.config.scale_input else x


def _shortened(length):
    """Frames after a convolution with stride 2 and padding on both sides."""
    return (length - 1) // STRIDE + 1


def _masked(x: Float[Array, "b t f c"], lengths: Int[Array, "b"]) -> Float[Array, "b t f c"]:
    return jnp.where((jnp.arange(x.shape[1]) < lengths[:, None])[..., None, None], x, 0)
