"""A trained network of images with a twin head instead of its classifier; the network stays as it is.

classifier = zoo.augment(model, images, labels, held_out_images, held_out_labels)
classifier.predictions(new_images), classifier.probabilities(new_images)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Float32, Float64, Int, Int32

from zoo.errors import UserError
from zoo.models.densenet import Densenet
from zoo.models.resnet import Resnet
from zoo.models.siglip import Siglip
from zoo.nn.twin import fit_twin_head
from zoo.nn.twin_classifier import FitHead, TwinClassifier, twin_augmented

BATCH_SIZE = 64
"""Images whose features are computed at once."""


@dataclass(frozen=True)
class AugmentedClassifier:
    """Images [n, C, H, W], as the network reads them, to classes."""

    model: Any
    """The network."""
    twin: TwinClassifier
    """Of its penultimate features."""
    batch_size: int = BATCH_SIZE
    """Images at once."""

    def predictions(self, pixel_values: Float[np.ndarray, "n c h w"]) -> Int32[np.ndarray, " n"]:
        """The class whose planes are nearest."""
        return self.twin.predictions(penultimate(self.model, pixel_values, self.batch_size))

    def probabilities(self, pixel_values: Float[np.ndarray, "n c h w"]) -> Float64[np.ndarray, "n k"]:
        """Calibrated on the held-out images; rows sum to 1."""
        return self.twin.probabilities(penultimate(self.model, pixel_values, self.batch_size))


def augment(
    model: Any,
    pixel_values: Float[np.ndarray, "n c h w"],
    labels: Int[np.ndarray, " n"],
    held_out_pixel_values: Float[np.ndarray, "m c h w"],
    held_out_labels: Int[np.ndarray, " m"],
    *,
    fit: FitHead = fit_twin_head,
    batch_size: int = BATCH_SIZE,
) -> AugmentedClassifier:
    """Fits a twin head to a trained network's penultimate features (arXiv 2102.07975, of which only the abstract could
    be read: `zoo.nn.twin_classifier`). The features are computed once; nothing of the network is trained.

    Args:
      model: a ResNet, DenseNet or SigLIP (the pooled vector where there is a head, else the mean of the patches).
      pixel_values: training images, as the network reads them.
      labels: their classes, 0, 1, ...
      held_out_pixel_values: images that neither network nor head was trained on: for calibration alone.
      held_out_labels: their classes.
      fit: fits the head to standardised features.
      batch_size: images at once.

    Raises:
      UserError: the model gives no features of images.
      ValueError: images of the wrong shape, labels without examples (`twin_augmented`).
    """
    features = penultimate(model, pixel_values, batch_size)
    held_out = penultimate(model, held_out_pixel_values, batch_size)
    twin = twin_augmented(features, np.asarray(labels), held_out, np.asarray(held_out_labels), fit=fit)
    return AugmentedClassifier(model, twin, batch_size)


def penultimate(
    model: Any, pixel_values: Float[np.ndarray, "n c h w"], batch_size: int = BATCH_SIZE
) -> Float32[np.ndarray, "n d"]:
    """What the network's classifier reads, or would read. Errors as `augment`."""
    of_images = _features_of(model)
    pixel_values = np.asarray(pixel_values)
    graphdef, state = nnx.split(model)
    rows = []
    for start in range(0, len(pixel_values), batch_size):
        part = pixel_values[start : start + batch_size]
        # Blank images behind the last one: every call has the same shape.
        filled = np.pad(part, ((0, batch_size - len(part)), *((0, 0),) * (part.ndim - 1)))
        rows.append(np.asarray(_computed(of_images, graphdef, state, filled), np.float32)[: len(part)])
    if not rows:
        raise ValueError("no image")
    return np.concatenate(rows)


@partial(jax.jit, static_argnums=(0, 1))
def _computed(of_images: Callable, graphdef: nnx.GraphDef, state: nnx.State, pixel_values):
    return of_images(nnx.merge(graphdef, state), pixel_values).astype(jnp.float32)


def _features_of(model: Any) -> Callable:
    if isinstance(model, Siglip):
        return _pooled if model.config.use_head else _mean_patch
    if not isinstance(model, Resnet | Densenet):
        raise UserError(f"a {type(model).__name__} gives no features of images: augment a ResNet, DenseNet or SigLIP")
    return _own


def _own(model, pixel_values):
    return model.features(pixel_values)


def _pooled(model, pixel_values):
    return model.pool(model(pixel_values))


def _mean_patch(model, pixel_values):
    return model(pixel_values).astype(jnp.float32).mean(axis=1)
