"""What generation from packed weights holds in memory, read from compiled programs, and how fast it runs here."""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.quantisation.kinds import EXECUTION, FLOAT32, PACKINGS, Workload, model_of
from zoo.inference import Sampling, generate, generation
from zoo.inference.model import take_apart
from zoo.interop import Packing, packed_model
from zoo.interop.parameters import abstract_model, parameter_name
from zoo.interop.quantised import packed_structure
from zoo.models import build, preset
from zoo.nn import Execution

PROMPT, CONTEXT = 8, 512
"""Tokens of the prompt; slots of the cache in the compiled programs."""


@dataclass(frozen=True)
class Memory:
    """One compiled decode program, batch 1."""

    model: str
    """Preset, or "timed model"."""
    kind: str
    """Kind of weights."""
    parameters: int
    """Of the model."""
    weight_bytes: int
    """Of its weights as they lie in memory."""
    cache_bytes: int
    """Of keys and values."""
    temporary_bytes: int
    """What the program allocates besides its arguments and results."""


@dataclass(frozen=True)
class Speed:
    """Generation with one kind of weights, batch 1, greedy."""

    kind: str
    """Kind of weights."""
    tokens_per_second: tuple[float, ...]
    """Of every round."""
    ratios: tuple[float, ...]
    """Of every round: divided by that of float32 weights in the same round."""


def abstract_packed_model(config: Any, packing: Packing | None, execution: Execution) -> Any:
    """A model of `jax.ShapeDtypeStruct`s, packed or, with None, not; layers are not scanned."""
    graphdef, state = abstract_model(config, dataclasses.replace(execution, scan_layers=False))
    made = []
    for path, leaf in nnx.to_flat_state(state):
        structure = packing and packed_structure(parameter_name(path), leaf.shape, packing)
        made.append((path, leaf.replace(structure) if structure else leaf))
    return nnx.merge(graphdef, nnx.from_flat_state(made))


def decode_memory(name: str, config: Any, kind: str, execution: Execution = EXECUTION) -> Memory:
    """Compiles the decode program for this machine from shapes alone; no weight is allocated."""
    model = abstract_packed_model(config, PACKINGS.get(kind), execution)
    structure, arrays = take_apart(model)
    # Read from the program that `generate` runs, not from one like it.
    programs: Any = generation._programs(structure, Sampling(temperature=0), 0)
    tokens, none = np.ones((1, PROMPT), np.int32), np.zeros(0, np.int32)
    keys = generation.row_keys(0, tokens, np.ones_like(tokens))
    arguments = (arrays, tokens, np.arange(PROMPT, dtype=np.int32)[None], None, keys, none)
    cache, last = jax.eval_shape(lambda *a: programs.prefill(*a, cache_length=CONTEXT), *arguments)
    compiled = programs.decode.lower(arrays, cache, last, keys, none, 4).compile()

    def size(tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    temporary = compiled.memory_analysis().temp_size_in_bytes
    return Memory(name, kind, config.num_parameters(), size(arrays), size(cache), temporary)


def timed_model_of(workload: Workload) -> Any:
    """The block of the trained model with more and wider layers, so that weights do not fit a processor's cache."""
    width = workload.speed_embed_dim
    return dataclasses.replace(
        model_of(workload),
        embed_dim=width,
        num_layers=workload.speed_layers,
        num_heads=width // 64,
        head_dim=64,
        hidden_dim=4 * width,
        vocab_size=4 * workload.vocab_size,
        max_position_embeddings=CONTEXT,
    )


def measure_speed(workload: Workload, kinds: Sequence[str]) -> list[Speed]:
    """Tokens per second of `generate`, all kinds in turn in every round. Random weights: their values do not matter."""
    original = build(timed_model_of(workload), execution=EXECUTION, rngs=nnx.Rngs(0))
    models = {FLOAT32: original} | {kind: packed_model(original, PACKINGS[kind]) for kind in kinds}
    prompt, rounds = np.full((1, PROMPT), 5, np.int32), []

    def once(model: Any) -> float:
        began = time.perf_counter()
        generate(model, prompt, max_new_tokens=workload.speed_tokens, sampling=Sampling(temperature=0))
        return workload.speed_tokens / (time.perf_counter() - began)

    for model in models.values():
        once(model)  # compiles
    for _ in range(workload.speed_rounds):
        rounds.append({kind: once(model) for kind, model in models.items()})
    return [Speed(kind, tuple(r[kind] for r in rounds), tuple(r[kind] / r[FLOAT32] for r in rounds)) for kind in models]


def measure_memory(workload: Workload, kinds: Sequence[str]) -> list[Memory]:
    """The timed model with all kinds, and the planned presets with the packed ones."""
    timed = timed_model_of(workload)
    found = [decode_memory("timed model", timed, kind) for kind in (FLOAT32, *kinds)]
    return found + [decode_memory(name, preset(name), kind) for name in workload.planned for kind in kinds]


def median_ratio(speed: Speed) -> float:
    """Of the rounds."""
    return statistics.median(speed.ratios)
