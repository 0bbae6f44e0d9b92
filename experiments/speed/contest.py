"""One interleaved run: all implementations take turns, and each is compared with the zoo round by round."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.speed.peers import ZOO
from experiments.speed.worker import Worker
from experiments.speed.workload import LOGITS_TOLERANCE, LOSS_TOLERANCE, Workload

MATMUL_SIZE = 2048
MAX_WARM_UPS = 6


class Disagreement(Exception):
    """Two implementations do not compute the same function: their times must not be compared."""


@dataclass
class Measurement:
    """One thing that was timed, for every implementation."""

    title: str
    """What was timed."""
    tokens: int
    """Tokens that one repetition works on."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of each round, by implementation."""
    processor_seconds: dict[str, list[float]] = field(default_factory=dict)
    """Processor seconds of all threads of each round; spinning threads count."""

    def tokens_per_second(self, name: str) -> float:
        """From the median round."""
        return self.tokens / statistics.median(self.seconds[name])

    def speedups(self, name: str) -> list[float]:
        """How many times as fast as `name` the zoo was, in each round."""
        return [theirs / ours for theirs, ours in zip(self.seconds[name], self.seconds[ZOO], strict=True)]


@dataclass
class Contest:
    """All results of the comparison."""

    measurements: dict[str, Measurement] = field(default_factory=dict)
    """By key: "train", "forward", "decode-1", ..."""
    peak_bytes: dict[str, int] = field(default_factory=dict)
    """Largest resident memory of a process that loads the model, compiles and trains, by implementation."""
    matmul_rates: dict[str, float] = field(default_factory=dict)
    """FLOP/s of a large float32 product, by implementation."""
    agreement: dict[str, dict[str, float]] = field(default_factory=dict)
    """Largest differences from the zoo's logits and losses, and the part of greedy tokens that is the same."""


def run_contest(workers: dict[str, Worker], workload: Workload, scratch: Path, say: Callable[[str], None]) -> Contest:
    """Checks that all compute the same, then measures; `workers[ZOO]` is the one that the others are compared with."""
    contest = Contest()
    say("training: first losses, after compilation")
    losses = {}
    for name, worker in workers.items():
        losses[name] = worker.call("losses", steps=workload.checked_steps)
        say(f"  {name}: {', '.join(f'{loss:.4f}' for loss in losses[name])}")
    for name in workers:
        difference = max(abs(a - b) for a, b in zip(losses[name], losses[ZOO], strict=True))
        contest.agreement[name] = {"losses": difference}
        require(difference <= LOSS_TOLERANCE, f"{name}: training losses {losses[name]} against {losses[ZOO]} of {ZOO}")

    tokens = workload.batch_size * workload.length
    contest.measurements["train"] = measure(
        workers, f"training step, {_shape(workload)}", tokens, workload.rounds, say, "train"
    )
    contest.peak_bytes = {name: worker.call("peak_memory") for name, worker in workers.items()}
    contest.matmul_rates = {name: worker.call("matmul", size=MATMUL_SIZE) for name, worker in workers.items()}

    for name, worker in workers.items():
        worker.call("load")
        worker.call("logits", out=str(scratch / f"logits-{_file(name)}.npy"))
    expected = np.load(scratch / f"logits-{_file(ZOO)}.npy", allow_pickle=False)
    for name in workers:
        got = np.load(scratch / f"logits-{_file(name)}.npy", allow_pickle=False)
        difference = float(np.abs(got - expected).max())
        contest.agreement[name]["logits"] = difference
        require(difference <= LOGITS_TOLERANCE, f"{name}: logits differ from those of {ZOO} by {difference:.2e}")
    title = f"forward pass to all logits, {_shape(workload)}"
    contest.measurements["forward"] = measure(workers, title, tokens, workload.rounds, say, "forward")

    for batch_size in workload.decode_batches:
        title = f"greedy decoding, batch {batch_size}, {workload.prompt_length} + {workload.new_tokens} tokens"
        arguments = {
            name: {"batch_size": batch_size, "out": str(scratch / f"new-{_file(name)}.npy")} for name in workers
        }
        key = f"decode-{batch_size}"
        contest.measurements[key] = measure(
            workers, title, batch_size * workload.new_tokens, workload.rounds, say, "decode", arguments
        )
        expected = np.load(scratch / f"new-{_file(ZOO)}.npy", allow_pickle=False)
        for name in workers:
            got = np.load(scratch / f"new-{_file(name)}.npy", allow_pickle=False)
            contest.agreement[name][f"greedy tokens, batch {batch_size}"] = float((got == expected).mean())
    return contest


def require(condition: bool, complaint: str) -> None:
    """Raises `Disagreement` unless the condition holds."""
    if not condition:
        raise Disagreement(complaint)


def measure(
    workers: dict[str, Worker],
    title: str,
    tokens: int,
    rounds: int,
    say: Callable[[str], None],
    command: str,
    arguments: dict[str, dict[str, Any]] | None = None,
) -> Measurement:
    """Warms every worker up, then lets them take turns with `command`, given each its own arguments."""
    say(title)
    measurement = Measurement(title, tokens, {name: [] for name in workers}, {name: [] for name in workers})
    given = arguments or {name: {} for name in workers}
    for name, worker in workers.items():
        _warm_up(partial(_seconds, worker, command, given[name]))
    for _ in range(rounds):
        for name, worker in workers.items():
            result = worker.call(command, **given[name])
            measurement.seconds[name].append(result["seconds"])
            measurement.processor_seconds[name].append(result["processor_seconds"])
    for name in workers:
        say(f"  {name}: {measurement.tokens_per_second(name):.0f} tokens/s")
    return measurement


def _seconds(worker: Worker, command: str, arguments: dict[str, Any]) -> float:
    return worker.call(command, **arguments)["seconds"]


def _warm_up(repeat: Callable[[], float]) -> None:
    """Repeats until a call is no longer much faster than the one before it: compilers may need several calls."""
    before = repeat()
    for _ in range(MAX_WARM_UPS - 1):
        now = repeat()
        if now > 0.75 * before:
            return
        before = now


def _shape(workload: Workload) -> str:
    return f"B = {workload.batch_size}, T = {workload.length}"


def _file(name: str) -> str:
    return name.replace(" ", "-").replace(",", "")
