"""Registers, spills and shared memory of our GPU kernels on every target: needs the CUDA wheels, but no GPU."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import jax
import jax.numpy as jnp

from experiments.attention_kernels.subjects import GEMMA2_9B, GEMMA2_27B, SOFT_CAP, WINDOW, attention_inputs
from zoo.ahead_of_time.gpu import TARGETS
from zoo.ahead_of_time.gpu_registers import compile_with_facts
from zoo.kernels.local_attention.gpu import local_attention_gpu
from zoo.kernels.local_attention.hopper import local_attention_hopper

LENGTH = 8192
IMPLEMENTATIONS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "pallas_gpu": (local_attention_gpu, tuple(TARGETS)),
    "mosaic_gpu": (local_attention_hopper, ("H100", "H200")),
}
"""Kernel and the targets that it is for."""


@dataclass(frozen=True)
class GpuKernel:
    """One kernel of a forward and backward pass, T = 8,192, W = 4,096, soft-cap 50, bfloat16; sizes in bytes."""

    implementation: str
    """Name of the implementation."""
    target: str
    """GPU."""
    shape: str
    """Heads, by the model's name."""
    kernel: str
    """Entry point; empty where compiling failed."""
    registers: int = 0
    """Per thread."""
    spill_stores: int = 0
    """Per thread."""
    shared_memory: int = 0
    """Of a block."""
    shared_memory_limit: int = 0
    """Most that a block can have."""
    failure: str | None = None
    """What the compiler raised."""


def facts() -> list[GpuKernel]:
    """Every implementation, target and shape; small kernels of XLA, which multiply no matrices, are left out."""
    found = []
    for implementation, (attention, targets) in IMPLEMENTATIONS.items():
        for target in targets:
            for shape in (GEMMA2_9B, GEMMA2_27B):
                new = partial(GpuKernel, implementation, target, shape.name)
                try:
                    _, kernels = compile_with_facts(_layer(attention), *_arguments(shape), target=TARGETS[target])
                except Exception as error:  # what fails is a result
                    found.append(new("", failure=f"{type(error).__name__}: {str(error)[:200]}"))
                    continue
                listed = [kernel for kernel in kernels if sum(kernel.matrix_instructions.values())]
                if not listed:
                    found.append(new("", failure="compiles; its PTX is not among XLA's"))
                for kernel in listed:
                    found.append(
                        new(
                            kernel.name,
                            registers=kernel.registers,
                            spill_stores=kernel.spill_stores,
                            shared_memory=kernel.shared_memory,
                            shared_memory_limit=TARGETS[target].shared_memory_per_block,
                        )
                    )
                print(target, implementation, shape.name, file=sys.stderr, flush=True)
    return found


def _layer(attention: Callable):
    def loss(query, key, value):
        out = attention(attention_inputs(query, key, value, WINDOW, SOFT_CAP), interpret=False)
        return out.astype(jnp.float32).sum()

    return jax.grad(loss, (0, 1, 2))


def _arguments(shape):
    query = jax.ShapeDtypeStruct((1, LENGTH, shape.heads, shape.head_dim), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((1, LENGTH, shape.kv_heads, shape.head_dim), jnp.bfloat16)
    return query, key, key


def main() -> None:
    """Prints the facts as one line of JSON."""
    print(json.dumps([asdict(fact) for fact in facts()]))


if __name__ == "__main__":
    main()
