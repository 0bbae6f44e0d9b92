"""Training of small models in stages of growing length, on rows that the caller draws."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from experiments.likelihood_vs_position.rows import Copies, Rows
from experiments.runs import say
from zoo.data import Batch
from zoo.models import build
from zoo.training.losses import next_token_loss
from zoo.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from zoo.training.state import TrainState, create_state
from zoo.training.step import jit_train_step, make_train_step

SMOOTHED_STEPS = 20
"""Training losses are averaged over so many steps."""


@dataclass(frozen=True)
class Stage:
    """A part of a run whose rows have one length."""

    length: int
    """Tokens that are predicted in a row."""
    batch_size: int
    """Rows in a step."""
    steps: int
    """How many."""
    copies: Copies | None = None
    """Spans that are repeated in the rows."""


def total_steps(stages: Sequence[Stage]) -> int:
    """Of all stages."""
    return sum(stage.steps for stage in stages)


Draw = Callable[[Stage, np.random.Generator], Rows]
"""The rows of one step, [batch_size, length + 1]."""


@dataclass(frozen=True)
class Trained:
    """A model and how it came about."""

    model: Any
    """With its weights."""
    losses: tuple[tuple[int, float], ...]
    """(step, mean training loss of the steps since the one before)."""
    step_seconds: tuple[float, ...]
    """Median seconds of a step in each stage."""


def batch_of(rows: Rows) -> Batch:
    """All tokens but the last are read, all but the first predicted; a row is one document."""
    tokens = np.ascontiguousarray(rows[:, :-1])
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return Batch(
        tokens=tokens,
        targets=np.ascontiguousarray(rows[:, 1:]),
        positions=np.ascontiguousarray(positions),
        segment_ids=np.ones_like(tokens),
        loss_weights=np.ones(tokens.shape, np.float32),
    )


class Trainer:
    """A model in training: `step` does one update."""

    def __init__(self, config: Any, optimizer: OptimizerConfig, steps: int, seed: int):
        self._graphdef, params = nnx.split(build(config, rngs=nnx.Rngs(seed)), nnx.Param)
        transformation, schedule = make_optimizer(optimizer, steps, params), make_schedule(optimizer, steps)
        self._state: TrainState = create_state(params, transformation, seed=seed)
        step = make_train_step(self._graphdef, next_token_loss, transformation, schedule=schedule)
        self._step = jit_train_step(step, self._state)

    def step(self, rows: Rows) -> float:
        """One update; returns the loss before it. Raises FloatingPointError if that is not finite."""
        self._state, metrics = self._step(self._state, batch_of(rows))
        if not metrics["finite"]:
            raise FloatingPointError(f"step {int(self._state.step) + 1}: the loss or its gradient is not finite")
        return float(metrics["loss"])

    def model(self) -> Any:
        """The model as it is now; not to be used any more after a further step."""
        return nnx.merge(self._graphdef, self._state.params)


def train(config: Any, stages: Sequence[Stage], optimizer: OptimizerConfig, draw: Draw, seed: int) -> Trained:
    """Trains a new model. The schedule goes over all stages; `seed` is that of the weights and of the drawn rows, so
    that models of one seed and the same stages read the same tokens in the same order."""
    trainer = Trainer(config, optimizer, total_steps(stages), seed)
    rng = np.random.default_rng([seed, 1])
    losses: list[float] = []
    curve, seconds = [], []
    for stage in stages:
        times = []
        for _ in range(stage.steps):
            rows = draw(stage, rng)
            began = time.perf_counter()
            losses.append(trainer.step(rows))
            times.append(time.perf_counter() - began)
            if len(losses) % SMOOTHED_STEPS == 0:
                curve.append((len(losses), statistics.fmean(losses[-SMOOTHED_STEPS:])))
                say(f"step {len(losses)}, length {stage.length}: {curve[-1][1]:.4f} nats per token")
        seconds.append(statistics.median(times))
    return Trained(trainer.model(), tuple(curve), tuple(seconds))
