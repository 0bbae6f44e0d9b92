"""From a compiled program to figures: FLOPs, bytes, collectives, two estimates of its time."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from zoo.ahead_of_time.collectives import group_collectives
from zoo.ahead_of_time.hlo import Program, parse_program
from zoo.ahead_of_time.interconnect import Network, links_of
from zoo.ahead_of_time.schedule import Machine, Timeline, follow
from zoo.planning.kernels import kernel_seconds
from zoo.planning.program import CompiledProgram
from zoo.planning.topology import Topology
from zoo.recipes import Recipe
from zoo.training.mfu import TRAINING_TO_FORWARD


@dataclass(frozen=True)
class Estimate:
    """One estimate of a step."""

    seconds: float
    """Of one step."""
    tokens_per_second: float
    """Of all chips."""
    tokens_per_second_per_chip: float
    """Of one chip."""
    mfu: float
    """Useful FLOPs per second over the peak, a fraction of 1."""
    parts: dict[str, float]
    """Seconds by what they are spent on."""


@dataclass(frozen=True)
class Plan:
    """A recipe on a machine. Bytes, FLOPs and seconds are those of one device (on TPU7x half a chip) and one step."""

    recipe: str
    program: str
    topology: str
    slices: int
    chips: int
    devices: int
    mesh: dict[str, int]
    """Axes of more than one device."""
    batch_size: int
    sequence_length: int
    accumulation_steps: int
    remat_policy: str
    tokens: int
    """Of all devices in one step."""
    num_parameters: int
    memory: dict[str, float]
    """Bytes by kind."""
    memory_total: float
    memory_capacity: float
    fits: bool
    useful_flops: float
    """That the model's definition asks for: the products of forward and backward pass, attention by visible pairs."""
    executed_flops: float
    """Matrix products of the compiled program, and what its kernels declare."""
    hbm_bytes: float
    collectives: list[dict[str, Any]]
    kernels: list[dict[str, Any]]
    roofline: Estimate
    schedule: Estimate | None
    """None where the compiler notes no cycles (GPU)."""
    seconds_by_scope: dict[str, float]
    """The schedule's computations by pass and layer part."""
    compile_seconds: dict[str, float]
    host_bytes: int
    versions: dict[str, str]
    options: dict[str, Any]
    assumptions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def make_plan(
    recipe: Recipe, topology: Topology, compiled: CompiledProgram, program: str = "train", *, read_kernels: bool = True
) -> Plan:
    """All figures of a compiled program. read_kernels: whether its kernels are compiled once more to be timed."""
    parsed = parse_program(compiled.text)
    times = kernel_seconds(topology, parsed, read_schedules=read_kernels)
    network = Network(list(compiled.mesh.devices.flat), links_of(topology.target))
    machine = Machine(topology.clock_hz, topology.hbm_bytes_per_second)
    line = follow(parsed, compiled.mesh.shape, machine, network, times, _loop_passes(program))
    devices = compiled.mesh.size
    tokens, useful = work(recipe, program, devices)
    executed = line.matrix_flops + line.kernel_flops
    groups = group_collectives(line.collectives)
    total = sum(compiled.memory.values())

    def estimate(seconds: float, parts: Mapping[str, float]) -> Estimate:
        per_second = tokens / seconds
        mfu = useful / seconds / topology.flops
        return Estimate(seconds, per_second, per_second / topology.chips, mfu, dict(parts))

    bounds = {
        "FLOPs at the peak": executed / topology.flops,
        "main memory": line.hbm_bytes / topology.hbm_bytes_per_second,
        "links": sum(group.seconds for group in groups if "DCN" not in group.dimensions),
        "network between slices": sum(group.seconds for group in groups if "DCN" in group.dimensions),
    }
    return Plan(
        recipe=recipe.name,
        program=program,
        topology=topology.name,
        slices=topology.slices,
        chips=topology.chips,
        devices=devices,
        mesh={name: size for name, size in compiled.mesh.shape.items() if size > 1},
        batch_size=recipe.data.batch_size,
        sequence_length=recipe.data.sequence_length,
        accumulation_steps=recipe.optimizer.accumulation_steps,
        remat_policy=recipe.execution.remat_policy if program == "train" else "none",
        tokens=tokens,
        num_parameters=recipe.model.num_parameters(),
        memory=compiled.memory,
        memory_total=total,
        memory_capacity=topology.hbm_bytes,
        fits=total <= topology.hbm_bytes,
        useful_flops=useful,
        executed_flops=executed,
        hbm_bytes=line.hbm_bytes,
        collectives=[asdict(group) for group in groups],
        kernels=[asdict(calls) for calls in line.kernels.values()],
        roofline=estimate(max(bounds.values()), bounds),
        schedule=estimate(line.seconds, _parts(line)) if topology.platform == "tpu" else None,
        seconds_by_scope=dict(line.cycles_by_scope.most_common()),
        compile_seconds=compiled.seconds,
        host_bytes=compiled.host_bytes,
        versions=versions(topology),
        options=compiled.options,
        assumptions=_assumptions(topology, recipe),
        notes=_notes(parsed, line, program),
    )


def _loop_passes(program: str) -> int:
    """Of loops that only the run can tell: the decode program takes up to so many steps in a call."""
    if program != "decode":
        return 1
    from zoo.planning.generation import BLOCK

    return BLOCK


def work(recipe: Recipe, program: str, devices: int) -> tuple[int, float]:
    """(tokens of a step on all devices, useful FLOPs of a step on one device)."""
    batch, length = recipe.data.batch_size, recipe.data.sequence_length
    forward = recipe.sequence_model.flops_per_token(length)
    if program == "train":
        return batch * length, TRAINING_TO_FORWARD * forward * batch * length / devices
    from zoo.planning.generation import generation_work

    return generation_work(recipe, program, devices)


def _notes(parsed: Program, line: Timeline, program: str) -> list[str]:
    notes = [
        f"a loop of unknown length is counted as {_loop_passes(program)} passes: {name}"
        for name in sorted(set(line.unknown_loops))
    ]
    silent = {
        executed.instruction.name
        for executed in parsed.walk()
        if executed.instruction.opcode == "custom-call"
        and any(word in (executed.instruction.attribute("custom_call_target") or "") for word in _GPU_KERNELS)
    }
    if silent:
        notes.append(f"{len(silent)} GPU kernels declare no cost: they count neither as FLOPs nor as time")
    return notes


_GPU_KERNELS = ("triton", "mosaic")


def _parts(line: Timeline) -> dict[str, float]:
    return {
        "XLA's computations": line.compute_seconds,
        "instructions without an estimate": line.memory_seconds,
        "kernels": line.kernel_seconds,
        "waiting for copies": line.copy_wait_seconds,
        "exposed collectives": line.exposed_seconds,
    }


def versions(topology: Topology) -> dict[str, str]:
    """Of the compiler and what feeds it."""
    names = ["jax", "jaxlib", "libtpu"] if topology.platform == "tpu" else ["jax", "jaxlib", "jax-cuda13-plugin"]
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _assumptions(topology: Topology, recipe: Recipe) -> list[str]:
    links = links_of(topology.target)
    clock = f"{topology.clock_hz / 1e9:.2f} GHz"
    published = getattr(topology.target, "clock_hz", None)
    lines = [
        f"peak {topology.flops / 1e12:.0f} TFLOP/s, memory {topology.hbm_bytes_per_second / 1e9:.0f} GB/s per device; "
        f"clock {clock}" + ("" if published else " (not published: the one that gives the published peak)"),
        f"links {links.link / 1e9:.0f} GB/s one way each, {links.hop_seconds * 1e6:.0f} us a hop, every link of the "
        f"axes busy; network between slices or hosts {links.slow / 1e9:.1f} GB/s per chip",
        "roofline: the longest of executed FLOPs at the peak, bytes of main memory, collectives; nothing adds up",
        "useful FLOPs: every document fills its sequence; packed documents need fewer",
    ]
    if recipe.peft.trains_adapter:
        lines.append("useful FLOPs: of training the whole model; the weights that stay need no gradients of their own")
    if topology.platform == "tpu":
        lines.append(
            "schedule: one device's instructions in order, the compiler's cycles; no stragglers, no input wait"
        )
    else:
        lines.append(
            "no schedule estimate: XLA's GPU compiler notes no cycles; what hides a collective is reckoned by the "
            "bytes of the instructions beside it, which is too little"
        )
    return lines
