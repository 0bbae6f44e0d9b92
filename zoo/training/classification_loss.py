"""The loss of a classifier of images, and what batch normalisation keeps of the images that it has seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from zoo.errors import UserError
from zoo.nn.convolution import STATISTICS
from zoo.training.losses import LossSums
from zoo.training.parameters import flatten_with_names

if TYPE_CHECKING:
    from zoo.data import Batch


@dataclass(frozen=True)
class ClassificationConfig:
    """How a classifier learns. Validation reports cross-entropy without any of it."""

    class_weights: tuple[float, ...] = ()
    """Factor of an image's loss by its class, for classes that are rare; empty: 1 for all."""

    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over all classes (Szegedy et al., arXiv 1512.00567)."""

    focal_gamma: float = 0.0
    """Exponent of (1 - p) with which an image's loss is multiplied, p the probability of its class, so that what is
    known already counts less (Lin et al., arXiv 1708.02002)."""

    def __post_init__(self):
        object.__setattr__(self, "class_weights", tuple(self.class_weights))
        if any(weight < 0 for weight in self.class_weights) or (self.class_weights and not any(self.class_weights)):
            raise UserError(f"classification.class_weights={self.class_weights}: at least 0, and one above 0")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"classification.label_smoothing={self.label_smoothing} must be at least 0 and below 1")
        if not 0 <= self.focal_gamma <= 10:
            raise UserError(f"classification.focal_gamma={self.focal_gamma} must lie in 0 .. 10")
        if self.label_smoothing and self.focal_gamma:
            raise UserError("classification.label_smoothing and focal_gamma cannot be used together")


def classification_loss(
    model: Any, batch: Batch, *, config: ClassificationConfig, rng: Array | None = None
) -> LossSums:
    """Sums over the images of a batch, of weight 1 each:

        loss     = class_weights[y] (1 - p_y)^gamma (-log p_y)         p = softmax(logits), y the image's class
                   class_weights[y] (-(1 - s) log p_y - s mean over classes of log p), with label smoothing s
        accuracy = 1 where the largest logit is y's                    (a metric)

    in float32. Without `rng` it is a validation: cross-entropy alone, and the model's norms use what they have kept.
    With it (no number is drawn) the norms use the batch's statistics, and `statistics` has what they keep from then on,
    times the number of images, so that micro-batches have their mean.
    """
    labels, weights = batch.targets[:, 0], batch.loss_weights[:, 0]
    logits = model(batch.media.pixel_values, training=rng is not None).astype(jnp.float32)
    log_p = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    count = jnp.sum(weights)
    losses, statistics = -own, {}
    if rng is not None:
        if config.label_smoothing:
            losses = -((1 - config.label_smoothing) * own + config.label_smoothing * jnp.mean(log_p, axis=1))
        if config.focal_gamma:
            losses = losses * (1 - jnp.exp(own)) ** config.focal_gamma
        if config.class_weights:
            losses = losses * jnp.asarray(config.class_weights, jnp.float32)[labels]
        named = flatten_with_names(nnx.state(model, nnx.Param))
        statistics = {name: named[name].astype(jnp.float32) * count for name in kept_statistics(named)}
    return LossSums(
        loss=jnp.sum(weights * losses),
        z_loss=jnp.zeros((), jnp.float32),
        weight=jax.lax.stop_gradient(count),
        metrics={"accuracy": jnp.sum(weights * (jnp.argmax(logits, axis=1) == labels))},
        statistics=statistics,
    )


def kept_statistics(names: Iterable[str]) -> list[str]:
    """Those of the parameters that batch normalisation keeps of images, which no gradient moves."""
    return [name for name in names if name.rsplit("/", 1)[-1] in STATISTICS]
