"""Networks that are trained on imbalanced images and then stay: the zoo's ResNet, DenseNet and SigLIP, small ones."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from experiments.twin_augmentation.arms import Backbone, Size
from experiments.twin_augmentation.controls import focal_loss, weighted_cross_entropy
from experiments.twin_augmentation.tasks import Part
from zoo.models import build, preset
from zoo.models.siglip import SiglipConfig
from zoo.nn.convolution import STATISTICS
from zoo.nn.execution import Execution
from zoo.nn.parameters import fan_in_normal, parameter, project

ROWS = 64
"""Images whose features are computed at once."""
PIXELS_SIDE = 16
"""Side of the images whose pixels are features themselves."""


class VitClassifier(nnx.Module):
    """SigLIP's tower, the mean of its patches, and a linear classifier."""

    def __init__(self, config: SiglipConfig, num_classes: int, *, rngs: nnx.Rngs):
        self.tower = build(config, rngs=rngs)
        shape, dtype = (config.embed_dim, num_classes), Execution().weight_dtype
        self.classifier = parameter(rngs, shape, (None, None), fan_in_normal(config.embed_dim), dtype)
        self.classifier_bias = parameter(rngs, (num_classes,), (None,), jax.nn.initializers.zeros, dtype)

    def features(self, pixel_values: Float[Array, "b c h w"], training: bool = False) -> Float32[Array, "b d"]:
        """The mean over patches after the last norm."""
        return jnp.mean(self.tower(pixel_values).astype(jnp.float32), axis=1)

    def classify(self, features: Float[Array, "b d"]) -> Float32[Array, "b k"]:
        """Logits."""
        return project("bd,dk->bk", features, self.classifier[...]) + self.classifier_bias[...]

    def __call__(self, pixel_values: Float[Array, "b c h w"], training: bool = False) -> Float32[Array, "b k"]:
        """Logits."""
        return self.classify(self.features(pixel_values, training))


def new_backbone(kind: Backbone, side: int, seed: int) -> Any:
    """A network with random weights for grey images and two classes. ValueError for "pixels", which is none."""
    rngs = nnx.Rngs(seed)
    if kind == "vit":
        config = SiglipConfig(
            embed_dim=64,
            num_layers=2,
            num_heads=4,
            hidden_dim=128,
            patch_size=8 if side >= 64 else 4,
            image_size=side,
            num_channels=1,
        )
        return VitClassifier(config, 2, rngs=rngs)
    if kind == "pixels":
        raise ValueError("pixels are no network")
    return build(replace(preset(f"{kind}-tiny"), num_classes=2), rngs=rngs)


def trained(
    kind: Backbone, train: Part, size: Size, steps: int, seed: int, *, focal: bool, weights: np.ndarray | None
) -> Any:
    """The network after `steps` steps of AdamW on augmented images, drawn in epochs without regard to their class.

    focal: the focal loss instead of cross-entropy. weights: of the classes in the loss.
    """
    model = new_backbone(kind, train.images.shape[1], seed)
    graphdef, params = nnx.split(model, nnx.Param)
    warmup = max(1, steps // 10)
    rate = optax.warmup_cosine_decay_schedule(0.0, size.learning_rate, warmup, steps)
    optimizer = optax.adamw(rate, weight_decay=size.weight_decay)
    state = optimizer.init(params)
    gamma = size.gamma if focal else 0.0
    step = _step(graphdef, optimizer, gamma)
    of_classes = jnp.ones(2) if weights is None else jnp.asarray(weights, jnp.float32)
    rng = np.random.default_rng([seed, 2])
    for places in epochs(len(train), size.batch, steps, rng):
        images = augmented(train.images[places], size.shift, rng)
        params, state = step(params, state, images[:, None], train.labels[places], of_classes)
    return nnx.merge(graphdef, params)


def epochs(count: int, batch: int, steps: int, rng: np.random.Generator) -> list[Int[np.ndarray, " b"]]:
    """Places of the examples of each step: shuffled epochs, one behind the other."""
    needed = batch * steps
    orders = [rng.permutation(count) for _ in range(-(-needed // count))]
    return list(np.concatenate(orders)[:needed].reshape(steps, batch))


def augmented(
    images: Float32[np.ndarray, "n side side"], shift: int, rng: np.random.Generator
) -> Float32[np.ndarray, "n side side"]:
    """Each image moved by up to `shift` 64ths of its side (its edge goes on), mirrored or not, with a contrast of
    0.9..1.1 and a brightness of -0.1..0.1."""
    count, side, _ = images.shape
    most = max(1, round(shift * side / 64))
    padded = np.pad(images, ((0, 0), (most, most), (most, most)), mode="edge")
    down, across = rng.integers(0, 2 * most + 1, (2, count))
    mirror = rng.random((count,)) < 0.5
    contrast = rng.uniform(0.9, 1.1, (count,))
    brightness = rng.uniform(-0.1, 0.1, (count,))
    out = np.empty_like(images)
    for i in range(count):
        moved = padded[i, down[i] : down[i] + side, across[i] : across[i] + side]
        out[i] = (moved[:, ::-1] if mirror[i] else moved) * contrast[i] + brightness[i]
    return out


def _step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, gamma: float) -> Callable:
    """Jitted (params, optimizer's state, images, labels, weights of classes) -> (params, state)."""

    @jax.jit
    def step(params, state, images, labels, weights):
        def loss(params):
            model = nnx.merge(graphdef, params)
            logits = model(images, training=True)
            if gamma:
                value = focal_loss(logits, labels, gamma, weights)
            else:
                value = weighted_cross_entropy(logits, labels, weights)
            return value, nnx.state(model, nnx.Param)

        gradients, after = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return with_statistics(optax.apply_updates(params, updates), after), state

    return step


def with_statistics(params: nnx.State, after: nnx.State) -> nnx.State:
    """`params` with the norms' statistics of `after`: those that the batch has moved."""
    kept = dict(nnx.to_flat_state(after))
    return nnx.from_flat_state(
        [(path, kept[path] if path[-1] in STATISTICS else leaf) for path, leaf in nnx.to_flat_state(params)]
    )


def features_of(model: Any, images: Float32[np.ndarray, "n side side"]) -> Float32[np.ndarray, "n d"]:
    """The penultimate features, `ROWS` images at a time."""
    graphdef, params = nnx.split(model, nnx.Param)
    rows = [
        np.asarray(_features(graphdef, params, _filled(images[start : start + ROWS])[:, None]))
        for start in range(0, len(images), ROWS)
    ]
    return np.concatenate(rows)[: len(images)]


def saliency(model: Any, images: Float32[np.ndarray, "n side side"]) -> Float32[np.ndarray, "side side"]:
    """The mean over images of |d (logit 1 - logit 0) / d pixel|, with the sum 1."""
    graphdef, params = nnx.split(model, nnx.Param)
    total = np.zeros(images.shape[1:])
    for start in range(0, len(images), ROWS):
        part = images[start : start + ROWS]
        slopes = np.asarray(_slopes(graphdef, params, _filled(part)[:, None]))
        total += np.abs(slopes[: len(part), 0]).sum(axis=0)
    return (total / total.sum()).astype(np.float32)


@partial(jax.jit, static_argnums=0)
def _features(graphdef, params, pixels):
    return nnx.merge(graphdef, params).features(pixels)


@partial(jax.jit, static_argnums=0)
def _slopes(graphdef, params, pixels):
    def difference(pixels):
        logits = nnx.merge(graphdef, params)(pixels)
        return jnp.sum(logits[:, 1] - logits[:, 0])

    return jax.grad(difference)(pixels)


def _filled(images: np.ndarray) -> np.ndarray:
    """Blank images after the last one: every call has the same shape."""
    return np.pad(images, ((0, ROWS - len(images)), (0, 0), (0, 0)))
