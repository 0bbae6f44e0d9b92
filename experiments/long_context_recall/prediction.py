"""What a run will take, said before it starts: memory from shapes, time from two timed chunks.

A chunk takes longer the more tokens are before it, in proportion: so one at the beginning of the longest context and
one at its end give all others. Answers are timed once, at the end of the longest context; shorter ones take less.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from experiments.long_context_recall.cells import Subject, chunk_of, room_of
from experiments.long_context_recall.grid import MEDIA_TASKS, Cell
from zoo.errors import UserError
from zoo.inference import Prefilled, continuation_log_probabilities, generate_after
from zoo.inference.model import take_apart
from zoo.inference.prefill import _programs
from zoo.parallel.sharding import activation_context

ANSWER_TOKENS, CANDIDATES = 8, 16
"""What the timed answer is: so many candidates of so many tokens; as needles have."""


@dataclass(frozen=True)
class Memory:
    """Bytes at one length."""

    length: int
    """Tokens of prompt and answer."""
    weights: int
    """Of the model."""
    local_cache: int
    """Of layers with a window: the same from the window on."""
    global_cache: int
    """Of layers without: grows with the length."""
    chunk: int
    """Of the arrays of one chunk, about."""
    process: int
    """Of what the process holds besides: libraries, the haystack, compiled programs; on CPU only."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.local_cache + self.global_cache + self.chunk + self.process


@dataclass(frozen=True)
class Timing:
    """Seconds that were measured before the run."""

    length: int
    """Tokens of the context that they are for, the longest."""
    chunk: int
    """Tokens of a chunk."""
    first_chunk: float
    """A chunk at the beginning."""
    last_chunk: float
    """A chunk at the end."""
    answer: float
    """Ranking candidates and writing an answer at the end."""
    compilation: float
    """All programs of one length."""

    def prefill(self, length: int) -> float:
        """Seconds that a prompt of so many tokens takes: the sum of its chunks."""
        slope = (self.last_chunk - self.first_chunk) / max(self.length, 1)
        return -(-length // self.chunk) * (self.first_chunk + max(slope, 0.0) * length / 2)

    def sample(self, length: int) -> float:
        """Seconds for one sample at a length."""
        return self.prefill(length) + self.answer


def memory_of(subject: Subject, length: int, max_new_tokens: int = 16) -> Memory:
    """From the shapes of weights and caches. A chunk's arrays are counted as four times its residual stream and
    feed-forward, its scores and one row of logits; on CPU also the float32 copy that XLA makes of a 16-bit cache, one
    layer's at a time. Of a cache in 8 bits, whose scales are counted, only a ring is copied as a whole."""
    model, config = subject.model, subject.model.config
    chunk = chunk_of(subject, length)
    slots = -(-length // chunk) * chunk + room_of(max_new_tokens)
    caches = jax.eval_shape(lambda: model.init_cache(1, slots, subject.cache_dtype))
    sizes = {True: 0, False: 0}
    copied = 0
    for layer, cache in enumerate(caches):
        sizes[config.window(layer) is None] += sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
        of_cpu = jax.default_backend() == "cpu" and cache.key.dtype.itemsize == 2
        if of_cpu or (cache.scales is not None and config.window(layer) is not None):
            copied = max(copied, 4 * (cache.key.size + cache.value.size))
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in take_apart(model)[1])
    width = 4 * config.embed_dim + 3 * getattr(config, "hidden_dim", 4 * config.embed_dim)
    arrays = 4 * chunk * width * 4 + 4 * config.vocab_size * 4 + 64 * 2**20 + copied
    process = max(0, resident() - weights) if jax.default_backend() == "cpu" else 0
    return Memory(length, weights, sizes[False], sizes[True], arrays, process)


def resident() -> int:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def allowed_bytes(asked: float | None) -> int:
    """The limit: what was asked for in GiB, else the memory of the device, on CPU that of the machine."""
    if asked is not None:
        return int(asked * 2**30)
    if jax.default_backend() == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int((jax.devices()[0].memory_stats() or {}).get("bytes_limit", 2**62))


def check_memory(memory: Sequence[Memory], allowed: int) -> None:
    """Raises `UserError` naming the first length that does not fit."""
    for need in memory:
        if need.total > allowed:
            raise UserError(
                f"a length of {need.length} tokens needs about {need.total / 2**30:.2f} GiB, {allowed / 2**30:.2f} GiB "
                "are allowed: give a smaller --lengths, --chunk or --cache-dtype, or a greater --memory"
            )


def flops_of(config: Any, cells: Sequence[Cell], samples: int) -> float:
    """Floating-point operations of reading all prompts, visible pairs only."""
    return sum(
        samples * cell.length * config.flops_per_token(cell.length) for cell in cells if cell.task not in MEDIA_TASKS
    )


def time_chunks(subject: Subject, length: int, max_new_tokens: int = 16) -> Timing:
    """Times a chunk at both ends of a context of `length` tokens, and an answer, by the programs of the real run.

    The cache at the end is one whose write index was set there: a chunk takes the same time whatever it reads."""
    chunk = chunk_of(subject, length)
    slots = -(-length // chunk) * chunk
    structure, arrays = take_apart(subject.model)
    programs = _programs(structure, activation_context.get())
    tokens = np.ones((1, chunk), np.int32)
    dtype = None if subject.cache_dtype is None else jax.numpy.dtype(subject.cache_dtype)
    began = time.perf_counter()
    cache, hidden = programs.first(
        arrays, tokens, np.arange(chunk, dtype=np.int32)[None], None, None,
        cache_length=slots + room_of(max_new_tokens), dtype=dtype,
    )  # fmt: skip
    hidden.block_until_ready()

    def one(cache, start: int):
        cache = tuple(replace(layer, cursor=layer.cursor * 0 + start) for layer in cache)
        positions = start + np.arange(chunk, dtype=np.int32)[None]
        before = time.perf_counter()
        cache, hidden = programs.next(arrays, cache, tokens, positions, None, None)
        hidden.block_until_ready()
        return cache, time.perf_counter() - before

    last = max(slots - chunk, 0)
    cache, _ = one(cache, min(chunk, last))
    compiled = time.perf_counter() - began
    cache, low = one(cache, min(chunk, last))
    cache, high = one(cache, last)
    read = Prefilled(tokens, np.ones_like(tokens), cache, programs.logits(arrays, hidden), room_of(max_new_tokens))
    answers = [[1] * ANSWER_TOKENS] * CANDIDATES
    seconds = []
    for _ in range(2):
        before = time.perf_counter()
        continuation_log_probabilities(subject.model, read, answers)
        seconds.append(time.perf_counter() - before)
    before = time.perf_counter()
    generate_after(subject.model, read, max_new_tokens=max_new_tokens)
    first_writing = time.perf_counter() - before
    compiled += seconds[0] - seconds[1]
    # Writing is timed with its compilation; by steps it takes about what one candidate takes.
    writing = seconds[1] / CANDIDATES / ANSWER_TOKENS * max_new_tokens
    compiled += max(0.0, first_writing - writing)
    return Timing(slots, chunk, low, max(low, high), seconds[1] + writing, compiled)


def seconds_of(timing: Timing, cells: Sequence[Cell], samples: int) -> list[float]:
    """Of each cell; the first one of a length compiles the programs that all tasks of it share. 0 for media tasks,
    which are not predicted."""
    seconds, compiled = [], set()
    for cell in cells:
        if cell.task in MEDIA_TASKS:
            seconds.append(0.0)
            continue
        compilation = 0.0 if cell.length in compiled else timing.compilation
        compiled.add(cell.length)
        seconds.append(compilation + samples * timing.sample(cell.length))
    return seconds
