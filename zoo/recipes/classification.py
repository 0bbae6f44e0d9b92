"""What is particular to runs that train a classifier of images: their checks, and what is said at their end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32, Int

from zoo.data import Batch
from zoo.errors import UserError
from zoo.models import ClassifierConfig
from zoo.parallel import activation_sharding, batch_sharding
from zoo.parallel.rows import to_devices
from zoo.recipes.recipe import Recipe
from zoo.training.classification_loss import ClassificationConfig
from zoo.training.pictures import confusion_picture, loss_curve

LISTED = 20
"""Classes that the table has a line for, at most."""


def check_classification(recipe: Recipe) -> None:
    """Raises `UserError` if a classifier is to be trained on something else than images with classes, or something else
    on those, or its sizes are not those of the images."""
    data, model, how = recipe.data, recipe.model, recipe.classification
    if recipe.classifies != (data.format == "labelled_images"):
        wanted = "'labelled_images': its model classifies images"
        if not recipe.classifies:
            wanted = "another than 'labelled_images', which is for a classifier of images"
        raise UserError(f"data.format={data.format!r} of {recipe.name} must be {wanted}")
    if not isinstance(model, ClassifierConfig):
        if how != ClassificationConfig():
            raise UserError(f"classification.* is for classifiers of images, {recipe.name} trains none: leave it out")
        return
    classes = len(data.images.classes)
    for name, value, wanted in (
        ("model.num_classes", model.num_classes, f"the {classes} of data.images.classes"),
        ("model.num_channels", model.num_channels, f"data.images.channels={data.images.channels}"),
    ):
        if value != (classes if name == "model.num_classes" else data.images.channels):
            raise UserError(f"{name}={value} must be {wanted}")
    if how.class_weights and len(how.class_weights) != classes:
        raise UserError(f"classification.class_weights has {len(how.class_weights)} numbers for {classes} classes")
    if data.images.side < model.smallest_side:
        raise UserError(f"data.images.side={data.images.side} must be at least {model.smallest_side} for this model")
    for option, given in (
        ("z_loss", recipe.z_loss),
        ("loss_chunk_tokens", recipe.loss_chunk_tokens),
        ("peft.method", recipe.peft.trains_adapter),
    ):
        if given:
            raise UserError(f"{option} is not for classifiers of images: leave it out")


@dataclass(frozen=True)
class Held:
    """Held-out images, and what the model says of them."""

    labels: Int[np.ndarray, " n"]
    log_probabilities: Float32[np.ndarray, "n k"]

    @property
    def confusion(self) -> Int[np.ndarray, "k k"]:
        """How many images of the class of a row are taken for that of a column."""
        classes = self.log_probabilities.shape[1]
        cells = self.labels * classes + self.log_probabilities.argmax(axis=1)
        return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def classification_report(
    recipe: Recipe, graphdef: nnx.GraphDef, params: Any, held_out: Sequence[Batch], mesh: Mesh
) -> str:
    """The tables of held-out images, the pictures drawn, and what to do next. `mesh` is the run's."""
    run, classes = Path(recipe.run_dir), recipe.data.images.classes
    found = classified(recipe, graphdef, params, held_out, mesh) if held_out else None
    baselines = {} if found is None else {"class frequencies": entropy(found.labels, len(classes))}
    if jax.process_index() == 0:
        loss_curve(
            run / "metrics.jsonl", run / "loss.png", baselines=baselines, title=recipe.name, unit="nats per image"
        )
        if found is not None:
            confusion_picture(found.confusion, classes, run / "confusion.png", title=recipe.name)
    lines = [f"the loss curve is in {run / 'loss.png'}, every step in {run / 'metrics.jsonl'}", "", what_next(recipe)]
    if found is None:
        return "\n".join(["no validation: no image was held out", *lines])
    drawn = f"which class is taken for which is in {run / 'confusion.png'}"
    return "\n".join([comparison(found, classes), drawn, *lines])


def classified(recipe: Recipe, graphdef: nnx.GraphDef, params: Any, held_out: Sequence[Batch], mesh: Mesh) -> Held:
    """All held-out images of the validation's batches."""

    def apply(params: Any, batch: Batch) -> Any:
        model: Any = nnx.merge(graphdef, params)
        logits = model(batch.media.pixel_values)
        return batch.targets[:, 0], jax.nn.log_softmax(logits), batch.loss_weights[:, 0]

    everywhere = NamedSharding(mesh, PartitionSpec())  # every host counts all of them
    jitted, sharding = jax.jit(apply, out_shardings=everywhere), batch_sharding(mesh, recipe.rules)
    labels, log_p = [], []
    with activation_sharding(mesh, recipe.rules):
        for batch in held_out:
            label, found, weight = (np.asarray(part) for part in jitted(params, to_devices(batch, sharding)))
            labels.append(label[weight > 0])
            log_p.append(found[weight > 0])
    return Held(np.concatenate(labels), np.concatenate(log_p))


def entropy(labels: Int[np.ndarray, " n"], classes: int) -> float:
    """Cross-entropy in nats of knowing nothing but the shares of the classes among these very images."""
    shares = np.bincount(labels, minlength=classes) / len(labels)
    return float(-np.sum(shares[shares > 0] * np.log(shares[shares > 0])))


def comparison(found: Held, classes: Sequence[str]) -> str:
    """A table: cross-entropy, accuracy and balanced accuracy (the mean over classes of the share of a class's images
    that is recognised) of the model and of the most frequent class; and each class, if they are few."""
    counts, confusion = np.bincount(found.labels, minlength=len(classes)), found.confusion
    there = counts > 0
    recalls = np.diag(confusion)[there] / counts[there]
    nats = float(-np.mean(found.log_probabilities[np.arange(len(found.labels)), found.labels]))
    rows = [
        ("this model", nats, float(np.trace(confusion) / counts.sum()), float(recalls.mean())),
        ("class frequencies", entropy(found.labels, len(classes)), counts.max() / counts.sum(), 1 / there.sum()),
    ]
    title = f"on {counts.sum():,} held-out images"
    lines = [f"{title:<30}{'nats per image':>16}{'accuracy':>12}{'balanced':>12}"]
    lines += [f"{name:<30}{loss:>16.4f}{right:>12.2%}{balanced:>12.2%}" for name, loss, right, balanced in rows]
    if len(classes) <= LISTED:
        lines += ["", f"{'class':<30}{'images':>16}{'recognised':>12}{'precision':>12}"]
        taken = confusion.sum(axis=0)
        for number, name in enumerate(classes):
            right = confusion[number, number]
            parts = [f"{right / total:.2%}" if total else "-" for total in (counts[number], taken[number])]
            lines.append(f"{name[:29]:<30}{counts[number]:>16,}{parts[0]:>12}{parts[1]:>12}")
    return "\n".join(lines)


def what_next(recipe: Recipe) -> str:
    """What a finished run is good for."""
    run = recipe.run_dir
    return "\n".join(
        [
            "what to do next:",
            f"  python -m zoo.export {run} {run}/huggingface --format huggingface",
            f"  zoo.load({run!r}).model(pixel_values)   # in Python: logits of images [B, C, H, W]",
            "  zoo.augment(model, images, labels, held_out_images, held_out_labels)   # a twin head for rare classes",
        ]
    )
