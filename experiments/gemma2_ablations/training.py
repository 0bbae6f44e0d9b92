"""Training of one model, and the largest logits while it goes on."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.gemma2_ablations.arms import Workload, optimizer_of
from experiments.gemma2_ablations.logits import largest_logits
from experiments.likelihood_vs_position.rows import Rows
from experiments.likelihood_vs_position.training import batch_of
from experiments.local_global.copying import with_window
from experiments.runs import say
from zoo.models import build
from zoo.models.gemini import GeminiConfig
from zoo.training.losses import LossSums, next_token_loss
from zoo.training.optimizer import make_optimizer, make_schedule
from zoo.training.state import create_state
from zoo.training.step import jit_train_step, make_train_step


@dataclass(frozen=True)
class Probe:
    """The largest logits at one time, before their soft-caps; None: not a finite number."""

    step: int
    """Updates before it."""
    attention: float | None
    """Largest magnitude of an attention logit, of all layers."""
    final: float | None
    """Largest magnitude of an output logit."""


@dataclass(frozen=True)
class Trained:
    """A model and how it came about."""

    model: Any
    """With its weights."""
    losses: tuple[tuple[int, float], ...]
    """(step, mean loss of the steps since the one before)."""
    probes: tuple[Probe, ...]
    """Before the first step, every `probe_every` steps and after the last."""
    largest_gradient: float
    """Largest gradient norm of a step, before clipping."""
    stopped_at: int | None
    """The step whose loss or gradient was not finite, which ended the run; None: there was none."""
    seconds: float
    """Median of a step."""


def finite(value: Any) -> float | None:
    """A number as JSON has it."""
    return float(value) if math.isfinite(value) else None


def scaled_by(rate: float) -> optax.GradientTransformation:
    """Multiplies all updates. The rate is part of the state and no constant of the program, so that runs of all rates
    are one program, compiled once."""

    def update(updates: Any, state: dict[str, jax.Array], params: Any = None) -> tuple[Any, dict[str, jax.Array]]:
        return jax.tree.map(lambda leaf: leaf * state["rate"], updates), state

    return optax.GradientTransformation(lambda _: {"rate": jnp.float32(rate)}, update)


def train(
    model: Any,
    workload: Workload,
    rate: float,
    draw: Callable[[], Rows],
    probed: Rows,
    seed: int,
) -> Trained:
    """`workload.steps` updates with a peak learning rate. The model's weights are used up.

    draw: rows of one step, <bos> first. probed: rows that logits are looked at over. A step that is not finite ends the
    training; the weights are those before it.
    """
    graphdef, params = nnx.split(model, nnx.Param)
    config = optimizer_of(workload)
    optimizer = optax.chain(make_optimizer(config, workload.steps, params), scaled_by(rate))
    state = create_state(params, optimizer, seed=seed)
    step = make_train_step(graphdef, next_token_loss, optimizer, schedule=make_schedule(config, workload.steps))
    update = jit_train_step(step, state)
    losses, times, gradients = list[float](), list[float](), [0.0]
    probes, means = [probe(graphdef, state.params, probed, 0)], list[tuple[int, float]]()
    stopped_at = None
    for number in range(1, workload.steps + 1):
        began = time.perf_counter()
        state, metrics = update(state, batch_of(draw()))
        if not metrics["finite"]:
            stopped_at = number
            say(f"step {number}: the loss or its gradient is not finite")
            break
        losses.append(float(metrics["loss"]))
        gradients.append(float(metrics["grad_norm"]))
        times.append(time.perf_counter() - began)
        if number % workload.probe_every == 0 or number == workload.steps:
            done = means[-1][0] if means else 0
            means.append((number, float(np.mean(losses[done:]))))
            probes.append(probe(graphdef, state.params, probed, number))
            left = float(np.median(times)) * (workload.steps - number)
            say(f"step {number}/{workload.steps}  loss {means[-1][1]:.4f}  largest logits {described(probes[-1])}  "
                f"{left:.0f} s to go")  # fmt: skip
    if stopped_at is not None:
        probes.append(probe(graphdef, state.params, probed, stopped_at - 1))
    seconds = float(np.median(times)) if times else 0.0
    return Trained(nnx.merge(graphdef, state.params), tuple(means), tuple(probes), max(gradients), stopped_at, seconds)


def probe(graphdef: Any, params: Any, rows: Rows, step: int) -> Probe:
    """The largest logits of weights over rows."""
    attention, final = largest_logits(graphdef, params, rows[:, :-1])
    return Probe(step, finite(attention.max()), finite(final))


def described(found: Probe) -> str:
    """For a line of progress."""
    shown = ["not finite" if value is None else f"{value:.1f}" for value in (found.attention, found.final)]
    return f"{shown[0]} of attention, {shown[1]} at the output"


@partial(jax.jit, static_argnums=0)
def _sums(graphdef: Any, params: Any, batch: Any) -> LossSums:
    return next_token_loss(nnx.merge(graphdef, params), batch)


def held_out_loss(model: Any, rows: Rows, at_once: int) -> float | None:
    """Mean nats per token of rows, each by itself; None: not a finite number."""
    graphdef, params = nnx.split(model, nnx.Param)
    sums = [_sums(graphdef, params, batch_of(rows[first : first + at_once])) for first in range(0, len(rows), at_once)]
    return finite(sum(float(each.loss) for each in sums) / sum(float(each.weight) for each in sums))


def new_model(config: GeminiConfig, seed: int) -> Any:
    """Random weights."""
    return build(config, rngs=nnx.Rngs(seed))


def losses_by_window(model: Any, windows: Sequence[int], rows: Rows, at_once: int) -> tuple[tuple[int, float], ...]:
    """(window, held-out loss) of the same weights with other windows of the local layers. Raises FloatingPointError for
    a loss that is not finite."""
    found = []
    for window in windows:
        loss = held_out_loss(with_window(model, window), rows, at_once)
        if loss is None:
            raise FloatingPointError(f"window {window}: the held-out loss is not finite")
        found.append((window, loss))
    return tuple(found)
