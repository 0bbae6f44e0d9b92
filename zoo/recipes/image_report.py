"""What is said at the end of a run that trained a tokenizer of images, and the picture of what it does."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32, Float64, UInt8

from zoo.data import Batch
from zoo.models import VqImageConfig
from zoo.models.vq_image import unpatchified
from zoo.nn.vector_quantiser import perplexity
from zoo.parallel import activation_sharding, batch_sharding
from zoo.parallel.rows import to_devices
from zoo.recipes.recipe import Recipe
from zoo.training.pictures import loss_curve

SHOWN = 32
"""Images in RUN/reconstructions.png."""


class Held(NamedTuple):
    """Held-out images and what the model makes of them, pixels in -1..1."""

    images: Float32[np.ndarray, "n s s 3"]
    reconstructions: Float32[np.ndarray, "n s s 3"]
    counts: Float64[np.ndarray, " codes"]
    """How often each code is used."""


def image_report(recipe: Recipe, graphdef: nnx.GraphDef, params: Any, held_out: Sequence[Batch], mesh: Mesh) -> str:
    """The table of held-out images, the pictures drawn, and what to do next. `mesh` is the run's."""
    run = Path(recipe.run_dir)
    found = reconstructions(recipe, graphdef, params, held_out, mesh)
    baselines = {} if found is None else {"mean colour": mean_colour_error(found.images)}
    if jax.process_index() == 0:
        loss_curve(
            run / "metrics.jsonl", run / "loss.png", baselines=baselines, title=recipe.name, unit="squared error"
        )
        if found is not None:
            draw(found, run / "reconstructions.png")
    lines = [f"the loss curve is in {run / 'loss.png'}, every step in {run / 'metrics.jsonl'}", "", what_next(recipe)]
    if found is None:
        return "\n".join(["no validation: no image was held out", *lines])
    shown = f"held-out images are above their reconstructions in {run / 'reconstructions.png'}"
    return "\n".join([comparison(found), shown, *lines])


def reconstructions(
    recipe: Recipe, graphdef: nnx.GraphDef, params: Any, held_out: Sequence[Batch], mesh: Mesh
) -> Held | None:
    """All held-out images of the validation's batches; None if there are none."""
    config = recipe.model
    assert isinstance(config, VqImageConfig)

    def apply(params: Any, packed: Any) -> Any:
        model: Any = nnx.merge(graphdef, params)
        patches = packed.patches.reshape(-1, config.codes_per_image, config.patch_dim)
        real = packed.segment_ids.reshape(patches.shape[:2]) > 0
        found = model.reconstruct(patches, None, None, real.astype(np.float32))
        images, decoded = unpatchified(patches, config.grid), unpatchified(found.patches, config.grid)
        return images, decoded, real[:, 0], found.quantised.counts

    sharding = batch_sharding(mesh, recipe.rules)
    everywhere = NamedSharding(mesh, PartitionSpec())  # every host draws and counts all of them
    jitted = jax.jit(apply, out_shardings=everywhere)
    originals, decoded, counts = [], [], np.zeros(config.num_codes)
    with activation_sharding(mesh, recipe.rules):
        for batch in held_out:
            packed = to_devices(batch, sharding).media.images
            images, found, real, used = (np.asarray(part) for part in jitted(params, packed))
            originals.append(images[real])
            decoded.append(np.clip(found[real], -1, 1))
            counts += used
    if not counts.sum():
        return None
    return Held(np.concatenate(originals), np.concatenate(decoded), counts)


def comparison(found: Held) -> str:
    """A table: squared error and PSNR of the model and of the mean colour of each image; how codes are used."""
    error = float(np.mean(np.square(found.images - found.reconstructions)))
    used = f"{np.count_nonzero(found.counts):,} of {len(found.counts):,}"
    rows = [
        ("this model", error, f"{float(perplexity(jnp.asarray(found.counts))):>18,.1f}{used:>16}"),
        ("mean colour of each image", mean_colour_error(found.images), ""),
    ]
    title = f"on {len(found.images):,} held-out images"
    lines = [f"{title:<30}{'squared error':>16}{'PSNR (dB)':>12}{'code perplexity':>18}{'codes in use':>16}"]
    lines += [f"{name:<30}{value:>16.5f}{psnr(value):>12.2f}{codes}" for name, value, codes in rows]
    return "\n".join(lines)


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(4 / mean squared error) of pixels in -1..1."""
    return 10 * math.log10(4 / max(error, 1e-12))


def mean_colour_error(images: Float32[np.ndarray, "n s s 3"]) -> float:
    """Mean squared error of images that are replaced by their mean colours."""
    return float(np.mean(np.square(images - images.mean(axis=(1, 2), keepdims=True))))


def draw(found: Held, png: Path, columns: int = 16) -> None:
    """Writes a grid of held-out images, spread over all of them: each row of originals above its reconstructions."""
    from PIL import Image

    count = min(SHOWN, len(found.images))
    picked = np.linspace(0, len(found.images) - 1, count).round().astype(int)
    rows = []
    for first in range(0, count, columns):
        chosen = picked[first : first + columns]
        for images in (found.images[chosen], found.reconstructions[chosen]):
            blank = np.ones((columns - len(chosen), *images.shape[1:]), np.float32)
            rows.append(np.concatenate([*images, *blank], axis=1))
    pixels: UInt8[np.ndarray, "h w 3"] = np.round((np.concatenate(rows) + 1) * 127.5).astype(np.uint8)
    scale = max(1, 64 // found.images.shape[1])
    Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1)).save(png)


def what_next(recipe: Recipe) -> str:
    """Where the codes of a finished run go."""
    model: Any = recipe.model
    return "\n".join(
        [
            "what to do next:",
            '  train a model that writes images ("output": true in its documents) with',
            f"    --data.media.image-tokenizer {recipe.run_dir} --data.media.image-codes {model.num_codes}",
        ]
    )
