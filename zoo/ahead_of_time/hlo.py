"""Reads the text of a compiled program, `compiled.as_text()`: computations, instructions in their order, loops.

A scheduled module (TPU, GPU, CPU) lists every computation in the order in which it is executed. Of the grammar only
what a cost needs is read: shapes, operands, called computations, a few attributes. What is not understood raises.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_BITS = {
    "pred": 8, "token": 0, "opaque": 0,
    "s2": 2, "s4": 4, "s8": 8, "s16": 16, "s32": 32, "s64": 64,
    "u2": 2, "u4": 4, "u8": 8, "u16": 16, "u32": 32, "u64": 64,
    "f4e2m1fn": 4, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,<=]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_CALLS = re.compile(
    r"(calls|to_apply|body|condition|true_computation|false_computation|branch_computations|called_computations)"
    r"=(?:%?([\w.\-]+)|\{([^}]*)\})"
)
_COMMENT = re.compile(r"/\*.*?\*/")


class UnreadableProgram(ValueError):
    """The text has a form that this reader does not know; guessing would give wrong costs."""


@dataclass(frozen=True)
class ArrayShape:
    """One array."""

    dtype: str
    """As XLA spells it: bf16, f32, s32, ..."""
    dims: tuple[int, ...]
    """Sizes, without the padding of tiles."""
    layout: str
    """Order, tiles and memory space, as the text has them."""

    @property
    def elements(self) -> int:
        """Product of the sizes."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Without padding."""
        bits = _BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else None)
        if bits is None:
            raise UnreadableProgram(f"unknown element type {self.dtype!r}")
        return self.elements * bits / 8

    @property
    def memory_space(self) -> int:
        """0 = main memory; on TPU 1 = vector memory, 2 and up = flags, scalars and others."""
        found = re.search(r"S\((\d+)\)", self.layout)
        return int(found[1]) if found else 0


def parse_shapes(text: str) -> tuple[ArrayShape, ...]:
    """The arrays of a shape; a tuple is flattened."""
    return tuple(
        ArrayShape(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), layout or "")
        for dtype, dims, layout in _ARRAY.findall(_COMMENT.sub("", text))
    )


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    """Without the %."""
    opcode: str
    """fusion, dot, while, all-gather-start, ..."""
    shape_text: str
    """Shape of the result."""
    operands_text: str
    """What stands between the brackets."""
    attributes: str
    """What stands behind them."""
    is_root: bool
    """Whether it is the computation's result."""

    @cached_property
    def shapes(self) -> tuple[ArrayShape, ...]:
        """Arrays of the result, flattened."""
        return parse_shapes(self.shape_text)

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands; some printers write them without the %."""
        marked = tuple(re.findall(r"%([\w.\-]+)", self.operands_text))
        if marked or self.opcode in ("constant", "parameter"):
            return marked
        return tuple(part for part in re.split(r",\s*", self.operands_text) if re.fullmatch(r"[A-Za-z_][\w.\-]*", part))

    @cached_property
    def called(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the computations that it calls, by attribute (calls, body, condition, to_apply, ...)."""
        found: dict[str, tuple[str, ...]] = {}
        for kind, single, several in _CALLS.findall(self.attributes.split(", metadata={")[0]):
            names = (single,) if single else tuple(re.findall(r"[\w.\-]+", several))
            found[kind] = names
        return found

    @cached_property
    def backend_config(self) -> Mapping[str, Any]:
        """What the back end noted: on TPU the estimated cycles, on CPU and GPU the known trip count."""
        _, found, rest = self.attributes.partition("backend_config=")
        if not found:
            return {}
        try:
            value, _ = json.JSONDecoder().raw_decode(rest)
            return value if isinstance(value, dict) else json.loads(value)
        except ValueError:
            return {}

    def attribute(self, name: str) -> str | None:
        """The text of an attribute such as dimensions={1}, its braces included; None where it is not there."""
        head = self.attributes.split(", metadata={")[0]
        match = re.search(rf"(?:^|[ ,]){re.escape(name)}=", head)
        if match is None:
            return None
        depth, start = 0, match.end()
        for position in range(start, len(head)):
            depth += {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}.get(head[position], 0)
            if head[position] == "," and depth == 0:
                return head[start:position]
        return head[start:]

    @property
    def op_name(self) -> str:
        """The name scopes of the traced program, such as jit(step)/mlp/dot_general."""
        found = re.search(r'metadata=\{[^}]*?op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def bytes(self) -> float:
        """Of the result."""
        return sum(shape.bytes for shape in self.shapes)


@dataclass(frozen=True)
class Computation:
    """A list of instructions in the order in which they are executed."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """Its instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        """The instruction that is the result."""
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    @cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """Its parameters, by number."""
        found = [i for i in self.instructions if i.opcode == "parameter"]
        return tuple(sorted(found, key=lambda i: int(i.operands_text)))

    def operand_shapes(self, instruction: Instruction) -> list[tuple[ArrayShape, ...]]:
        """Arrays of each operand."""
        return [self.by_name[name].shapes for name in instruction.operands if name in self.by_name]


@dataclass(frozen=True)
class Program:
    """A module."""

    name: str
    entry: str
    """Name of the computation that is the program."""
    computations: Mapping[str, Computation]
    scheduled: bool
    """Whether instructions stand in the order of execution."""
    num_partitions: int
    """Devices that run it together, each on its part of the arrays."""

    @property
    def main(self) -> Computation:
        """The entry computation."""
        return self.computations[self.entry]

    def callees(self, instruction: Instruction, *kinds: str) -> list[Computation]:
        """The computations that an instruction calls by these attributes."""
        return [self.computations[name] for kind in kinds for name in instruction.called.get(kind, ())]

    def trip_count(self, loop: Instruction) -> int | None:
        """Passes of a `while` with a constant number of them; None where only the run can tell.

        From `known_trip_count`, or from a condition `counter < constant`, as `jax.lax.scan` makes it, whose counter
        begins at 0 and is raised by 1.
        """
        known = loop.backend_config.get("known_trip_count")
        if known:
            return int(known["n"])
        (condition,) = self.callees(loop, "condition")
        return self._bound(condition, condition.root)

    def _bound(self, condition: Computation, root: Instruction) -> int | None:
        if root.opcode == "fusion":
            (inner,) = self.callees(root, "calls")
            if inner.root.opcode != "compare" or _direction(inner.root) != "LT":
                return None
            right = inner.by_name[inner.root.operands[1]]
            if right.opcode == "constant":
                return _integer(right)
            if right.opcode != "parameter":
                return None
            outer = condition.by_name[root.operands[int(right.operands_text)]]
            return _integer(outer) if outer.opcode == "constant" else None
        if root.opcode != "compare" or _direction(root) != "LT":
            return None
        right = condition.by_name[root.operands[1]]
        return _integer(right) if right.opcode == "constant" else None

    def walk(self, name: str | None = None, times: float = 1, default_trips: int = 1) -> Iterator["Executed"]:
        """Every instruction of the schedule with the number of times that it is executed, loops unfolded into factors.

        Bodies of fusions are not entered: a fusion is one instruction of a schedule. Of a conditional, every branch is
        counted once, as if it were executed. A loop whose number of passes is not constant counts `default_trips`.
        """
        computation = self.computations[name or self.entry]
        for instruction in computation.instructions:
            yield Executed(computation, instruction, times)
            if instruction.opcode == "while":
                trips = self.trip_count(instruction)
                passes = times * (default_trips if trips is None else trips)
                for body in self.callees(instruction, "body"):
                    yield from self.walk(body.name, passes, default_trips)
            elif instruction.opcode in ("call", "conditional"):
                kinds = "to_apply", "branch_computations", "true_computation", "false_computation"
                for called in self.callees(instruction, *kinds):
                    yield from self.walk(called.name, times, default_trips)


@dataclass(frozen=True)
class Executed:
    """An instruction, where it stands, and how often it is executed."""

    computation: Computation
    instruction: Instruction
    times: float


def parse_program(text: str) -> Program:
    """A module from its text. Raises: UnreadableProgram."""
    header = text[: text.find("\n")]
    if not header.startswith("HloModule "):
        raise UnreadableProgram("the text does not begin with HloModule")
    computations: dict[str, Computation] = {}
    entry, current = "", None
    lines: list[str] = []
    for line in text.splitlines()[1:]:
        if current is None:
            match = _COMPUTATION.match(line)
            if match and " = " not in line.split("(")[0]:
                current, lines = match[2], []
                entry = current if match[1] else entry
        elif re.match(r"}(, execution_thread=.*)?$", line):
            computations[current] = Computation(current, tuple(_instruction(line) for line in lines))
            current = None
        elif _INSTRUCTION.match(line):
            lines.append(line)
        elif lines:
            # The name that a kernel gives itself may have several lines.
            lines[-1] += line
    if not entry:
        raise UnreadableProgram("the module has no ENTRY computation")
    partitions = re.search(r"num_partitions=(\d+)", header)
    return Program(
        name=header.split()[1].rstrip(","),
        entry=entry,
        computations=computations,
        scheduled="is_scheduled=true" in header,
        num_partitions=int(partitions[1]) if partitions else 1,
    )


def _instruction(line: str) -> Instruction:
    match = _INSTRUCTION.match(line)
    if match is None:
        raise UnreadableProgram(f"no instruction: {line[:120]!r}")
    rest = line[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    bracket = rest.find("(")
    if bracket < 0:
        raise UnreadableProgram(f"no operands: {line[:120]!r}")
    close = _closing(rest, bracket)
    return Instruction(
        name=match[2],
        opcode=rest[:bracket],
        shape_text=shape,
        operands_text=rest[bracket + 1 : close],
        attributes=rest[close + 1 :].lstrip(", "),
        is_root=bool(match[1]),
    )


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`; quoted text does not count."""
    depth, quoted, position = 0, False, start
    while position < len(text):
        character = text[position]
        if quoted:
            if character == "\\":
                position += 1
            elif character == '"':
                quoted = False
        elif character == '"':
            quoted = True
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    raise UnreadableProgram(f"a bracket is not closed: {text[start : start + 80]!r}")


def _direction(compare: Instruction) -> str | None:
    return compare.attribute("direction")


def _integer(constant: Instruction) -> int | None:
    return int(constant.operands_text) if re.fullmatch(r"-?\d+", constant.operands_text) else None
