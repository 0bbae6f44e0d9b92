"""Steps of training and readings of rows, compiled once for each kind of what trains."""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int

from experiments.continual_multilingual.arms import Kind
from experiments.continual_multilingual.network import Network, cross_entropy
from experiments.continual_multilingual.rows import Rows, counts
from experiments.continual_multilingual.sizes import Family, Size
from experiments.continual_multilingual.trainables import Trainable, trainable
from zoo.training.optimizer import clip_by_global_norm

OPTIMIZER = optax.chain(clip_by_global_norm(1.0), optax.scale_by_adam(b1=0.9, b2=0.999))
"""Directions of Adam (arXiv 1412.6980), gradients clipped at norm 1; no weight decay, which would be a pull to 0."""


def rate_at(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """A line up to the peak, then a line down to 0."""
    warmup = max(1, round(warmup_share * steps))
    return peak * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


@dataclass(frozen=True)
class Weights:
    """All numbers of a model."""

    kind: Kind
    """What trains, or was trained."""
    trained: Any
    """That."""
    base: Any
    """What stays: the stage-0 model."""
    buffers: Any
    """Constants of an adapter."""
    gates: Float[np.ndarray, "l r"] | None = None
    """Of a bottleneck's slots, for each language."""


class Programs:
    """The compiled programs of one family: all seeds, updates and arms share them, since shapes are the same."""

    def __init__(self, family: Family, size: Size, network: Network, outputs: int):
        self.family, self.size, self.outputs = family, size, outputs
        self._network = network

    @functools.cache  # noqa: B019 (one object for the whole process)
    def trainable(self, kind: Kind) -> Trainable:
        """The structure of one kind."""
        return trainable(kind, self._network, self.size)

    @functools.cache  # noqa: B019
    def step(self, kind: Kind, *, pulled: bool = False) -> Callable:
        """`step(trained, state, base, buffers, gates, tokens, labels, rate, key, number[, importance, pull])` ->
        (trained, state, loss). With `pulled` the loss has pull / 2 * sum(importance * (trained - base)^2) besides."""
        structure = self.trainable(kind)

        def step(trained, state, base, buffers, gates, tokens, labels, rate, key, number, importance=None, pull=0.0):
            def loss(trained):
                model = structure.model(trained, base, buffers, gates)
                found = cross_entropy(model(tokens, jax.random.fold_in(key, number)), labels)
                if not pulled:
                    return found
                parts = jax.tree.map(lambda i, a, b: jnp.sum(i * jnp.square(a - b)), importance, trained, base)
                return found + 0.5 * pull * sum(jax.tree.leaves(parts))

            found, gradients = jax.value_and_grad(loss)(trained)
            directions, state = OPTIMIZER.update(gradients, state, trained)
            trained = jax.tree.map(lambda one, direction: one - rate * direction, trained, directions)
            return trained, state, found

        return jax.jit(step, donate_argnums=(0, 1))

    @functools.cache  # noqa: B019
    def _read(self, kind: Kind) -> Callable:
        structure = self.trainable(kind)

        @jax.jit
        def read(trained, base, buffers, gates, tokens):
            return jnp.argmax(structure.model(trained, base, buffers, gates)(tokens), axis=-1).astype(jnp.int32)

        return read

    def counts(self, weights: Weights, rows: Rows) -> Float[np.ndarray, "n 2"]:
        """(right, asked) of each row."""
        size, found = self.size.eval_rows, []
        for first in range(0, len(rows), size):
            part = np.arange(first, min(first + size, len(rows)))
            index = np.pad(part, (0, size - len(part)))  # one shape: row 0 fills up
            gates = None if weights.gates is None else weights.gates[rows.language[index]]
            arguments = (weights.trained, weights.base, weights.buffers, gates, rows.tokens[index])
            found.append(np.asarray(self._read(weights.kind)(*arguments))[: len(part)])
        return counts(self.family, rows, np.concatenate(found), self.outputs)

    def share(self, weights: Weights, rows: Rows) -> float:
        """Mean over languages of the part that is right."""
        found = self.counts(weights, rows)
        return float(np.mean(list(by_language(found, rows.language).values())))


def by_language(found: Float[np.ndarray, "n 2"], language: Int[np.ndarray, "n"]) -> dict[int, float]:
    """Part that is right, of each language that there is."""
    kept = ((int(one), found[language == one].sum(0)) for one in np.unique(language))
    return {one: float(right / asked) for one, (right, asked) in kept}


def batches(count: int, batch_size: int, seed: int) -> Iterator[Int[np.ndarray, "b"]]:
    """Endless batches of row numbers: each epoch is a new order; fewer rows than a batch come several times."""
    draw, left = np.random.default_rng(seed), np.empty(0, np.int64)
    while True:
        while len(left) < batch_size:
            left = np.concatenate([left, draw.permutation(count)])
        yield left[:batch_size]
        left = left[batch_size:]


def half_and_half(first: Iterator, second: Iterator, offset: int) -> Iterator[Int[np.ndarray, "b"]]:
    """Batches half of each; the second's numbers are `offset` higher."""
    for one, other in zip(first, second, strict=True):
        yield np.concatenate([one, other + offset])


@dataclass(frozen=True)
class Plan:
    """How something is trained."""

    rows: Rows
    """On what."""
    order: Iterator[Int[np.ndarray, "b"]]
    """Row numbers of each step."""
    steps: int
    """How many."""
    rate: float
    """Peak learning rate."""
    seed: int
    """Of dropout."""
    checks: int
    """How often `judge` is asked."""
    judge: Callable[[Weights], float]
    """Larger is better; the earliest of the best is kept."""
    importance: Any = None
    """Of the pull to what was before; None: there is none."""
    pull: float = 0.0
    """Its strength."""


@dataclass(frozen=True)
class Trained:
    """What came of it."""

    weights: Weights
    """The best."""
    step: int
    """Of those."""
    judged: tuple[float, ...]
    """At every check."""
    loss: float
    """Mean of the steps since the last check but one."""
    seconds: float
    """Of everything, compilation included."""


def train(programs: Programs, weights: Weights, plan: Plan) -> Trained:
    """Trains `weights.trained`, which stays as it is. FloatingPointError if a loss is not finite."""
    began = time.perf_counter()
    step = programs.step(weights.kind, pulled=plan.importance is not None)
    extra = () if plan.importance is None else (plan.importance, np.float32(plan.pull))
    trained = jax.tree.map(jnp.copy, weights.trained)
    state, key = OPTIMIZER.init(trained), jax.random.key(plan.seed)
    ends = [round(plan.steps * (number + 1) / plan.checks) for number in range(plan.checks)]
    best, judged, losses, loss = None, list[float](), list[Any](), float("nan")
    for number, index in zip(range(plan.steps), plan.order, strict=False):
        rows = plan.rows
        gates = None if weights.gates is None else weights.gates[rows.language[index]]
        rate = np.float32(rate_at(number, plan.steps, plan.rate, programs.size.warmup_share))
        trained, state, found = step(
            trained, state, weights.base, weights.buffers, gates, rows.tokens[index], rows.labels[index], rate, key,
            np.int32(number), *extra,
        )  # fmt: skip
        losses.append(found)
        if number + 1 in ends:
            loss, losses = float(np.mean([float(one) for one in losses])), []
            if not np.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} after {number + 1} steps at rate {plan.rate}")
            now = Weights(weights.kind, trained, weights.base, weights.buffers, weights.gates)
            judged.append(plan.judge(now))
            if best is None or judged[-1] > best[0]:
                best = (judged[-1], number + 1, jax.tree.map(jnp.copy, trained))
    assert best is not None
    kept = Weights(weights.kind, best[2], weights.base, weights.buffers, weights.gates)
    return Trained(kept, best[1], tuple(judged), loss, time.perf_counter() - began)


def start(programs: Programs, kind: Kind, base: nnx.State, seed: int, gates: Any = None) -> Weights:
    """The stage-0 model with what is to be trained."""
    trained, buffers = programs.trainable(kind).first(base, seed)
    return Weights(kind, trained, base, buffers, gates)
