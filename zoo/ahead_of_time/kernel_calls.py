"""Pallas kernels taken out of a compiled TPU program and compiled alone, so that their own schedules can be read."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from zoo.ahead_of_time.hlo import ArrayShape, Computation, Instruction

TARGET = "tpu_custom_call"
"""The name under which a program calls a Mosaic kernel."""

_DTYPES = {
    "pred": "bool", "s4": "int4", "s8": "int8", "s16": "int16", "s32": "int32", "s64": "int64",
    "u4": "uint4", "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64",
    "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64",
}  # fmt: skip


@dataclass(frozen=True)
class KernelCall:
    """One kernel as the program calls it on one device."""

    name: str
    """Of the kernel."""
    config: str
    """Its code and what goes with it, as the custom call's JSON."""
    operands: tuple[tuple[str, tuple[int, ...]], ...]
    """(dtype, shape) of each."""
    results: tuple[tuple[str, tuple[int, ...]], ...]
    """Likewise."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal kernels."""
        parts = json.dumps([self.config, self.operands, self.results])
        return hashlib.sha256(parts.encode()).hexdigest()[:20]


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction calls a Pallas kernel."""
    return instruction.opcode == "custom-call" and instruction.attribute("custom_call_target") == f'"{TARGET}"'


def kernel_call(computation: Computation, instruction: Instruction) -> KernelCall:
    """The kernel of such an instruction."""
    config = instruction.backend_config
    kept = {"custom_call_config": config["custom_call_config"]}
    memory = config.get("scoped_memory_configs")
    if memory:
        kept["scoped_memory_configs"] = memory
    operands = [shape for shapes in computation.operand_shapes(instruction) for shape in shapes]
    return KernelCall(
        name=instruction.name.rstrip("0123456789."),
        config=json.dumps(kept),
        operands=_plain(operands),
        results=_plain(instruction.shapes),
    )


def build(config: str, operands: Sequence[Any], results: Sequence[Any]) -> tuple[Callable, tuple]:
    """(function that calls the kernel, its arguments), as `tpu_schedule.Case` asks for."""

    def struct(entry):
        return jax.ShapeDtypeStruct(tuple(entry[1]), jnp.dtype(_DTYPES[entry[0]]))

    call = jax.ffi.ffi_call(
        TARGET,
        [struct(entry) for entry in results],
        custom_call_api_version=1,
        legacy_backend_config=config,
    )
    return call, tuple(struct(entry) for entry in operands)


def _plain(shapes: Sequence[ArrayShape]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((shape.dtype, shape.dims) for shape in shapes)
