"""python -m experiments.local_global.costs: bytes of caches, and the time of a training step and of decoding."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.likelihood_vs_position.training import Trainer, total_steps
from experiments.likelihood_vs_position.worker import write_result
from experiments.local_global.arms import WORKLOADS, Workload, arms_of, model_of, optimizer_of
from experiments.runs import say
from zoo.inference import Sampling, generate_after, prefill_in_chunks
from zoo.models import build

CHUNK = 1024
"""Tokens of a piece of the prefill before decoding."""


@dataclass(frozen=True)
class CacheSize:
    """Keys and values of one sequence."""

    arm: str
    """Which pattern."""
    length: int
    """Tokens that the cache is for."""
    formula: int
    """sum over layers of min(length, W or length) * 2 * K * H * bytes of a number."""
    arrays: int
    """Bytes of the keys and values that the model's cache allocates."""
    positions: int
    """Bytes that it allocates besides: a position for each slot, a write index for each layer."""


@dataclass(frozen=True)
class Times:
    """Seconds of every round, by arm; all arms in turn in each round."""

    step: dict[str, tuple[float, ...]]
    """A training step."""
    decode: dict[str, tuple[float, ...]]
    """A decode step, its part of a short generation."""


@dataclass(frozen=True)
class Costs:
    """What the patterns cost."""

    caches: tuple[CacheSize, ...]
    """By arm and length."""
    times: Times
    """On this machine."""


def formula_bytes(config: Any, length: int, item_bytes: int) -> int:
    """Keys and values of one sequence of `length` tokens."""
    slots = [min(length, config.window(layer) or length) for layer in range(config.num_layers)]
    return sum(slots) * 2 * config.num_kv_heads * config.head_dim * item_bytes


def cache_size(arm: str, workload: Workload, length: int) -> CacheSize:
    """By the formula, and of the arrays that a model makes."""
    model: Any = build(model_of(arm, workload), rngs=nnx.Rngs(0))
    cache = model.init_cache(1, length)
    arrays = sum(layer.key.nbytes + layer.value.nbytes for layer in cache)
    formula = formula_bytes(model.config, length, cache[0].key.dtype.itemsize)
    return CacheSize(arm, length, formula, arrays, sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) - arrays)


def in_turn(work: dict[str, Callable[[], float]], rounds: int) -> dict[str, tuple[float, ...]]:
    """What each gives in every round; a first round, which compiles, is left out."""
    found = [{name: one() for name, one in work.items()} for _ in range(rounds + 1)][1:]
    return {name: tuple(each[name] for each in found) for name in work}


def time_steps(workload: Workload) -> dict[str, tuple[float, ...]]:
    """Seconds of training steps, on random tokens, which take the same time as others."""
    batch, length = workload.step_shape
    rows = np.random.default_rng(0).integers(0, workload.vocab_size, (batch, length + 1), np.int32)

    def stepping(arm: str) -> Callable[[], float]:
        trainer = Trainer(model_of(arm, workload), optimizer_of(workload), total_steps(workload.stages), seed=0)

        def once() -> float:
            began = time.perf_counter()
            trainer.step(rows)
            return time.perf_counter() - began

        return once

    return in_turn({arm: stepping(arm) for arm in arms_of(workload)}, workload.rounds)


def time_decoding(workload: Workload) -> dict[str, tuple[float, ...]]:
    """Seconds of a decode step of one sequence, the context already read."""
    prompt = np.random.default_rng(0).integers(0, workload.vocab_size, (1, workload.decode_context), np.int32)
    greedy, new = Sampling(temperature=0), workload.decode_tokens

    def decoding(arm: str) -> Callable[[], float]:
        model: Any = build(model_of(arm, workload), rngs=nnx.Rngs(0))

        def once() -> float:
            read = prefill_in_chunks(model, prompt, chunk=CHUNK, room=new)
            jax.block_until_ready((read.cache, read.logits))
            began = time.perf_counter()
            generate_after(model, read, max_new_tokens=new, sampling=greedy)
            return (time.perf_counter() - began) / (new - 1)  # the first token comes from the prefill

        return once

    return in_turn({arm: decoding(arm) for arm in arms_of(workload)}, workload.rounds)


def measure(workload: Workload) -> Costs:
    """Everything, one after the other."""
    caches = [cache_size(arm, workload, length) for arm in arms_of(workload) for length in workload.cache_lengths]
    say("timing training steps")
    steps = time_steps(workload)
    say("timing decode steps")
    return Costs(tuple(caches), Times(steps, time_decoding(workload)))


def read_costs(path: Path) -> Costs:
    """The inverse of `write_result`."""
    fields = json.loads(path.read_text())
    times = {what: {arm: tuple(seconds) for arm, seconds in arms.items()} for what, arms in fields["times"].items()}
    return Costs(tuple(CacheSize(**each) for each in fields["caches"]), Times(**times))


def main() -> None:
    """Arguments: quick or full, the result's path."""
    size, path = sys.argv[1:]
    found = measure(WORKLOADS[size])
    write_result(found, Path(path))
    say(json.dumps(asdict(found.times)))


if __name__ == "__main__":
    main()
