"""Strided convolutions over time and frequency, normalised by what came before: audio features at a lower rate."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.nn.execution import Execution
from zoo.nn.parameters import fan_in_normal, parameter, precision_of


class SubsamplingConvolution(nnx.Module):
    """relu(cumulative_norm(conv(x))) over time and frequency, which both get shorter by the stride.

    Padding: in time at the end only (an output frame looks ahead by kernel - 1 frames), in frequency one on each side.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        *,
        eps: float,
        execution: Execution,
        rngs: nnx.Rngs,
    ):
        self.stride, self.eps = stride, eps
        shape, fan_in = (*kernel, in_channels, out_channels), kernel[0] * kernel[1] * in_channels
        self.kernel = parameter(rngs, shape, (None,) * 4, fan_in_normal(fan_in), execution.weight_dtype)
        self.scale = parameter(rngs, (out_channels,), ("norm",), jax.nn.initializers.ones, execution.weight_dtype)

    def __call__(self, x: Float[Array, "b t f c"]) -> Float[Array, "b s g e"]:
        x = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            self.stride,
            ((0, self.kernel.shape[0] - 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision_of(x.dtype),
        )
        return jax.nn.relu(cumulative_norm(x, self.scale[...], self.eps))

    @staticmethod
    def output_bins(bins: int, kernel: int, stride: int) -> int:
        """Frequency bins of the result."""
        return (bins + 2 - kernel) // stride + 1


def cumulative_norm(x: Float[Array, "b t f c"], scale: Float[Array, "c"], eps: float) -> Float[Array, "b t f c"]:
    """(x - mean_t) / sqrt(var_t + eps) * scale with statistics of all that came up to time t, in float32.

    var_t is the mean over s <= t of (x_s - mean_s)^2: every frame's deviation from the mean of its own time.
    """
    x32 = x.astype(jnp.float32)
    counts = (1 + jnp.arange(x.shape[1], dtype=jnp.float32))[:, None, None] * (x.shape[2] * x.shape[3])

    def cumulative_mean(values):
        return jnp.cumsum(values.sum((2, 3), keepdims=True), axis=1) / counts

    centred = x32 - cumulative_mean(x32)
    normed = centred * jax.lax.rsqrt(cumulative_mean(jnp.square(centred)) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)
