"""A small network that tells which digit an image shows; it has seen no digit that any other model is trained on."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int, UInt8

from experiments.multimodal.digits import CANVAS, on_canvas

BATCH = 64
MOST_MOVED = 3
"""Pixels that a digit is moved by in training, at most: what is drawn need not be in the middle."""


class DigitClassifier(nnx.Module):
    """Pixels to ten logits: three convolutions of 3 x 3, each followed by 2 x 2 max pooling, then one layer."""

    def __init__(self, width: int = 16, *, rngs: nnx.Rngs):
        widths = (1, width, 2 * width, 4 * width)
        self.convolutions = nnx.List(
            [nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in zip(widths, widths[1:], strict=False)]
        )
        self.head = nnx.Linear(4 * width * (CANVAS // 8) ** 2, 10, rngs=rngs)

    def __call__(self, pixels: Float[jax.Array, "b 32 32 1"]) -> Float[jax.Array, "b 10"]:
        x = pixels
        for convolution in self.convolutions:
            x = nnx.max_pool(nnx.relu(convolution(x)), (2, 2), strides=(2, 2))
        return self.head(x.reshape(len(x), -1))


def train_classifier(
    images: UInt8[np.ndarray, "n 28 28"], labels: UInt8[np.ndarray, " n"], steps: int, seed: int = 0
) -> DigitClassifier:
    """Adam on cross-entropy, with digits moved by up to `MOST_MOVED` pixels."""
    random = np.random.default_rng(seed)
    model = DigitClassifier(rngs=nnx.Rngs(seed))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    graphdef, state = nnx.split(model)
    opened = optimizer.init(state)

    @jax.jit
    def step(state: Any, opened: Any, pixels: Any, labels: Any) -> tuple[Any, Any]:
        def loss(state: Any) -> Any:
            logits = nnx.merge(graphdef, state)(pixels)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, opened = optimizer.update(jax.grad(loss)(state), opened)
        return optax.apply_updates(state, updates), opened

    for _ in range(steps):
        taken = random.integers(0, len(images), BATCH)
        places = 2 + random.integers(-MOST_MOVED, MOST_MOVED + 1, (BATCH, 2))
        shown = np.stack([on_canvas(images[i], place) for i, place in zip(taken, places, strict=True)])
        state, opened = step(state, opened, grey(shown), labels[taken].astype(np.int32))
    return nnx.merge(graphdef, state)


def classify(model: DigitClassifier, pixels: UInt8[np.ndarray, "b 32 32 3"]) -> Int[np.ndarray, " b"]:
    """The digit of each image."""
    graphdef, state = nnx.split(model)
    return np.concatenate(
        [np.asarray(_digits(graphdef, state, grey(pixels[i : i + 256]))) for i in range(0, len(pixels), 256)]
    )


@functools.partial(jax.jit, static_argnums=0)
def _digits(graphdef: Any, state: Any, pixels: Any) -> Any:
    return jnp.argmax(nnx.merge(graphdef, state)(pixels), axis=-1)


def grey(pixels: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b h w 1"]:
    """The mean of the colours, 0..1."""
    return pixels.mean(axis=-1, keepdims=True, dtype=np.float32) / np.float32(255)


def save_classifier(model: DigitClassifier, path: Path) -> None:
    """One .npz file with an array for each parameter."""
    leaves = jax.tree.leaves(nnx.state(model))
    arrays: dict[str, Any] = {f"{number:03}": np.asarray(leaf) for number, leaf in enumerate(leaves)}
    np.savez(path, **arrays)


def load_classifier(path: Path) -> DigitClassifier:
    """The inverse of `save_classifier`."""
    model = DigitClassifier(rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    with np.load(path) as found:
        leaves = [jnp.asarray(found[name]) for name in sorted(found.files)]
    return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(state), leaves))
