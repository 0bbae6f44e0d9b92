"""Time of a compiled program read off its schedule: the compiler's cycles, kernels, and collectives that wait.

The instructions are followed in their order with one clock per chip:

* An instruction takes the `estimated_cycles` that the TPU compiler noted; one without an estimate the time of its bytes
  at the rate of the main memory; a kernel what `kernel_seconds` says of it.
* A synchronous collective stops the chip for its time at the rate of the links.
* An asynchronous one runs from its start on, behind those that occupy the same links, and its done waits for it.
* A collective that the compiler has fused with computations ("async collective fusion") advances while those run, and
  its done waits for what is missing.
* A copy between memories that runs beside the computation is waited for in the same way.
* A loop takes its trip count times one pass; a conditional its longest branch.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from zoo.ahead_of_time.collectives import Collective, CollectiveReader, rendezvous
from zoo.ahead_of_time.costs import FREE, collective_kind, hbm_bytes, matrix_flops
from zoo.ahead_of_time.hlo import Computation, Instruction, Program
from zoo.ahead_of_time.interconnect import Network
from zoo.ahead_of_time.kernel_calls import is_kernel


@dataclass(frozen=True)
class Machine:
    """What a chip does per second, seen from one device of a program."""

    clock_hz: float
    """Cycles of the compiler's estimates."""
    hbm_bytes_per_second: float
    """Main memory."""


@dataclass
class KernelCalls:
    """Calls of one kernel in a step."""

    name: str
    times: float
    seconds: float
    """Of one call."""
    flops: float
    """That one call declares."""
    source: str
    """Where the time comes from."""


@dataclass
class Timeline:
    """Sums over one step on one device; seconds, FLOPs, bytes."""

    seconds: float = 0.0
    """From the first instruction to the last."""
    compute_seconds: float = 0.0
    """Instructions with the compiler's estimate."""
    memory_seconds: float = 0.0
    """Instructions without one, at the rate of the main memory."""
    kernel_seconds: float = 0.0
    """Kernels."""
    copy_wait_seconds: float = 0.0
    """Waiting for copies between memories."""
    exposed_seconds: float = 0.0
    """Waiting for collectives."""
    matrix_flops: float = 0.0
    """Matrix products of XLA's own instructions."""
    kernel_flops: float = 0.0
    """That kernels declare."""
    hbm_bytes: float = 0.0
    """Read and written."""
    collectives: list[Collective] = field(default_factory=list)
    kernels: dict[str, KernelCalls] = field(default_factory=dict)
    cycles_by_scope: Counter = field(default_factory=Counter)
    """Seconds of the compiler's estimates by the program's name scopes."""
    unknown_loops: list[str] = field(default_factory=list)
    """Loops whose number of passes only the run can tell; counted as `default_trips`."""


@dataclass(frozen=True)
class KernelTime:
    """One call of a kernel."""

    seconds: float
    flops: float
    """Declared, or counted in its code."""
    source: str
    """Where the figures come from."""


KernelSeconds = Callable[[Instruction, Computation], KernelTime]
"""(instruction, where it stands) -> its time."""


@dataclass
class _Pending:
    """A collective on its way."""

    collective: Collective
    finish: float = 0.0
    """When it has arrived, for one that runs by itself."""
    progress: float = 0.0
    """Seconds of computation that advanced it, for a fused one."""


def follow(
    program: Program,
    mesh_shape: Mapping[str, int],
    machine: Machine,
    network: Network | None,
    kernel_seconds: KernelSeconds,
    default_trips: int = 1,
) -> Timeline:
    """Follows the program from its first instruction to its last. default_trips: passes of a loop that does not say."""
    reader = CollectiveReader(program, mesh_shape, network)
    walk = _Walk(program, reader, machine, kernel_seconds, default_trips)
    walk.timeline.seconds = walk.run(program.main, 1.0)
    return walk.timeline


class _Walk:
    def __init__(self, program: Program, reader: CollectiveReader, machine: Machine, kernel_seconds: KernelSeconds,
                 default_trips: int):  # fmt: skip
        self.program, self.reader, self.machine, self.kernel_seconds = program, reader, machine, kernel_seconds
        self.default_trips = default_trips
        self.timeline = Timeline()

    def run(self, computation: Computation, times: float) -> float:
        """Seconds of one pass; the timeline gets `times` of it."""
        clock = 0.0
        busy: dict[str, float] = defaultdict(float)  # when each kind of link is free again
        copies: dict[str, float] = {}
        pending: dict[str, _Pending] = {}
        for instruction in computation.instructions:
            opcode = instruction.opcode
            if opcode in ("while", "conditional", "call"):
                clock += self._nested(instruction, times)
                continue
            self._count(computation, instruction, times)
            if opcode == "copy-start":
                moved = 2 * instruction.shapes[0].bytes
                # HBM is read or written once; the other side is vector memory.
                copies[instruction.name] = clock + moved / 2 / self.machine.hbm_bytes_per_second
            elif opcode == "copy-done":
                ready = copies.pop(instruction.operands[0], clock)
                wait = max(0.0, ready - clock)
                self.timeline.copy_wait_seconds += times * wait
                clock += wait
            elif opcode == "send":
                self._send(computation, instruction, times, clock, busy, pending)
            elif _is_done(instruction):
                name = instruction.operands[0] if instruction.operands else ""
                if opcode == "recv-done" and name in computation.by_name:
                    name = rendezvous(computation.by_name[name])
                clock += self._finish(pending.pop(name, None), clock, times)
            else:
                clock += self._advance(computation, instruction, times, clock, busy, pending)
        for left in pending.values():  # one that is carried out of the computation
            clock += self._finish(left, clock, times)
        return clock

    def _nested(self, instruction: Instruction, times: float) -> float:
        if instruction.opcode == "while":
            trips = self.program.trip_count(instruction)
            if trips is None:
                self.timeline.unknown_loops.append(instruction.op_name or instruction.name)
            passes = self.default_trips if trips is None else trips
            (body,) = self.program.callees(instruction, "body")
            return passes * self.run(body, times * passes)
        kinds = "to_apply", "branch_computations", "true_computation", "false_computation"
        branches = self.program.callees(instruction, *kinds)
        # Only the longest branch is counted: a training step's other branch does nothing.
        measured = []
        for branch in branches:
            kept, self.timeline = self.timeline, Timeline()
            measured.append((self.run(branch, times), self.timeline))
            self.timeline = kept
        seconds, longest = max(measured, key=lambda pair: pair[0])
        _add(self.timeline, longest)
        return seconds

    def _advance(self, computation, instruction, times, clock, busy, pending) -> float:
        """Seconds until the next instruction begins."""
        if instruction.opcode in FREE:
            return 0.0
        if instruction.opcode == "async-start":
            (called,) = self.program.callees(instruction, "calls") or self.program.callees(
                instruction, "called_computations"
            )
            inner = [i for i in called.instructions if collective_kind(i)]
            for one in inner:
                self._start(called, one, times, clock, busy, pending, instruction.name)
            return 0.0
        kind = collective_kind(instruction)
        if kind and instruction.opcode.endswith("-start"):
            self._start(computation, instruction, times, clock, busy, pending, instruction.name)
            return 0.0
        if kind:
            collective = self.reader.read(computation, instruction)
            wait = max([0.0, *(busy[link] - clock for link in collective.dimensions)])
            return wait + self._expose(collective, collective.seconds, wait, times)
        if instruction.opcode == "fusion":
            return self._fusion(computation, instruction, times, pending)
        if instruction.opcode == "custom-call":
            return self._kernel(computation, instruction, times)
        return self._own(computation, instruction, times)

    def _start(self, computation, instruction, times, clock, busy, pending, name) -> None:
        self._begin(self.reader.read(computation, instruction), times, clock, busy, pending, name)

    def _begin(self, collective: Collective, times, clock, busy, pending, name) -> None:
        collective.form, collective.times = "asynchronous", times
        begin = max([clock, *(busy[link] for link in collective.dimensions)])
        for link in collective.dimensions:
            busy[link] = begin + collective.seconds
        self.timeline.collectives.append(collective)
        pending[name] = _Pending(collective, finish=begin + collective.seconds)

    def _send(self, computation, instruction, times, clock, busy, pending) -> None:
        collective = self.reader.read_exchange(computation, instruction)
        if collective is not None:
            self._begin(collective, times, clock, busy, pending, rendezvous(instruction))

    def _finish(self, pending: _Pending | None, clock: float, times: float) -> float:
        if pending is None:
            return 0.0
        missing = pending.finish - clock
        if pending.collective.form == "fused":
            missing = pending.collective.seconds - pending.progress
        missing = max(0.0, missing)
        pending.collective.exposed += times * missing
        self.timeline.exposed_seconds += times * missing
        return missing

    def _expose(self, collective: Collective, seconds: float, wait: float, times: float) -> float:
        collective.times, collective.exposed = times, times * (seconds + wait)
        self.timeline.collectives.append(collective)
        self.timeline.exposed_seconds += times * (seconds + wait)
        return seconds

    def _fusion(self, computation, instruction, times, pending) -> float:
        """A fusion that holds a collective is its start, its done or a computation that advances it."""
        held = self._held(instruction)
        if held is None:
            return self._own(computation, instruction, times)
        called, inner, role = held
        chain = f"{inner.attribute('channel_id')}/{_chain(inner)}"
        if role == "start":
            collective = self.reader.read(called, inner)
            collective.form, collective.times = "fused", times
            self.timeline.collectives.append(collective)
            pending[chain] = _Pending(collective)
            return 0.0
        if role == "done":
            return self._finish(pending.pop(chain, None), 0.0, times)
        kernels = [other for other in called.instructions if is_kernel(other)]
        if kernels:  # one that carries a collective: the fusion itself has no estimate
            seconds = sum(self._kernel(called, kernel, times) for kernel in kernels)
        else:
            seconds = self._own(computation, instruction, times)
        if chain in pending:
            pending[chain].progress += seconds
            return seconds
        # A collective and a computation in one fusion, as of a reduce-scatter with its addition: not hidden.
        collective = self.reader.read(called, inner)
        collective.form = "synchronous"
        return seconds + self._expose(collective, collective.seconds, 0.0, times)

    def _held(self, fusion: Instruction) -> tuple[Computation, Instruction, str] | None:
        for called in self.program.callees(fusion, "calls"):
            for inner in called.instructions:
                if collective_kind(inner):
                    text = called.root.operands_text + called.root.attributes
                    targets = {i.attribute("custom_call_target") for i in called.instructions} | {text}
                    role = "computation"
                    if '"AsyncCollectiveStart"' in targets:
                        role = "start"
                    elif '"AsyncCollectiveDone"' in targets:
                        role = "done"
                    return called, inner, role
        return None

    def _kernel(self, computation, instruction, times) -> float:
        if not is_kernel(instruction):
            return (
                0.0
                if not hbm_bytes(self.program, computation, instruction)
                else self._own(computation, instruction, times)
            )
        one = self.kernel_seconds(instruction, computation)
        name = instruction.name.rstrip("0123456789.")
        key = f"{name} {one.seconds} {one.flops}"
        known = self.timeline.kernels.setdefault(key, KernelCalls(name, 0.0, one.seconds, one.flops, one.source))
        known.times += times
        self.timeline.kernel_seconds += times * one.seconds
        self.timeline.kernel_flops += times * one.flops
        return one.seconds

    def _own(self, computation, instruction, times) -> float:
        cycles = estimated_cycles(instruction)
        if cycles is not None:
            seconds = cycles / self.machine.clock_hz
            self.timeline.compute_seconds += times * seconds
        else:
            seconds = hbm_bytes(self.program, computation, instruction) / self.machine.hbm_bytes_per_second
            self.timeline.memory_seconds += times * seconds
        self.timeline.cycles_by_scope[scope(instruction.op_name)] += times * seconds
        return seconds

    def _count(self, computation, instruction, times) -> None:
        self.timeline.matrix_flops += times * matrix_flops(self.program, computation, instruction)
        self.timeline.hbm_bytes += times * hbm_bytes(self.program, computation, instruction)


def estimated_cycles(instruction: Instruction) -> int | None:
    """The TPU compiler's estimate for an instruction of the schedule, None where it made none."""
    cycles = (instruction.backend_config.get("window_config") or {}).get("estimated_cycles")
    return None if cycles is None else int(cycles)


_PASSES = (("rematted_computation", "recomputed"), ("transpose(", "backward"), ("jvp(", "forward"))


def scope(op_name: str) -> str:
    """ "forward/mlp", "backward/qkv", ...: the pass and the innermost of our own name scopes."""
    passes = next((name for mark, name in _PASSES if mark in op_name), "other")
    names = ("qkv", "local_attention", "global_attention", "output", "mlp", "cross_entropy", "embed", "logits",
             "optimizer")  # fmt: skip
    inner = next((name for name in names if f"/{name}/" in op_name or f"({name})" in op_name), "rest")
    return f"{passes}/{inner}"


def _chain(instruction: Instruction) -> str:
    found = instruction.attribute("frontend_attributes") or ""
    return found.partition('chain_id="')[2].partition('"')[0]


def _is_done(instruction: Instruction) -> bool:
    return instruction.opcode.endswith("-done") and instruction.opcode != "copy-done"


def _add(total: Timeline, part: Timeline) -> None:
    for name in ("compute_seconds", "memory_seconds", "kernel_seconds", "copy_wait_seconds", "exposed_seconds",
                 "matrix_flops", "kernel_flops", "hbm_bytes"):  # fmt: skip
        setattr(total, name, getattr(total, name) + getattr(part, name))
    total.collectives += part.collectives
    total.unknown_loops += part.unknown_loops
    total.cycles_by_scope.update(part.cycles_by_scope)
    for key, calls in part.kernels.items():
        known = total.kernels.setdefault(key, KernelCalls(calls.name, 0.0, calls.seconds, calls.flops, calls.source))
        known.times += calls.times
