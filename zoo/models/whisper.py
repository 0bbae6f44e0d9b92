"""Whisper's encoder (arXiv 2212.04356, section 2.2): log-mel features of 30 seconds to a vector for every 20 ms.

    x = gelu(conv(gelu(conv(mel)))) + position        kernels of 3 frames, the second with stride 2
    x = x + attention(norm(x));  x = x + mlp(norm(x))      each layer; keys have no bias
    hidden = norm(x)

Source of names and details: transformers 5.23, models/whisper. Features: `zoo.data.log_mel.whisper_log_mel`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from zoo.errors import UserError
from zoo.nn import Execution, build_layers, run_layers
from zoo.nn.encoder_block import EncoderBlock, encoder_block_parameters
from zoo.nn.layer_norm import LayerNorm
from zoo.nn.parameters import fan_in_normal, parameter, precision_of
from zoo.nn.sinusoids import sinusoids

KERNEL = 3
"""Frames of either convolution."""
_STRIDE = 2
_NORM_EPS = 1e-5


@dataclass(frozen=True)
class WhisperConfig:
    """Architecture of a Whisper encoder."""

    embed_dim: int
    """Model width D."""
    num_layers: int
    """Encoder layers."""
    num_heads: int
    """Attention heads; each has width D / num_heads."""
    hidden_dim: int
    """Feed-forward width F."""
    num_mel_bins: int = 80
    """Log-mel features of a frame: 80, in large-v3 128."""
    max_positions: int = 1500
    """Vectors of a recording: half as many as its mel frames."""

    def __post_init__(self):
        for name in ("embed_dim", "num_layers", "num_heads", "hidden_dim", "num_mel_bins", "max_positions"):
            if getattr(self, name) < 1:
                raise UserError(f"whisper.{name} must be at least 1, got {getattr(self, name)}")
        if self.embed_dim % self.num_heads or self.embed_dim % 2:
            raise UserError(
                f"whisper.embed_dim={self.embed_dim} must be even and a multiple of num_heads={self.num_heads}"
            )

    @property
    def num_frames(self) -> int:
        """Mel frames of a recording."""
        return self.max_positions * _STRIDE

    def num_parameters(self) -> int:
        """Parameters of the encoder, its table of positions included."""
        width = self.embed_dim
        convolutions = (KERNEL * self.num_mel_bins + 1 + KERNEL * width + 1) * width
        layers = self.num_layers * encoder_block_parameters(width, self.hidden_dim, key_bias=False)
        return convolutions + self.max_positions * width + layers + 2 * width


class WhisperEncoder(nnx.Module):
    """Log-mel features of one recording in each row to hidden states."""

    def __init__(self, config: WhisperConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution()
        self.config, self.execution = config, execution
        dtype, width, zeros = execution.weight_dtype, config.embed_dim, jax.nn.initializers.zeros

        def kernel(channels: int):
            shape, axes = (KERNEL, channels, width), (None, None, "embed")
            return parameter(rngs, shape, axes, fan_in_normal(KERNEL * channels), dtype)

        self.first_kernel, self.first_bias = (
            kernel(config.num_mel_bins),
            parameter(rngs, (width,), ("norm",), zeros, dtype),
        )
        self.second_kernel, self.second_bias = kernel(width), parameter(rngs, (width,), ("norm",), zeros, dtype)
        table = sinusoids(np.arange(config.max_positions, dtype=np.float64), width)
        self.position = parameter(rngs, table.shape, (None, "embed"), lambda *_: jnp.asarray(table), dtype)
        self.layers = build_layers(
            lambda _, rngs: EncoderBlock(
                width,
                config.num_heads,
                config.hidden_dim,
                activation="gelu",
                norm_eps=_NORM_EPS,
                key_bias=False,
                execution=execution,
                rngs=rngs,
            ),
            config.num_layers,
            1,
            execution=execution,
            rngs=rngs,
        )
        self.final_norm = LayerNorm(width, eps=_NORM_EPS, execution=execution, rngs=rngs)

    def __call__(self, input_features: Float[Array, "b m f"]) -> Float[Array, "b t d"]:
        """Hidden states after the final norm, in the compute dtype.

        input_features: [B, num_mel_bins, num_frames], recordings cut or padded to that length, as in the public
        implementation; ValueError otherwise.
        """
        return self.final_norm(self._run(input_features, keep=False)[0])

    def hidden_states(self, input_features: Float[Array, "b m f"]) -> Float[Array, "n b t d"]:
        """What enters the first layer and the result of each, the last one after the final norm (as the public
        implementation reports them): num_layers + 1 of them."""
        hidden, states = self._run(input_features, keep=True)
        return jnp.concatenate([states[:-1], self.final_norm(hidden)[None]])

    def _run(self, input_features, *, keep: bool):
        """(residual stream after the last layer, all of them or None)."""
        wanted = (self.config.num_mel_bins, self.config.num_frames)
        if input_features.ndim != 3 or input_features.shape[1:] != wanted:
            raise ValueError(f"input_features must be [B, {wanted[0]}, {wanted[1]}], got {input_features.shape}")
        with jax.named_scope("convolutions"):
            x = input_features.swapaxes(1, 2).astype(self.execution.dtype)
            x = jax.nn.gelu(_convolution(x, self.first_kernel[...], self.first_bias[...], 1), approximate=False)
            x = jax.nn.gelu(_convolution(x, self.second_kernel[...], self.second_bias[...], _STRIDE), approximate=False)
            x = x + self.position[...].astype(x.dtype)

        def apply(layer, x, cache, _):
            x = layer(x)
            return x, cache, x if keep else None

        hidden, _, states = run_layers(self.layers, x, apply, None, self.execution)
        return hidden, jnp.concatenate([x[None], states]) if keep else None


def _convolution(
    x: Float[Array, "b t c"], kernel: Float[Array, "k c d"], bias: Float[Array, "d"], stride: int
) -> Float[Array, "b s d"]:
    out = jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride,),
        ((1, 1),),
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=precision_of(x.dtype),
    )
    return out + bias.astype(x.dtype)


# The released sizes (README of openai/whisper); their encoders alone.
PRESETS = {
    "whisper-tiny-encoder": WhisperConfig(embed_dim=384, num_layers=4, num_heads=6, hidden_dim=1536),
    "whisper-base-encoder": WhisperConfig(embed_dim=512, num_layers=6, num_heads=8, hidden_dim=2048),
    "whisper-small-encoder": WhisperConfig(embed_dim=768, num_layers=12, num_heads=12, hidden_dim=3072),
    "whisper-medium-encoder": WhisperConfig(embed_dim=1024, num_layers=24, num_heads=16, hidden_dim=4096),
    "whisper-large-v3-encoder": WhisperConfig(
        embed_dim=1280, num_layers=32, num_heads=20, hidden_dim=5120, num_mel_bins=128
    ),
}
