"""One local attention layer, forward and backward, at growing lengths: time and memory must grow with T x W."""

import functools
import json
import math
import re
import statistics
import sys
import time
from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels import dot_product_attention


@dataclass(frozen=True)
class LocalLayer:
    """Shapes of the attention layer that is measured (those of a local layer of gemma2-mini)."""

    num_heads: int = 8
    """Query heads N."""
    num_kv_heads: int = 4
    """Key/value heads K."""
    head_dim: int = 64
    """Width H of one head."""
    sliding_window: int = 256
    """Keys that a query sees."""
    logits_soft_cap: float = 50.0
    """Cap of the scores."""


@dataclass(frozen=True)
class LengthResult:
    """What one sequence length costs; B = 1, float32."""

    length: int
    """Tokens T."""
    seconds: float
    """Median of one forward and backward pass."""
    fastest_seconds: float
    """The fastest round."""
    temporary_bytes: int
    """Memory of the compiled program besides its inputs and outputs (XLA's own account)."""
    largest_buffer_elements: int
    """Elements of the largest array in the compiled program."""


def measure_local_layer(lengths: list[int], rounds: int, layer: LocalLayer = LocalLayer()) -> list[LengthResult]:
    """Times the lengths in turn, `rounds` times."""
    programs = {length: _compile(layer, length) for length in lengths}
    inputs = {length: _inputs(layer, length) for length in lengths}
    seconds: dict[int, list[float]] = {length: [] for length in lengths}
    for length in lengths:
        jax.block_until_ready(programs[length](*inputs[length]))
    for _ in range(rounds):
        for length in lengths:
            # The short lengths are repeated, so that each takes about the same share of a round.
            repeats = max(1, min(4, max(lengths) // length))
            start = time.perf_counter()
            for _ in range(repeats):
                jax.block_until_ready(programs[length](*inputs[length]))
            seconds[length].append((time.perf_counter() - start) / repeats)
    results = []
    for length in lengths:
        results.append(
            LengthResult(
                length=length,
                seconds=statistics.median(seconds[length]),
                fastest_seconds=min(seconds[length]),
                temporary_bytes=programs[length].memory_analysis().temp_size_in_bytes,
                largest_buffer_elements=largest_buffer_elements(programs[length].as_text()),
            )
        )
    return results


def largest_buffer_elements(hlo_text: str) -> int:
    """Elements of the largest array that appears in the text of a compiled program."""
    shapes = re.findall(r"\b(?:pred|[a-z]+\d+)\[([\d,]*)\]", hlo_text)
    return max(math.prod(int(size) for size in shape.split(",") if size) for shape in shapes)


def _inputs(layer: LocalLayer, length: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    heads = (layer.num_heads, layer.num_kv_heads, layer.num_kv_heads, layer.num_heads)
    shapes = [(1, length, count, layer.head_dim) for count in heads]
    return [jax.device_put(generator.standard_normal(shape, np.float32)) for shape in shapes]


def _compile(layer: LocalLayer, length: int):
    """(query, key, value, cotangent) -> gradients of query, key and value."""
    attention = functools.partial(
        dot_product_attention,
        scale=layer.head_dim**-0.5,
        sliding_window=layer.sliding_window,
        logits_soft_cap=layer.logits_soft_cap,
    )

    def loss(query, key, value, cotangent):
        return jnp.vdot(attention(query, key, value), cotangent)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*_inputs(layer, length)).compile()


def main() -> None:
    """Prints the results of the lengths, and of as many rounds as the last argument says, as one line of JSON."""
    *lengths, rounds = map(int, sys.argv[1:])
    print(json.dumps([asdict(result) for result in measure_local_layer(lengths, rounds)]))


if __name__ == "__main__":
    main()
