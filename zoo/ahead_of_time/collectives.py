"""The collectives of a compiled program: how many, along which axes of the mesh, how long, and what hides them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from zoo.ahead_of_time.costs import collective_kind
from zoo.ahead_of_time.hlo import Computation, Instruction, Program
from zoo.ahead_of_time.interconnect import Network
from zoo.ahead_of_time.replica_groups import replica_groups, varying_axes


@dataclass
class Collective:
    """One collective instruction; several executions of it in a loop are one entry. Bytes and seconds are of one."""

    kind: str
    """all-gather, reduce-scatter, ..."""
    axes: tuple[str, ...]
    """Mesh axes along which the joined devices differ."""
    dtype: str
    """Of the first array."""
    devices: int
    """Devices that one group joins."""
    bytes: float
    """The larger of what a device gives and gets."""
    wire_bytes: float
    """What a device sends by the ideal algorithm."""
    seconds: float
    """At the rate of the links, alone."""
    dimensions: tuple[str, ...]
    """Links that it occupies: x, y, z, DCN."""
    op_name: str
    """Where in the program it comes from."""
    form: str = "synchronous"
    """synchronous; asynchronous = a start and a done with instructions between; fused = advanced by compute fusions."""
    times: float = 0.0
    """Executions in one step."""
    exposed: float = 0.0
    """Seconds of all executions together during which nothing else is computed."""


class CollectiveReader:
    """Describes collectives of one program on one mesh; groups that occur often are looked at once."""

    def __init__(self, program: Program, mesh_shape: Mapping[str, int], network: Network | None):
        """Without a network all times are 0."""
        self._program, self._mesh, self._network = program, mesh_shape, network
        self._groups: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {}

    def read(self, computation: Computation, instruction: Instruction) -> Collective:
        """The description of a collective or of its start, not yet counted.

        libtpu writes a reduce-scatter as one fusion of an all-reduce and the slice of it that a device keeps
        ("all-reduce-scatter"); it counts as what it is.
        """
        kind = collective_kind(instruction)
        assert kind is not None
        groups, axes = self._look_up(instruction)
        if kind == "all-reduce" and _keeps_a_slice(computation, instruction, groups.shape[1]):
            kind = "reduce-scatter"
        given = [shape for shapes in computation.operand_shapes(instruction) for shape in shapes]
        if kind == "ragged-all-to-all":
            # Rows, the buffer that they go to, offsets and sizes. How full is the larger of the first two, only the run
            # knows; the smaller one is full where the load is balanced.
            given = [min(given[:2], key=lambda shape: shape.bytes)]
        in_bytes = sum(shape.bytes for shape in given)
        devices = groups.shape[1]
        out_bytes = {"all-gather": in_bytes * devices, "reduce-scatter": in_bytes / devices}.get(kind, in_bytes)
        share = (devices - 1) / devices
        wire = {
            "all-gather": out_bytes * share,
            "reduce-scatter": in_bytes * share,
            "all-reduce": 2 * in_bytes * share,
            "all-to-all": in_bytes * share,
            "ragged-all-to-all": in_bytes * share,
        }.get(kind, in_bytes)
        network = self._network
        return Collective(
            kind=kind,
            axes=axes,
            dtype=given[0].dtype if given else "",
            devices=devices,
            bytes=max(in_bytes, out_bytes),
            wire_bytes=wire,
            seconds=network.seconds(kind, groups, in_bytes, out_bytes) if network else 0.0,
            dimensions=network.dimensions(groups) if network else (),
            op_name=instruction.op_name,
        )

    def read_exchange(self, computation: Computation, send: Instruction) -> Collective | None:
        """An exchange between slices, which a program hands to its host: a send whose result a recv takes; else None.

        Every chip gives its part, which its counterparts in the other slices reduce or gather.
        """
        kind = _attribute(send, "_xla_megascale_transfer_type").lower().replace("_", "-")
        if not kind or self._network is None:
            return None
        (given, *_), slices = computation.operand_shapes(send), self._network.slices
        size, count = sum(shape.bytes for shape in given), len(np.unique(slices))
        wire = {"all-reduce": 2 * size * (count - 1) / count, "all-gather": size * (count - 1)}.get(kind, size)
        coordinates = slices.reshape(tuple(self._mesh.values()))
        axes = tuple(name for dim, name in enumerate(self._mesh) if (np.diff(coordinates, axis=dim) != 0).any())
        seconds = wire / self._network.links.slow
        return Collective(kind, axes, given[0].dtype, count, size, wire, seconds, ("DCN",), send.op_name)

    def _look_up(self, instruction: Instruction) -> tuple[np.ndarray, tuple[str, ...]]:
        head = instruction.attributes.split(", metadata={")[0]
        found = re.search(r"(replica_groups|source_target_pairs)=.*?(?=, [a-z_]+=|$)", head)
        key = found[0] if found else ""
        if key not in self._groups:
            groups = replica_groups(instruction, self._program)
            self._groups[key] = groups, varying_axes(groups, self._mesh)
        return self._groups[key]


def rendezvous(instruction: Instruction) -> str:
    """What joins a send to the recv of its result."""
    return _attribute(instruction, "_xla_host_transfer_rendezvous")


def _attribute(instruction: Instruction, name: str) -> str:
    found = re.search(rf'{name}="([^"]*)"', instruction.attributes.split(", metadata={")[0])
    return found[1] if found else ""


def _keeps_a_slice(computation: Computation, reduce: Instruction, devices: int) -> bool:
    """Whether all that is used of an all-reduce in a fusion is one device's share."""
    users = [other for other in computation.instructions if reduce.name in other.operands]
    return (
        len(users) == 1
        and users[0].opcode == "dynamic-slice"
        and users[0].is_root
        and users[0].shapes[0].elements * devices == reduce.shapes[0].elements
    )


@dataclass
class CollectiveGroup:
    """Collectives of one kind, along the same axes, of the same type; sums over one step."""

    kind: str
    axes: tuple[str, ...]
    dtype: str
    devices: int
    dimensions: tuple[str, ...]
    times: float = 0.0
    """How often."""
    bytes: float = 0.0
    """Larger of given and got, per device."""
    wire_bytes: float = 0.0
    """Sent per device by the ideal algorithm."""
    seconds: float = 0.0
    """At the rate of the links."""
    exposed: float = 0.0
    """Of these, seconds that nothing hides."""
    forms: dict[str, float] = field(default_factory=dict)
    """Executions by form: synchronous, asynchronous, fused."""


def group_collectives(collectives: list[Collective]) -> list[CollectiveGroup]:
    """Grouped by kind, axes and type; the longest first."""
    groups: dict[tuple, CollectiveGroup] = {}
    for one in collectives:
        key = one.kind, one.axes, one.dtype
        group = groups.setdefault(key, CollectiveGroup(one.kind, one.axes, one.dtype, one.devices, one.dimensions))
        group.times += one.times
        group.bytes += one.times * one.bytes
        group.wire_bytes += one.times * one.wire_bytes
        group.seconds += one.times * one.seconds
        group.exposed += one.exposed
        group.forms[one.form] = group.forms.get(one.form, 0.0) + one.times
    return sorted(groups.values(), key=lambda group: (-group.seconds, -group.bytes))
