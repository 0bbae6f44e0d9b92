"""The loss of a tokenizer of images: how far its reconstructions are from the images, and its quantiser's losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp

from zoo.nn.vector_quantiser import perplexity
from zoo.training.losses import LossSums

if TYPE_CHECKING:
    from zoo.data import Batch


class ImageTokenizer(Protocol):
    """What the loss asks of a model (`zoo.models.VqImage`)."""

    @property
    def config(self) -> Any:
        """With codes_per_image and commitment."""

    def reconstruct(self, patches: Any, coordinates: Any, segment_ids: Any, weights: Any) -> Any:
        """Reconstructed patches, and the quantiser's losses."""


def image_reconstruction_loss(model: ImageTokenizer, batch: Batch) -> LossSums:
    """The squared error of the images of a batch, summed over its patches, and the losses of the quantiser.

        loss       = sum over patches of the mean of (x - y)^2 over the numbers of a patch, pixels x in -1..1
        auxiliary  = codebook_loss + commitment * commitment_loss + revival_loss     (`zoo.nn.vector_quantiser`)
        weight     = number of patches that are no padding

    so that loss / weight is the mean squared error, and 10 log10(4 / it) the PSNR in dB. metrics: code_perplexity, of
    the codes of this batch.

    Images must have `codes_per_image` patches each and rows must hold whole images, as with `data.media.image_side`.
    """
    images = batch.media.images
    count = model.config.codes_per_image
    patches = jnp.asarray(images.patches).reshape(-1, count, images.patches.shape[-1])
    weights = (jnp.asarray(images.segment_ids) > 0).reshape(-1, count).astype(jnp.float32)
    found = model.reconstruct(patches, None, None, weights)
    error = jnp.mean(jnp.square(found.patches - patches), axis=-1)
    weight, quantised = jnp.sum(weights), found.quantised
    return LossSums(
        loss=jnp.sum(weights * error),
        z_loss=jnp.zeros((), jnp.float32),
        weight=jax.lax.stop_gradient(weight),
        auxiliary={
            "codebook_loss": quantised.codebook_loss,
            "commitment_loss": model.config.commitment * quantised.commitment_loss,
            "revival_loss": quantised.revival_loss,
        },
        metrics={"code_perplexity": weight * perplexity(quantised.counts)},
    )
