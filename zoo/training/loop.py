"""The loop around the training step: order of events, stopping, saving, and what is written down.

* The device never waits for the host: the next batch is read and transferred while a step runs, and the numbers of a
  step are fetched when the step after it is already on its way. They are exact all the same: every step has its line.
* A step is written down before a checkpoint that contains it is saved. Whatever is killed, metrics.jsonl cut back to
  the checkpoint's step is what an uninterrupted run would have had there.
* SIGTERM and Ctrl-C let the step finish, save, and return. A second one ends the process at once.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from zoo.errors import UserError
from zoo.training.checkpoints import Checkpoints, disk_is_full
from zoo.training.state import TrainState, tokens_seen


@dataclass(frozen=True)
class LoopConfig:
    """How long a run lasts and what happens on the way."""

    steps: int = 1000
    """Training steps of the whole run; the learning-rate schedule ends here."""
    stop_at_step: int | None = None
    """Save and stop cleanly after this step, to be resumed later; the schedule stays that of `steps`."""
    log_every: int = 10
    """Steps between two lines on the terminal (metrics.jsonl has every step)."""
    evaluate_every: int = 100
    """Steps between two validations; the last step is always validated."""
    checkpoint_every: int = 100
    """Steps between two checkpoints; the last step is always saved. The best one is chosen among saved steps that were
    also validated."""
    keep_last: int = 3
    """Checkpoints to keep, the best one apart."""
    checksums: bool = True
    """Read every checkpoint back to record its checksums; False records sizes only."""
    profile_steps: int = 0
    """Steps to trace into RUN/profile once the run is warm; 0 = none."""

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "evaluate_every", "checkpoint_every", "keep_last"):
            if not 1 <= getattr(self, name) < 2**31:
                raise UserError(f"{name} must lie in 1 .. 2^31 - 1, got {getattr(self, name)}")
        if not 0 <= self.profile_steps <= 1000:
            raise UserError(f"profile_steps must lie in 0 .. 1000, got {self.profile_steps}")
        if self.stop_at_step is not None and self.stop_at_step < 1:
            raise UserError(f"stop_at_step must be at least 1, got {self.stop_at_step}")

    @property
    def last_step(self) -> int:
        """The step that this invocation goes to."""
        return self.steps if self.stop_at_step is None else min(self.steps, self.stop_at_step)


def open_checkpoints(run: Path, config: LoopConfig) -> Checkpoints:
    """The checkpoints of a run, kept as the configuration says."""
    return Checkpoints(run, keep_last=config.keep_last, checksums=config.checksums)


class Batches(Protocol):
    """A data iterator that knows where it is."""

    def __next__(self) -> Any:
        """This process's rows of the next batch, numpy arrays."""

    def get_state(self) -> Any:
        """The position after the last batch; JSON."""


@dataclass(frozen=True)
class Outcome:
    """How a loop ended."""

    state: TrainState
    """The state after the last step."""
    step: int
    """Steps that are done, those of earlier invocations included."""
    stopped: bool
    """Whether it was asked to stop before the run's last step."""
    validation: Mapping[str, float] = field(default_factory=dict)
    """The last validation of this invocation, empty if there was none."""


def run_loop(
    state: TrainState,
    train_step: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, jax.Array]]],
    batches: Batches,
    *,
    config: LoopConfig,
    run: Path,
    sharding: NamedSharding,
    checkpoints: Checkpoints,
    evaluate: Callable[[Any], Mapping[str, float]],
    record: Callable[[Mapping[str, Any]], None],
    meta: Mapping[str, Any],
    epochs: Callable[[Any], float] | None = None,
) -> Outcome:
    """Trains from `state.step` to `config.last_step`.

    Args:
        state: where to start; it is consumed (donated).
        train_step: compiled, `(state, batch) -> (state, metrics)`, see `zoo.training.step`.
        batches: positioned at the batch after the last one that `state` was trained on.
        config: how long, how often.
        run: the run directory.
        sharding: of the batch's [B, T] arrays.
        checkpoints: where to save.
        evaluate: parameters to numbers, `validation_loss` among them (or an empty mapping).
        record: is given the numbers of each step, in order, each step once.
        meta: saved with every checkpoint.
        epochs: from a position of `batches` to how often the data has been read, to be written down with each step.

    Raises:
        UserError: a loss or gradient is not finite (nothing of that step is kept), or the disk is full. The
            checkpoints that were saved before stay as they are.
    """
    step, last = int(state.step), config.last_step
    tokens = tokens_seen(state)
    clock = time.perf_counter()
    pending: _Step | None = None
    position: Any = None
    saved = validated = -1
    validation: Mapping[str, float] = {}

    def numbers_of(done: "_Step") -> dict[str, Any]:
        """Waits for a step; its numbers, as Python numbers that JSON holds exactly."""
        nonlocal tokens, clock
        numbers = {name: value.item() for name, value in jax.device_get(dict(done.metrics)).items()}
        if not numbers.pop("finite"):
            raise UserError(_not_finite(done.step, numbers, run, _saved(checkpoints)))
        now = time.perf_counter()
        tokens += int(numbers["tokens"])
        numbers |= {"step": done.step, "step_tokens": int(numbers["tokens"]), "tokens": tokens, "seconds": now - clock}
        clock = now
        return numbers | ({} if epochs is None else {"epoch": epochs(done.position)})

    def write_down(numbers: Mapping[str, Any]) -> None:
        try:
            record(numbers)
        except OSError as error:
            if not disk_is_full(error):
                raise
            kept = ", ".join(map(str, _saved(checkpoints))) or "none"
            raise UserError(
                f"the disk is full: step {numbers['step']} could not be written to {run}; "
                f"saved steps that are intact: {kept}"
            ) from error

    first_profiled = step + min(5, max(0, last - step - config.profile_steps))
    with StopRequest() as stop, _ProfileWindow(run / "profile", first_profiled, config.profile_steps) as profile:
        upcoming = _fetch(batches, sharding) if step < last else None
        while upcoming is not None and not stop.requested(step):
            batch, position = upcoming
            profile.before(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
                state, metrics = train_step(state, batch)
            step += 1
            upcoming = _fetch(batches, sharding) if step < last else None
            if pending is not None:
                write_down(numbers_of(pending))
            pending = _Step(step, metrics, position)
            checkpoints.check()
            profile.after(step, metrics)
            evaluation_due = step % config.evaluate_every == 0 or step == config.steps
            save_due = step % config.checkpoint_every == 0 or step == last
            if not (evaluation_due or save_due):
                continue
            numbers, pending = numbers_of(pending), None
            if evaluation_due:
                validation, validated = evaluate(state.params), step
                numbers |= validation
            write_down(numbers)
            if save_due:
                _save(checkpoints, step, state, position, meta, tokens, validation if validated == step else {})
                saved = step
            clock = time.perf_counter()  # neither validation nor saving counts as training time
        if pending is not None:
            write_down(numbers_of(pending))
        if position is not None and saved != step:
            _save(checkpoints, step, state, position, meta, tokens, validation if validated == step else {})
        checkpoints.wait()
    return Outcome(state, step, stopped=step < config.steps, validation=validation)


@dataclass(frozen=True)
class _Step:
    """A step whose numbers may still be on their way."""

    step: int
    metrics: Mapping[str, jax.Array]
    position: Any


def _fetch(batches: Batches, sharding: NamedSharding) -> tuple[Any, Any]:
    """The next batch, on the devices, and the iterator's position after it."""
    batch = next(batches)
    position = batches.get_state()
    return to_devices(batch, sharding), position


def to_devices(batch: Any, sharding: NamedSharding) -> Any:
    """This process's rows of a batch as (part of) global arrays [B, ...], divided as `sharding` divides [B, T]."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def _save(
    checkpoints: Checkpoints,
    step: int,
    state: TrainState,
    position: Any,
    meta: Mapping[str, Any],
    tokens: int,
    validation: Mapping[str, float],
) -> None:
    loss = validation.get("validation_loss")
    checkpoints.save(
        step,
        state,
        data_state=position,
        meta={**meta, "step": step, "tokens": tokens, "metrics": dict(validation)},
        validation_loss=loss if loss is not None and math.isfinite(loss) else None,
    )


def _saved(checkpoints: Checkpoints) -> tuple[int, ...]:
    """The committed steps, one that is still being written included."""
    checkpoints.wait()
    return checkpoints.steps


def _not_finite(step: int, numbers: Mapping[str, float], run: Path, steps: tuple[int, ...]) -> str:
    what = (
        f"loss is {numbers['loss']}"
        if not math.isfinite(numbers["loss"])
        else f"gradient norm is {numbers['grad_norm']}"
    )
    kept = f"the last good checkpoint, step {steps[-1]}, is kept" if steps else "no checkpoint was saved before it"
    return (
        f"step {step}: the {what} on batch {step} of the data; {kept}; try a smaller "
        f"optimizer.learning_rate, or look at that batch (run {run})"
    )


class StopRequest:
    """Notices SIGTERM and Ctrl-C, once, so that the loop can finish its step; all processes stop at the same step."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            # With several processes, JAX's own service watches SIGTERM and tells all of them the step to stop at.
            for signum in (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT):
                self._previous[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._restore()

    def requested(self, step: int) -> bool:
        """Whether to stop after `step` steps."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None

    def _receive(self, signum: int, _frame: FrameType | None) -> None:
        if self._received is not None:
            self._restore()
            os.kill(os.getpid(), signum)
        self._received = signum

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}


class _ProfileWindow:
    """Traces some steps, after those that compile and warm up."""

    def __init__(self, folder: Path, first: int, steps: int):
        self._folder, self._first, self._steps = folder, first, steps
        self._running = False

    def __enter__(self) -> "_ProfileWindow":
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        if self._steps and step == self._first:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        if self._running and step == self._first + self._steps:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
