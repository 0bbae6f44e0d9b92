"""Training of any of the models, step by step."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from experiments.runs import say
from experiments.shared_workspace.material import Examples
from experiments.shared_workspace.sizes import Training
from zoo.training.losses import LossSums
from zoo.training.optimizer import make_optimizer, make_schedule
from zoo.training.state import create_state
from zoo.training.step import jit_train_step, make_train_step

POINTS = 25
"""Of a run's curve of training losses."""


@dataclass(frozen=True)
class Trained:
    """A model after its last step."""

    model: Any
    """With its weights."""
    curve: tuple[tuple[int, float], ...]
    """(step, mean loss of the steps since the one before)."""
    milliseconds: float
    """Median of a step, batch included."""
    seconds: float
    """Of everything, compilation included."""


def train(
    name: str,
    model: nnx.Module,
    loss: Callable[..., LossSums],
    batches: Iterable[Any],
    training: Training,
    seed: int,
) -> Trained:
    """One step for each batch; uses up the model's weights. FloatingPointError if a loss is not finite."""
    began = time.perf_counter()
    graphdef, params = nnx.split(model, nnx.Param)
    optimizer = make_optimizer(training.optimizer, training.steps, params)
    state = create_state(params, optimizer, seed=seed)
    schedule = make_schedule(training.optimizer, training.steps)
    step = make_train_step(graphdef, loss, optimizer, schedule=schedule, count_tokens=lambda batch: jnp.int32(0))
    run, every = jit_train_step(step, state), max(1, training.steps // POINTS)
    losses, curve, took = list[Any](), list[tuple[int, float]](), list[float]()
    for number, batch in enumerate(batches, start=1):
        if number % every == 2 % every:  # the first step compiles
            start = time.perf_counter()
        state, metrics = run(state, batch)
        losses.append(metrics["loss"])
        if number % every == 0:
            mean = float(np.mean(jax.device_get(losses)))
            if not np.isfinite(mean):
                raise FloatingPointError(f"{name}: the loss is not finite before step {number}")
            took.append(1e3 * (time.perf_counter() - start) / max(1, every - 1))
            curve.append((number, mean))
            losses = []
            if len(curve) % 5 == 0:
                seconds = time.perf_counter() - began
                say(f"  {number}/{training.steps}: loss {mean:.4f}, {seconds:.0f} s, "
                    f"{seconds / number * (training.steps - number):.0f} s to go")  # fmt: skip
    trained = nnx.merge(graphdef, state.params)
    return Trained(trained, tuple(curve), float(np.median(took)), time.perf_counter() - began)


def answer_loss(model: Any, batch: Examples) -> LossSums:
    """Cross-entropy of the right answers, in nats."""
    logits = model(jnp.asarray(batch.elements), None if batch.questions is None else jnp.asarray(batch.questions))
    sums = jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(batch.answers)))
    return LossSums(sums, jnp.zeros(()), jnp.float32(len(logits)))


def next_state_loss(model: Any, states: Float[Array, "b t e i"]) -> LossSums:
    """Squared error of the next states, each found from what truly was before it; the mean over all numbers."""
    states = jnp.asarray(states)
    error = model(states[:, :-1]).outputs - states[:, 1:]
    return LossSums(jnp.sum(error**2), jnp.zeros(()), jnp.float32(error.size))
