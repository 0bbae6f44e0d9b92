"""The encoder of wav2vec 2.0 with conformer layers (arXiv 2010.05171): 16 kHz samples to hidden states.

    x = gelu(norm(conv(x)))                 each convolution in front, from the samples on
    x = norm(x) . projection
    x = conformer(x)                        each layer; see `zoo.nn.fast_conformer`, here with gelu
    hidden = norm(x)

Source of names and details: transformers 5.23, models/wav2vec2_conformer. For inference: batch norms keep the
statistics of the checkpoint, and recordings of one call have one length, without padding.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.errors import UserError
from zoo.nn import Execution, build_layers, run_layers
from zoo.nn.fast_conformer import FastConformerBlock, fast_conformer_block_parameters
from zoo.nn.layer_norm import LayerNorm
from zoo.nn.parameters import fan_in_normal, parameter, precision_of, project

_FRONT_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Wav2Vec2ConformerConfig:
    """Architecture of a wav2vec 2.0 conformer with relative positions and layer norms between its convolutions."""

    embed_dim: int
    """Model width D."""
    num_layers: int
    """Conformer layers."""
    num_heads: int
    """Attention heads; each has width D / num_heads."""
    hidden_dim: int
    """Feed-forward width F."""
    conv_kernel_size: int = 31
    """Frames of a layer's convolution, around its own."""
    front_channels: tuple[int, ...] = (512,) * 7
    """Channels after each convolution in front."""
    front_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Samples or frames that each of them sees."""
    front_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    """Factors by which each of them shortens time."""
    front_biases: bool = False
    """Whether they have biases."""
    norm_eps: float = 1e-5
    """Added to the variance in the norms before and after the layers."""
    position_kernel: int = 128
    """Shape of a convolution that checkpoints hold and the model does not use: its kernel,"""
    position_groups: int = 16
    """and its groups of channels."""
    has_mask_embedding: bool = True
    """Whether checkpoints hold the vector of masked frames, which only pre-training uses."""

    def __post_init__(self):
        for name in ("embed_dim", "num_layers", "num_heads", "hidden_dim", "position_kernel", "position_groups"):
            if getattr(self, name) < 1:
                raise UserError(f"wav2vec2.{name} must be at least 1, got {getattr(self, name)}")
        if self.embed_dim % self.num_heads or self.embed_dim % 2 or self.embed_dim % self.position_groups:
            raise UserError(
                f"wav2vec2.embed_dim={self.embed_dim} must be even and a multiple of num_heads={self.num_heads} and of "
                f"position_groups={self.position_groups}"
            )
        if self.conv_kernel_size % 2 != 1:
            raise UserError(f"wav2vec2.conv_kernel_size must be odd, got {self.conv_kernel_size}")
        fronts = (self.front_channels, self.front_kernels, self.front_strides)
        if len({len(front) for front in fronts}) != 1 or not fronts[0] or min(map(min, fronts)) < 1:
            raise UserError(f"wav2vec2.front_channels, front_kernels and front_strides do not fit: {fronts}")
        if not self.norm_eps > 0:
            raise UserError(f"wav2vec2.norm_eps must be positive, got {self.norm_eps}")

    def num_parameters(self) -> int:
        """Parameters of the whole encoder, with the statistics of batch norms and what it does not use."""
        width, last = self.embed_dim, self.front_channels[-1]
        inputs = (1, *self.front_channels[:-1])
        front = sum(
            (before * kernel + 2 + self.front_biases) * after
            for before, after, kernel in zip(inputs, self.front_channels, self.front_kernels, strict=True)
        )
        unused = width + self.position_kernel * (1 + width * width // self.position_groups)
        ends = 2 * last + (last + 1) * width + 2 * width + self.has_mask_embedding * width
        layer = fast_conformer_block_parameters(width, self.hidden_dim, self.conv_kernel_size, conv_biases=False)
        return front + unused + ends + self.num_layers * layer


class FrontConvolution(nnx.Module):
    """gelu(norm(conv(x) [+ b])), without padding."""

    def __init__(self, in_channels, out_channels, size, stride, *, bias: bool, execution: Execution, rngs: nnx.Rngs):
        self.stride, dtype = stride, execution.weight_dtype
        init = fan_in_normal(size * in_channels)
        self.kernel = parameter(rngs, (size, in_channels, out_channels), (None,) * 3, init, dtype)
        self.has_bias = bias
        if bias:
            self.bias = parameter(rngs, (out_channels,), ("norm",), jax.nn.initializers.zeros, dtype)
        self.norm = LayerNorm(out_channels, eps=_FRONT_NORM_EPS, execution=execution, rngs=rngs)

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b s e"]:
        out = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (self.stride,),
            "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
            precision=precision_of(x.dtype),
        )
        out = out + self.bias[...].astype(x.dtype) if self.has_bias else out
        return jax.nn.gelu(self.norm(out), approximate=False)


class UnusedParameters(nnx.Module):
    """What checkpoints hold and the encoder's function does not depend on, kept for their export."""

    def __init__(self, config: Wav2Vec2ConformerConfig, *, execution: Execution, rngs: nnx.Rngs):
        width, size, dtype = config.embed_dim, config.position_kernel, execution.weight_dtype
        zeros, ones = jax.nn.initializers.zeros, jax.nn.initializers.ones
        if config.has_mask_embedding:
            self.mask_embedding = parameter(rngs, (width,), ("norm",), zeros, dtype)
        self.position_scale = parameter(rngs, (size,), (None,), ones, dtype)
        shape = (size, width // config.position_groups, width)
        self.position_kernel = parameter(rngs, shape, (None,) * 3, fan_in_normal(size * shape[1]), dtype)
        self.position_bias = parameter(rngs, (width,), ("norm",), zeros, dtype)


class Wav2Vec2Conformer(nnx.Module):
    """Samples to hidden states."""

    def __init__(self, config: Wav2Vec2ConformerConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution()
        self.config, self.execution = config, execution
        inputs = (1, *config.front_channels[:-1])
        sizes = zip(inputs, config.front_channels, config.front_kernels, config.front_strides, strict=True)
        self.front = nnx.List(
            [FrontConvolution(*size, bias=config.front_biases, execution=execution, rngs=rngs) for size in sizes]
        )
        width, last, dtype = config.embed_dim, config.front_channels[-1], execution.weight_dtype
        self.front_norm = LayerNorm(last, eps=config.norm_eps, execution=execution, rngs=rngs)
        self.projection = parameter(rngs, (last, width), (None, "embed"), fan_in_normal(last), dtype)
        self.projection_bias = parameter(rngs, (width,), ("norm",), jax.nn.initializers.zeros, dtype)
        self.layers = build_layers(
            lambda _, rngs: FastConformerBlock(
                width,
                config.num_heads,
                config.hidden_dim,
                config.conv_kernel_size,
                activation="gelu",
                conv_biases=False,
                execution=execution,
                rngs=rngs,
            ),
            config.num_layers,
            1,
            execution=execution,
            rngs=rngs,
        )
        self.final_norm = LayerNorm(width, eps=config.norm_eps, execution=execution, rngs=rngs)
        self.unused = UnusedParameters(config, execution=execution, rngs=rngs)

    def __call__(self, input_values: Float[Array, "b n"]) -> Float[Array, "b t d"]:
        """Hidden states after the final norm, in the compute dtype.

        input_values: samples at 16 kHz, with mean 0 and variance 1 as the feature extractor makes them.
        """
        return self.final_norm(self._run(input_values, keep=False)[0])

    def extract_features(self, input_values: Float[Array, "b n"]) -> Float[Array, "b t c"]:
        """What the convolutions give, normed: the input of the projection."""
        if input_values.ndim != 2:
            raise ValueError(f"input_values must be [B, samples], got {input_values.shape}")
        x = input_values[..., None].astype(self.execution.dtype)
        for convolution in self.front:
            x = convolution(x)
        return self.front_norm(x)

    def hidden_states(self, input_values: Float[Array, "b n"]) -> Float[Array, "n b t d"]:
        """What enters the first layer and the result of each, before the final norm: num_layers + 1 of them."""
        return self._run(input_values, keep=True)[1]

    def _run(self, input_values, *, keep: bool):
        """(residual stream after the last layer, all of them or None)."""
        features = self.extract_features(input_values)
        x = project("btc,cd->btd", features, self.projection[...]) + self.projection_bias[...].astype(features.dtype)
        mask = jnp.ones(x.shape[:2], bool)

        def apply(layer, x, cache, _):
            x = layer(x, mask)
            return x, cache, x if keep else None

        hidden, _, states = run_layers(self.layers, x, apply, None, self.execution)
        return hidden, jnp.concatenate([x[None], states]) if keep else None
