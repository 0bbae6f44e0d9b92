"""Arithmetic and memory traffic of the instructions of a compiled program."""

import re

import numpy as np

from zoo.ahead_of_time.hlo import ArrayShape, Computation, Instruction, Program

FREE = frozenset((
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "copy-done", "async-done", "async-update", "send", "recv",
    "domain", "add-dependency",
))  # fmt: skip
"""Opcodes that move nothing themselves."""

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
               "collective-broadcast")  # fmt: skip
"""Kinds of collectives; with -start and -done where they run beside other instructions."""


def matrix_flops(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Additions and multiplications of the matrix products in an instruction, those inside of a fusion included.

    Everything else that a processor computes is left out, as in `zoo.training.mfu`. A convolution counts only the
    products with elements that exist, not those with its padding: a TPU writes many products as such convolutions.
    """
    if instruction.opcode == "dot":
        return _dot_flops(computation, instruction)
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    if instruction.opcode == "custom-call" and "__cublas$" in instruction.attributes:
        return _library_flops(computation, instruction)
    if instruction.opcode == "fusion":
        return sum(
            matrix_flops(program, called, inner)
            for called in program.callees(instruction, "calls")
            for inner in called.instructions
        )
    return 0.0


def kernel_cost(instruction: Instruction) -> tuple[float, float] | None:
    """(FLOPs, bytes) that a Pallas kernel declares (`cost_estimate`); None where it declares nothing."""
    declared = (instruction.backend_config.get("custom_call_config") or {}).get("cost_estimate")
    return None if declared is None else (float(declared["flops"]), float(declared["bytes_accessed"]))


def hbm_bytes(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction of the schedule reads from and writes to main memory, an approximation.

    Its operands and its result once each, arrays in vector memory not. What a fusion only takes slices of counts as
    those slices; what it updates in place counts as the update. A kernel counts what it declares. The padding of tiles,
    and operands that a fusion reads several times, are left out.
    """
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return 0.0
    if instruction.opcode == "custom-call":
        declared = kernel_cost(instruction)
        if declared is not None:
            return declared[1]
        if not any(name in instruction.attributes for name in ("tpu_custom_call", "__cublas$", "triton", "mosaic")):
            return 0.0
    operands = computation.operand_shapes(instruction)
    if instruction.opcode == "fusion":
        (called,) = program.callees(instruction, "calls")
        return _fusion_bytes(called)
    if instruction.opcode == "dynamic-slice":
        return 2 * _main_memory(instruction.shapes)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _main_memory(operands[1])
    if instruction.opcode.endswith("-start"):
        return sum(map(_main_memory, operands)) + _main_memory(_results(instruction))
    return sum(map(_main_memory, operands)) + _main_memory(instruction.shapes)


def collective_kind(instruction: Instruction) -> str | None:
    """all-gather, all-reduce, ... of a collective or of its start; None of anything else."""
    name = instruction.opcode.removesuffix("-start")
    return name if name in COLLECTIVES else None


def _results(instruction: Instruction) -> tuple[ArrayShape, ...]:
    """What a start will have produced: its result is (operand, result, flags ...)."""
    half = instruction.shapes[len(instruction.operands) :] or instruction.shapes
    return tuple(shape for shape in half if shape.elements > 1)


def _main_memory(shapes: tuple[ArrayShape, ...]) -> float:
    return sum(shape.bytes for shape in shapes if shape.memory_space == 0)


def _fusion_bytes(called: Computation) -> float:
    users: dict[str, list[Instruction]] = {}
    for instruction in called.instructions:
        for name in instruction.operands:
            users.setdefault(name, []).append(instruction)
    total = 0.0
    for parameter in called.parameters:
        using = _through_bitcasts(parameter, users)
        sliced = [i for i in using if i[0].opcode == "dynamic-slice" and i[0].operands[0] == i[1]]
        updated = [i for i in using if i[0].opcode == "dynamic-update-slice" and i[0].operands[0] == i[1]]
        if using and len(sliced) + len(updated) == len(using):
            if parameter.shapes[0].memory_space == 0:
                total += sum(_array_bytes(i.shapes) for i, _ in sliced)
        else:
            total += _main_memory(parameter.shapes)
    root = called.root
    outputs = [called.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for output in outputs:
        while output.opcode == "bitcast" and output.operands[0] in called.by_name:
            output = called.by_name[output.operands[0]]
        if output.opcode == "parameter":
            continue  # passed on, not written
        if output.opcode == "dynamic-update-slice":
            update = called.by_name.get(output.operands[1])
            total += _array_bytes(update.shapes) if update and output.shapes[0].memory_space == 0 else 0.0
        else:
            total += _main_memory(output.shapes)
    return total


def _array_bytes(shapes: tuple[ArrayShape, ...]) -> float:
    return sum(shape.bytes for shape in shapes)


def _through_bitcasts(source: Instruction, users) -> list[tuple[Instruction, str]]:
    """(user, name under which it uses the source)."""
    found = []
    for user in users.get(source.name, []):
        if user.opcode == "bitcast":
            found += _through_bitcasts(user, users)
        else:
            found.append((user, source.name))
    return found


def _dot_flops(computation: Computation, dot: Instruction) -> float:
    left = computation.by_name[dot.operands[0]].shapes[0]
    contracted = [int(n) for n in re.findall(r"\d+", dot.attribute("lhs_contracting_dims") or "")]
    return 2.0 * dot.shapes[0].elements * np.prod([left.dims[axis] for axis in contracted], dtype=float)


def _library_flops(computation: Computation, call: Instruction) -> float:
    """Of a matrix product that XLA hands to cuBLAS."""
    numbers = call.backend_config.get("gemm_backend_config", {}).get("dot_dimension_numbers", {})
    left = computation.by_name[call.operands[0]].shapes[0]
    contracted = [left.dims[int(axis)] for axis in numbers.get("lhs_contracting_dimensions", [])]
    return 2.0 * call.shapes[0].elements * np.prod(contracted, dtype=float)


def _convolution_flops(computation: Computation, convolution: Instruction) -> float:
    left, kernel = (computation.by_name[name].shapes[0] for name in convolution.operands[:2])
    out = convolution.shapes[0]
    labels = convolution.attribute("dim_labels") or ""
    left_labels, kernel_labels, out_labels = re.split(r"_|->", labels)
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", convolution.attribute("window") or ""))
    spatial = [label for label in out_labels if label.isdigit()]
    pairs = 1.0
    for axis, label in enumerate(sorted(spatial)):
        pairs *= _valid_pairs(
            out.dims[out_labels.index(label)],
            kernel.dims[kernel_labels.index(label)],
            left.dims[left_labels.index(label)],
            stride=_window(window, "stride", axis, 1),
            low=int(window["pad"].split("x")[axis].split("_")[0]) if "pad" in window else 0,
            dilation=_window(window, "rhs_dilate", axis, 1),
            base=_window(window, "lhs_dilate", axis, 1),
        )
    batch, features = out.dims[out_labels.index("b")], out.dims[out_labels.index("f")]
    groups = int(convolution.attribute("batch_group_count") or 1)
    return 2.0 * batch * features * kernel.dims[kernel_labels.index("i")] * pairs / groups


def _window(window: dict[str, str], name: str, axis: int, default: int) -> int:
    return int(window[name].split("x")[axis]) if name in window else default


def _valid_pairs(out: int, kernel: int, size: int, *, stride: int, low: int, dilation: int, base: int) -> float:
    """Pairs (position of the output, of the kernel) that meet an element: 0 <= o * stride + k * dilation - low, which
    is a multiple of `base` below size * base. Counted per kernel position in closed form where stride or base is 1."""
    shift = np.arange(kernel, dtype=np.int64) * dilation - low
    last = (size - 1) * base
    if base == 1:
        first = np.maximum(-(shift // stride), 0)
        end = np.minimum((last - shift) // stride, out - 1)
        return float(np.maximum(end - first + 1, 0).sum())
    if stride == 1:
        least, most = np.maximum(shift, 0), np.minimum(shift + out - 1, last)
        count = most // base - -(-least // base) + 1
        return float(np.where(most >= least, np.maximum(count, 0), 0).sum())
    position = np.arange(out)[:, None] * stride + shift[None]
    return float(((position >= 0) & (position <= last) & (position % base == 0)).sum())
