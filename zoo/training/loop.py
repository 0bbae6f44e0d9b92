"""The loop around the training step: order of events, stopping, saving, and what is written down.

* The device never waits for the host: the next batch is read and transferred while a step runs, and the numbers of a
  step are fetched when the step after it is already on its way. They are exact all the same: every step has its line.
* A step is written down before a checkpoint that contains it is saved. Whatever is killed, metrics.jsonl cut back to
  the checkpoint's step is what an uninterrupted run would have had there.
* SIGTERM, SIGUSR1 and Ctrl-C let the step finish, save, and return (zoo.training.stopping).
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from zoo.errors import UserError
from zoo.parallel.rows import to_devices
from zoo.training.checkpoints import Checkpoints, disk_is_full
from zoo.training.failures import last_kept, not_finite, too_many_spikes
from zoo.training.goodput import Goodput, StepClock
from zoo.training.profiling import ProfileWindow
from zoo.training.replay import ReplayMismatch, check_replay, copy_state
from zoo.training.state import TrainState, tokens_seen
from zoo.training.stopping import StopRequest


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
    replay_check: int = 0
    """Every so many steps compute the step twice and compare all bits, which finds silent data corruption; 0 = never. A
    check takes a step's time and room for a second copy of the state. See zoo.training.replay."""

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "evaluate_every", "checkpoint_every", "keep_last"):
            if not 1 <= getattr(self, name) < 2**31:
                raise UserError(f"{name} must lie in 1 .. 2^31 - 1, got {getattr(self, name)}")
        if not 0 <= self.profile_steps <= 1000:
            raise UserError(f"profile_steps must lie in 0 .. 1000, got {self.profile_steps}")
        if not 0 <= self.replay_check < 2**31:
            raise UserError(f"replay_check must lie in 0 .. 2^31 - 1, got {self.replay_check}")
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
        """The next batch: numpy arrays, or `Rows` of them where this process does not hold all."""

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
    preempted: bool = False
    """Whether a machine asked for that, so that the same command should be run again by whoever launched this one."""
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
    goodput: Goodput | None = None,
    spike_limit: int | None = None,
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
        goodput: is told what the time goes into.
        spike_limit: more steps in a row left out as loss spikes than this are an error.

    Raises:
        UserError: a loss or gradient is not finite (nothing of that step is kept), too many spikes, or the disk is
            full. The checkpoints that were saved before stay as they are, here and below.
        ReplayMismatch: a step computed twice gave two results; nothing of it is kept.
    """
    step, last = int(state.step), config.last_step
    tokens = tokens_seen(state)
    clock = time.perf_counter()
    goodput = goodput or Goodput(run, first_step=step)
    pending: _Step | None = None
    position: Any = None
    saved = validated = -1
    validation: Mapping[str, float] = {}

    def numbers_of(done: "_Step") -> dict[str, Any]:
        """Waits for a step; its numbers as Python numbers."""
        nonlocal tokens, clock
        numbers = {name: _plain(value) for name, value in jax.device_get(dict(done.metrics)).items()}
        if not numbers.pop("finite"):
            raise UserError(not_finite(done.step, numbers, run, _saved(checkpoints)))
        if spike_limit is not None and numbers.get("skipped_in_a_row", 0) > spike_limit:
            raise UserError(too_many_spikes(done.step, numbers, run, _saved(checkpoints)))
        goodput.step(done.step, fetched=done.fetched, dispatched=done.dispatched, done=done.end.result())
        now = time.perf_counter()
        tokens += int(numbers["tokens"])
        numbers |= {"step": done.step, "step_tokens": int(numbers["tokens"]), "tokens": tokens, "seconds": now - clock}
        numbers["goodput"] = goodput.fraction
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

    def save() -> None:
        with goodput.spending("checkpoint", fetched=fetched):
            _save(checkpoints, step, state, position, meta, tokens, validation if validated == step else {})

    first_profiled = step + min(5, max(0, last - step - config.profile_steps))
    with (
        StopRequest() as stop,
        ProfileWindow(run / "profile", first_profiled, config.profile_steps) as profile,
        contextlib.closing(StepClock()) as step_clock,
        contextlib.closing(goodput),
    ):
        upcoming = _fetch(batches, sharding) if step < last else None
        fetched = time.perf_counter()
        while upcoming is not None and not stop.requested(step):
            batch, position = upcoming
            profile.before(step)
            replay_due = config.replay_check and (step + 1) % config.replay_check == 0
            if replay_due and pending is not None:  # written down first: it may be the last good step
                write_down(numbers_of(pending))
                pending = None
            arrived, dispatched = fetched, time.perf_counter()
            with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
                if replay_due:
                    before = goodput.seconds["replay"]
                    state, metrics = _checked_step(train_step, state, batch, step + 1, goodput, fetched, checkpoints)
                    clock += goodput.seconds["replay"] - before  # nor does the second run
                else:
                    state, metrics = train_step(state, batch)
            step += 1
            end = step_clock.watch(metrics)
            upcoming = _fetch(batches, sharding) if step < last else None
            fetched = time.perf_counter()
            if pending is not None:
                write_down(numbers_of(pending))
            pending = _Step(step, metrics, position, arrived, dispatched, end)
            checkpoints.check()
            profile.after(step, metrics)
            evaluation_due = step % config.evaluate_every == 0 or step == config.steps
            save_due = step % config.checkpoint_every == 0 or step == last
            if not (evaluation_due or save_due):
                continue
            numbers, pending = numbers_of(pending), None
            if evaluation_due:
                with goodput.spending("evaluation", fetched=fetched):
                    validation, validated = evaluate(state.params), step
                numbers |= validation
            write_down(numbers)
            if save_due:
                save()
                saved = step
            clock = time.perf_counter()  # neither validation nor saving counts as training time
        if pending is not None:
            write_down(numbers_of(pending))
        if position is not None and saved != step:
            save()
        with goodput.spending("checkpoint"):
            checkpoints.wait()
    return Outcome(state, step, stopped=step < config.steps, preempted=stop.preempted, validation=validation)


@dataclass(frozen=True)
class _Step:
    """A step whose numbers may still be on their way."""

    step: int
    metrics: Mapping[str, jax.Array]
    position: Any
    fetched: float
    dispatched: float
    end: "Future[float]"


def _checked_step(
    train_step: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, jax.Array]]],
    state: TrainState,
    batch: Any,
    number: int,
    goodput: Goodput,
    fetched: float,
    checkpoints: Checkpoints,
) -> tuple[TrainState, Mapping[str, jax.Array]]:
    """A step that is computed twice."""
    with goodput.spending("replay", fetched=fetched):
        copy = jax.block_until_ready(copy_state(state))
    dispatched = time.perf_counter()
    result = train_step(state, batch)
    jax.block_until_ready(result[1])
    goodput.step(number, fetched=fetched, dispatched=dispatched, done=time.perf_counter())
    with goodput.spending("replay"):
        try:
            check_replay(result, train_step(copy, batch), number)
        except ReplayMismatch as mismatch:
            kept = last_kept(_saved(checkpoints))
            raise ReplayMismatch(f"{mismatch}; nothing of this step is kept; {kept}") from None
    return result


def _plain(value: Any) -> Any:
    """A number exactly; an array as nested lists of four decimals, since every step has a line of its own."""
    return value.item() if value.ndim == 0 else np.round(value.astype(np.float64), 4).tolist()


def _fetch(batches: Batches, sharding: NamedSharding) -> tuple[Any, Any]:
    """The next batch, on the devices, and the iterator's position after it."""
    batch = next(batches)
    position = batches.get_state()
    return to_devices(batch, sharding), position


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
