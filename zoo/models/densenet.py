"""DenseNet, a convolutional classifier of images (Huang et al., arXiv 1608.06993): every layer reads all before it.

    x = max_pool(relu(norm(conv7(pixels))))
    x = [x, conv3(relu(norm(conv1(relu(norm(x))))))]          each layer of a dense block: `growth` channels more
    x = halved(conv1(relu(norm(x))))                          between dense blocks: half of channels and sides
    logits = mean of relu(norm(x)) over rows and columns . weights + bias

This is DenseNet-BC (bottlenecks, compression 1/2). Source of names and details: torchvision, models/densenet.py.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.errors import UserError
from zoo.nn import Execution
from zoo.nn.convolution import (
    BatchNorm,
    Convolution,
    ConvolutionalClassifier,
    halved,
    halved_side,
    max_pool,
    to_rows_last,
)


@dataclass(frozen=True)
class DensenetConfig:
    """Architecture of a DenseNet."""

    depths: tuple[int, ...]
    """Layers of each dense block."""
    growth: int = 32
    """Channels that a layer adds."""
    stem_width: int = 64
    """Channels after the first convolution."""
    bottleneck: int = 4
    """Channels between a layer's two convolutions, as a multiple of `growth`."""
    num_channels: int = 3
    """Colours of a pixel."""
    num_classes: int = 1000
    """Classes; 0: no classifier, features alone."""

    def __post_init__(self):
        object.__setattr__(self, "depths", tuple(self.depths))
        if not self.depths or min(self.depths) < 1:
            raise UserError(f"model.depths={self.depths}: one or more layers in each dense block")
        if min(self.growth, self.stem_width, self.bottleneck, self.num_channels) < 1 or self.num_classes < 0:
            raise UserError(
                "model.growth, stem_width, bottleneck and num_channels must be at least 1, num_classes at least 0"
            )

    @property
    def inputs(self) -> tuple[int, ...]:
        """Channels that come into each dense block."""
        found = [self.stem_width]
        for depth in self.depths[:-1]:
            found.append((found[-1] + depth * self.growth) // 2)
        return tuple(found)

    @property
    def feature_dim(self) -> int:
        """Width of the features that the classifier reads."""
        return self.inputs[-1] + self.depths[-1] * self.growth

    @property
    def smallest_side(self) -> int:
        """Pixels of a side of which one is left after the stem and every halving."""
        return 4 * 2 ** (len(self.depths) - 1) - 3

    def flops_per_image(self, side: int) -> float:
        """Forward floating-point operations of the convolutions and the classifier on an image of side x side pixels; a
        training step takes three times as many."""
        side = halved_side(side)
        total = side**2 * self.num_channels * self.stem_width * 49
        side = halved_side(side)
        inner = self.bottleneck * self.growth
        for number, (depth, width) in enumerate(zip(self.depths, self.inputs)):
            for _ in range(depth):
                total += side**2 * (width * inner + 9 * inner * self.growth)
                width += self.growth
            if number + 1 < len(self.depths):
                total += side**2 * width * (width // 2)
                side //= 2
        return 2.0 * (total + self.feature_dim * self.num_classes)

    def num_parameters(self) -> int:
        """Weights, biases, and the norms' statistics, which are not trained by a gradient."""
        total = self.num_channels * self.stem_width * 49 + 4 * self.stem_width
        inner = self.bottleneck * self.growth
        for number, (depth, width) in enumerate(zip(self.depths, self.inputs)):
            for _ in range(depth):
                total += (4 + inner) * width + (4 + 9 * self.growth) * inner
                width += self.growth
            if number + 1 < len(self.depths):
                total += 4 * width + width * (width // 2)
        return total + 4 * self.feature_dim + (self.feature_dim + 1) * self.num_classes


class DenseLayer(nnx.Module):
    """[x, second(relu(norm(first(relu(norm(x))))))]."""

    def __init__(self, width: int, config: DensenetConfig, *, execution: Execution, rngs: nnx.Rngs):
        inner = config.bottleneck * config.growth
        self.first_norm = BatchNorm(width, execution=execution, rngs=rngs)
        self.first = Convolution(width, inner, 1, execution=execution, rngs=rngs)
        self.second_norm = BatchNorm(inner, execution=execution, rngs=rngs)
        self.second = Convolution(inner, config.growth, 3, execution=execution, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], training: bool) -> Float[Array, "b h w o"]:
        inner = self.first(jax.nn.relu(self.first_norm(x, training)))
        return jnp.concatenate([x, self.second(jax.nn.relu(self.second_norm(inner, training)))], axis=-1)


class Transition(nnx.Module):
    """halved(convolution(relu(norm(x))))."""

    def __init__(self, width: int, *, execution: Execution, rngs: nnx.Rngs):
        self.norm = BatchNorm(width, execution=execution, rngs=rngs)
        self.convolution = Convolution(width, width // 2, 1, execution=execution, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], training: bool) -> Float[Array, "b r s o"]:
        return halved(self.convolution(jax.nn.relu(self.norm(x, training))))


class Densenet(ConvolutionalClassifier):
    """Images to logits of classes."""

    def __init__(self, config: DensenetConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution()
        self.config, self.execution = config, execution
        how: dict[str, Any] = dict(execution=execution, rngs=rngs)
        self.stem = Convolution(config.num_channels, config.stem_width, 7, stride=2, **how)
        self.stem_norm = BatchNorm(config.stem_width, **how)
        blocks, transitions = [], []
        for number, (depth, width) in enumerate(zip(config.depths, config.inputs)):
            blocks.append(nnx.List([DenseLayer(width + i * config.growth, config, **how) for i in range(depth)]))
            if number + 1 < len(config.depths):
                transitions.append(Transition(width + depth * config.growth, **how))
        self.blocks, self.transitions = nnx.List(blocks), nnx.List(transitions)
        self.final_norm = BatchNorm(config.feature_dim, **how)
        self.add_classifier(config.feature_dim, config.num_classes, rngs=rngs)

    def feature_map(self, pixel_values: Float[Array, "b c h w"], training: bool = False) -> Float[Array, "b r s d"]:
        """What the last norm gives, after its relu, in the compute dtype; images are [B, C, H, W], of any size that the
        halvings leave a pixel of. ValueError for a smaller one or another number of channels."""
        x = to_rows_last(pixel_values, self.config.num_channels, self.config.smallest_side, self.execution.dtype)
        with jax.named_scope("stem"):
            x = max_pool(jax.nn.relu(self.stem_norm(self.stem(x), training)))
        for number, block in enumerate(self.blocks):
            with jax.named_scope(f"block_{number}"):
                for layer in block:
                    x = layer(x, training)
                if number < len(self.transitions):
                    x = self.transitions[number](x, training)
        return jax.nn.relu(self.final_norm(x, training))


PRESETS = {
    "densenet-121": DensenetConfig(depths=(6, 12, 24, 16)),
    "densenet-161": DensenetConfig(depths=(6, 12, 36, 24), growth=48, stem_width=96),
    "densenet-169": DensenetConfig(depths=(6, 12, 32, 32)),
    "densenet-201": DensenetConfig(depths=(6, 12, 48, 32)),
    # Grey images of 64 pixels, two classes, on a CPU.
    "densenet-tiny": DensenetConfig(depths=(2, 3, 3), growth=12, stem_width=16, num_channels=1, num_classes=2),
}
