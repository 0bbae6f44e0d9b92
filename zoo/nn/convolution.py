"""What convolutional classifiers of images are made of: convolution, batch normalisation, pooling (NHWC)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from zoo.nn.execution import Execution
from zoo.nn.parameters import fan_in_normal, parameter, precision_of, project

STATISTICS = ("mean", "variance")
"""Names of what training gives a `BatchNorm` besides parameters: the optimizer leaves them alone."""


class Convolution(nnx.Module):
    """y[r, s, o] = sum over the kernel of x[stride r + i - side, stride s + j - side, c] kernel[i, j, c, o]; no bias.

    side = (kernel - 1) / 2 zeros on each side, as in the public ResNets. Initial weights: normal of variance
    2 / (kernel^2 * outputs) (He et al., arXiv 1502.01852, by the fan-out).
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, execution: Execution, rngs: nnx.Rngs
    ):
        self.stride, self.side = stride, (kernel - 1) // 2
        init = jax.nn.initializers.normal((2 / (kernel * kernel * outputs)) ** 0.5)
        shape, axes = (kernel, kernel, inputs, outputs), (None, None, None, None)
        self.kernel = parameter(rngs, shape, axes, init, execution.weight_dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b r s o"]:
        return jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (self.stride, self.stride),
            ((self.side, self.side),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision_of(x.dtype),
        )


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) * scale + bias for each channel, in float32, returned in x's dtype.

    In training, mean and variance are the batch's, and what is kept moves towards them by `momentum` (of the variance
    the unbiased estimate, as torch has it); otherwise they are what is kept, which gets no gradient. Of a batch that is
    divided among devices the statistics are those of all its rows.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, momentum: float = 0.1, execution: Execution, rngs: nnx.Rngs):
        self.eps, self.momentum = eps, momentum
        zeros, ones, dtype = jax.nn.initializers.zeros, jax.nn.initializers.ones, execution.weight_dtype
        self.scale = parameter(rngs, (dim,), ("norm",), ones, dtype)
        self.bias = parameter(rngs, (dim,), ("norm",), zeros, dtype)
        self.mean = parameter(rngs, (dim,), ("norm",), zeros, dtype)
        self.variance = parameter(rngs, (dim,), ("norm",), ones, dtype)

    def __call__(self, x: Float[Array, "b h w c"], training: bool = False) -> Float[Array, "b h w c"]:
        x32 = x.astype(jnp.float32)
        if training:
            mean = jnp.mean(x32, axis=(0, 1, 2))
            variance = jnp.mean(jnp.square(x32 - mean), axis=(0, 1, 2))
            count = x.shape[0] * x.shape[1] * x.shape[2]
            self._move(self.mean, mean)
            self._move(self.variance, variance * (count / max(1, count - 1)))
        else:
            mean, variance = (jax.lax.stop_gradient(p[...].astype(jnp.float32)) for p in (self.mean, self.variance))
        factor = jax.lax.rsqrt(variance + self.eps) * self.scale[...].astype(jnp.float32)
        return (x32 * factor + (self.bias[...].astype(jnp.float32) - mean * factor)).astype(x.dtype)

    def _move(self, kept: nnx.Param, new: Float[Array, "c"]) -> None:
        old = kept[...].astype(jnp.float32)
        kept[...] = jax.lax.stop_gradient(old + self.momentum * (new - old)).astype(kept[...].dtype)


class ConvolutionalClassifier(nnx.Module):
    """logits = features . classifier + bias, features = mean of the feature map over rows and columns.

    Of a network with the attribute `execution` and the method `feature_map`, whose `__init__` calls `add_classifier`.
    """

    execution: Execution

    def add_classifier(self, feature_dim: int, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """The output layer [feature_dim, num_classes] with a bias; none for 0 classes."""
        self.num_classes = num_classes
        if num_classes:
            dtype, zeros = self.execution.weight_dtype, jax.nn.initializers.zeros
            init = fan_in_normal(feature_dim)
            self.classifier = parameter(rngs, (feature_dim, num_classes), (None, None), init, dtype)
            self.classifier_bias = parameter(rngs, (num_classes,), (None,), zeros, dtype)

    def __call__(self, pixel_values: Float[Array, "b c h w"], training: bool = False) -> Float32[Array, "b k"]:
        """Logits. ValueError without a classifier. In training the norms use, and keep, the batch's statistics."""
        return self.classify(self.features(pixel_values, training))

    def features(self, pixel_values: Float[Array, "b c h w"], training: bool = False) -> Float32[Array, "b d"]:
        """What the classifier reads. ValueError as `feature_map`."""
        return jnp.mean(self.feature_map(pixel_values, training).astype(jnp.float32), axis=(1, 2))

    def feature_map(self, pixel_values: Float[Array, "b c h w"], training: bool = False) -> Float[Array, "b r s d"]:
        """What the last layer before the mean gives, in the compute dtype."""
        raise NotImplementedError(f"{type(self).__name__} has no feature_map")

    def classify(self, features: Float[Array, "b d"]) -> Float32[Array, "b k"]:
        """Logits of features. ValueError without a classifier."""
        if not self.num_classes:
            raise ValueError(f"this {type(self).__name__} has no classifier: config.num_classes is 0")
        return project("bd,dk->bk", features, self.classifier[...]) + self.classifier_bias[...].astype(jnp.float32)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b r s c"]:
    """The largest of 3 x 3, every second one, a pixel of minus infinity around: of h rows, (h - 1) // 2 + 1."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def halved_side(side: int) -> int:
    """Rows after a convolution or a `max_pool` that takes every second one."""
    return (side + 1) // 2


def halved(x: Float[Array, "b h w c"]) -> Float[Array, "b r s c"]:
    """Means of 2 x 2; an odd last row or column is left out."""
    batch, height, width, channels = x.shape
    whole = x[:, : height // 2 * 2, : width // 2 * 2]
    return whole.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def to_rows_last(pixel_values: Float[Array, "b c h w"], channels: int, smallest: int, dtype) -> Float[Array, "b h w c"]:
    """Images as the networks compute them. ValueError for another number of channels, or sides below `smallest`."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != channels or min(pixel_values.shape[2:]) < smallest:
        raise ValueError(
            f"pixel_values need {channels} channels and sides of at least {smallest} pixels [B, C, H, W], "
            f"got {pixel_values.shape}"
        )
    return jnp.moveaxis(pixel_values, 1, -1).astype(dtype)
