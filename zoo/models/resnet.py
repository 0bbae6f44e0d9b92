"""ResNet, a convolutional classifier of images (He et al., arXiv 1512.03385), as the public weights have it.

    x = max_pool(relu(norm(conv7(pixels))))
    x = relu(shortcut(x) + norm(conv3(relu(norm(conv3(x))))))                            each basic block
    x = relu(shortcut(x) + norm(conv1(relu(norm(conv3(relu(norm(conv1(x)))))))))         each bottleneck
    logits = mean of x over rows and columns . weights + bias

Of a stage whose first block halves rows and columns, that block's 3 x 3 convolution has the stride 2 ("version 1.5",
as torchvision and microsoft/resnet-50 have it), and so has its shortcut: a 1 x 1 convolution and a norm where the shape
changes. Source of names and details: transformers 5.23, models/resnet; torchvision, models/resnet.py.
"""

from dataclasses import dataclass
from typing import Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from zoo.errors import UserError
from zoo.nn import Execution
from zoo.nn.convolution import BatchNorm, Convolution, ConvolutionalClassifier, halved_side, max_pool, to_rows_last

SMALLEST_SIDE = 2
"""Pixels of a side."""


@dataclass(frozen=True)
class ResnetConfig:
    """Architecture of a ResNet."""

    depths: tuple[int, ...]
    """Blocks of each stage."""
    widths: tuple[int, ...]
    """Channels that each stage gives."""
    block: Literal["basic", "bottleneck"]
    """Two 3 x 3 convolutions; or 1 x 1, 3 x 3, 1 x 1 with a quarter of the channels between them."""
    stem_width: int = 64
    """Channels after the first convolution."""
    num_channels: int = 3
    """Colours of a pixel."""
    num_classes: int = 1000
    """Classes; 0: no classifier, features alone."""

    def __post_init__(self):
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.block not in ("basic", "bottleneck"):
            raise UserError(f"model.block must be basic or bottleneck, got {self.block!r}")
        if not self.depths or len(self.depths) != len(self.widths) or min(self.depths) < 1:
            raise UserError(f"model.depths={self.depths}, widths={self.widths}: a depth of 1 or more for each width")
        if min(*self.widths, self.stem_width, self.num_channels) < 1 or self.num_classes < 0:
            raise UserError("model.widths, stem_width and num_channels must be at least 1, num_classes at least 0")
        if self.block == "bottleneck" and any(width % 4 for width in self.widths):
            raise UserError(f"model.widths={self.widths} must be multiples of 4 for bottlenecks")

    @property
    def smallest_side(self) -> int:
        """Pixels of a side of an image, at least."""
        return SMALLEST_SIDE

    @property
    def feature_dim(self) -> int:
        """Width of the features that the classifier reads."""
        return self.widths[-1]

    def convolutions(self, stage: int, index: int) -> tuple[tuple[int, int, int, int], ...]:
        """(inputs, outputs, kernel, stride) of each convolution of a block, its shortcut left out."""
        outputs = self.widths[stage]
        inputs, stride = self.entry(stage, index)
        if self.block == "basic":
            return ((inputs, outputs, 3, stride), (outputs, outputs, 3, 1))
        inner = outputs // 4
        return ((inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1))

    def entry(self, stage: int, index: int) -> tuple[int, int]:
        """(channels that come in, stride) of a block."""
        if index:
            return self.widths[stage], 1
        return (self.widths[stage - 1], 2) if stage else (self.stem_width, 1)

    def has_shortcut(self, stage: int, index: int) -> bool:
        """Whether the shortcut of a block is a convolution."""
        inputs, stride = self.entry(stage, index)
        return inputs != self.widths[stage] or stride != 1

    def flops_per_image(self, side: int) -> float:
        """Forward floating-point operations of the convolutions and the classifier on an image of side x side pixels; a
        training step takes three times as many."""
        side = halved_side(side)
        total = side**2 * self.num_channels * self.stem_width * 49
        side = halved_side(side)
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                for inputs, outputs, kernel, stride in self.convolutions(stage, index):
                    side = halved_side(side) if stride == 2 else side
                    total += side**2 * inputs * outputs * kernel**2
                if self.has_shortcut(stage, index):
                    total += side**2 * self.entry(stage, index)[0] * self.widths[stage]
        return 2.0 * (total + self.feature_dim * self.num_classes)

    def num_parameters(self) -> int:
        """Weights, biases, and the norms' statistics, which are not trained by a gradient."""
        total = self.num_channels * self.stem_width * 49 + 4 * self.stem_width
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                for inputs, outputs, kernel, _ in self.convolutions(stage, index):
                    total += inputs * outputs * kernel * kernel + 4 * outputs
                if self.has_shortcut(stage, index):
                    total += (self.entry(stage, index)[0] + 4) * self.widths[stage]
        return total + (self.feature_dim + 1) * self.num_classes


class NormedConvolution(nnx.Module):
    """norm(convolution(x))."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, *, execution: Execution, rngs: nnx.Rngs):
        self.convolution = Convolution(inputs, outputs, kernel, stride=stride, execution=execution, rngs=rngs)
        self.norm = BatchNorm(outputs, execution=execution, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], training: bool) -> Float[Array, "b r s o"]:
        return self.norm(self.convolution(x), training)


class ResnetBlock(nnx.Module):
    """relu(shortcut(x) + what the convolutions make of x)."""

    def __init__(self, config: ResnetConfig, stage: int, index: int, *, execution: Execution, rngs: nnx.Rngs):
        self.convolutions = nnx.List(
            [NormedConvolution(*shape, execution=execution, rngs=rngs) for shape in config.convolutions(stage, index)]
        )
        inputs, stride = config.entry(stage, index)
        self.has_shortcut = config.has_shortcut(stage, index)
        if self.has_shortcut:
            width = config.widths[stage]
            self.shortcut = NormedConvolution(inputs, width, 1, stride, execution=execution, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], training: bool) -> Float[Array, "b r s o"]:
        residual = self.shortcut(x, training) if self.has_shortcut else x
        *first, last = self.convolutions
        for convolution in first:
            x = jax.nn.relu(convolution(x, training))
        return jax.nn.relu(last(x, training) + residual)


class Resnet(ConvolutionalClassifier):
    """Images to logits of classes."""

    def __init__(self, config: ResnetConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution()
        self.config, self.execution = config, execution
        self.stem = NormedConvolution(config.num_channels, config.stem_width, 7, 2, execution=execution, rngs=rngs)
        self.stages = nnx.List(
            [
                nnx.List([ResnetBlock(config, stage, index, execution=execution, rngs=rngs) for index in range(depth)])
                for stage, depth in enumerate(config.depths)
            ]
        )
        self.add_classifier(config.feature_dim, config.num_classes, rngs=rngs)

    def feature_map(self, pixel_values: Float[Array, "b c h w"], training: bool = False) -> Float[Array, "b r s d"]:
        """What the last stage gives, in the compute dtype; images are [B, C, H, W], as in the public implementation,
        of any size. ValueError for another number of channels."""
        x = to_rows_last(pixel_values, self.config.num_channels, SMALLEST_SIDE, self.execution.dtype)
        with jax.named_scope("stem"):
            x = max_pool(jax.nn.relu(self.stem(x, training)))
        for number, stage in enumerate(self.stages):
            with jax.named_scope(f"stage_{number}"):
                for block in stage:
                    x = block(x, training)
        return x


_BOTTLENECK = (256, 512, 1024, 2048)
PRESETS = {
    "resnet-18": ResnetConfig(depths=(2, 2, 2, 2), widths=(64, 128, 256, 512), block="basic"),
    "resnet-34": ResnetConfig(depths=(3, 4, 6, 3), widths=(64, 128, 256, 512), block="basic"),
    "resnet-50": ResnetConfig(depths=(3, 4, 6, 3), widths=_BOTTLENECK, block="bottleneck"),
    "resnet-101": ResnetConfig(depths=(3, 4, 23, 3), widths=_BOTTLENECK, block="bottleneck"),
    "resnet-152": ResnetConfig(depths=(3, 8, 36, 3), widths=_BOTTLENECK, block="bottleneck"),
    # Grey images of 64 pixels, two classes, on a CPU.
    "resnet-tiny": ResnetConfig(
        depths=(1, 1, 1), widths=(16, 32, 64), block="basic", stem_width=16, num_channels=1, num_classes=2
    ),
}
