"""What an update costs: bytes of the optimizer's state, and the time of a step, each beside full fine-tuning's."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.continual_multilingual.arms import Kind
from experiments.continual_multilingual.trainer import OPTIMIZER, Weights, start
from experiments.continual_multilingual.updates import Session
from zoo.peft.report import num_bytes, num_values

KINDS: tuple[Kind, ...] = ("full", "head", "bitfit", "lora", "bottleneck")
COUNTER = 4
"""Bytes of Adam's count of steps."""


@dataclass(frozen=True)
class Cost:
    """Of one kind of what trains."""

    kind: str
    """Which one."""
    trained: int
    """Numbers that train (of a bottleneck with room for two deltas)."""
    state_bytes: int
    """Of the optimizer: two moments of each of them and a counter, and nothing else."""
    milliseconds: float
    """Of a step, median."""
    faster: float
    """Median over rounds of full fine-tuning's time by this one's."""


def bytes_of(trained: int) -> int:
    """Of an optimizer's state that has two float32 numbers for each that trains, a counter, and nothing else."""
    return 8 * trained + COUNTER


def state_bytes(weights: Weights) -> int:
    """Of the optimizer's state. ValueError if they are not `bytes_of` what trains."""
    found, wanted = num_bytes(OPTIMIZER.init(weights.trained)), bytes_of(num_values(weights.trained))
    if found != wanted:
        raise ValueError(f"the optimizer holds {found} bytes; {wanted} are of what trains")
    return found


def measure(session: Session, base: nnx.State, rounds: int, steps: int = 3) -> list[Cost]:
    """Interleaved: in each round every kind takes `steps` steps on the same rows, in turn."""
    size, rows = session.size, session.data.stage0
    index = np.arange(size.batch_size) % len(rows)
    tokens, labels, key = rows.tokens[index], rows.labels[index], jax.random.key(0)
    gates = np.ones((size.batch_size, 2 * size.width), np.float32)
    state: dict[str, Any] = {}
    trained: dict[str, int] = {}
    held: dict[str, int] = {}
    for kind in KINDS:
        weights = start(session.programs, kind, base, 0)
        held[kind], trained[kind] = state_bytes(weights), num_values(weights.trained)
        own = jax.tree.map(jnp.copy, weights.trained)  # a step uses it up, and all of "full" is `base`
        state[kind] = [own, OPTIMIZER.init(own), weights.buffers]

    def run(kind: Kind, count: int) -> float:
        step, opened = session.programs.step(kind), gates if kind == "bottleneck" else None
        params, moments, buffers = state[kind]
        began = time.perf_counter()
        for _ in range(count):
            params, moments, loss = step(
                params, moments, base, buffers, opened, tokens, labels, np.float32(1e-4), key, np.int32(0)
            )
        jax.block_until_ready(loss)
        state[kind] = [params, moments, buffers]
        return (time.perf_counter() - began) / count

    for kind in KINDS:
        run(kind, 1)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            times[kind].append(run(kind, steps))
    return [
        Cost(
            kind,
            trained[kind],
            held[kind],
            round(1000 * statistics.median(times[kind]), 2),
            round(statistics.median(a / b for a, b in zip(times["full"], times[kind], strict=True)), 3),
        )
        for kind in KINDS
    ]
