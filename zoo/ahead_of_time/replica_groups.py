"""Which devices a collective joins, and along which axes of the mesh they differ."""

import re
from collections.abc import Mapping

import numpy as np

from zoo.ahead_of_time.hlo import Instruction, Program, UnreadableProgram

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?$")
_ORDER = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
_PART = re.compile(r"'([^']*)'(?::\((\d+)\)(\d+))?")
_MESH = re.compile(r"mesh\[([^\]]*)\](?:, device_ids=\((\[.*?\](?:T\([^)]*\))?)\))? \{([^}]*)\}$")


def replica_groups(instruction: Instruction, program: Program) -> np.ndarray:
    """[groups, devices of a group]: indices of devices in the order of the program's mesh.

    Of a permute, the pairs [(from, to), ...]. Raises: UnreadableProgram for groups of unequal size or an unknown form.
    """
    pairs = instruction.attribute("source_target_pairs")
    if pairs is not None:
        return np.array(re.findall(r"\{(\d+),(\d+)\}", pairs), np.int64).reshape(-1, 2)
    return parse_groups(_groups_text(instruction), program.num_partitions)


def _groups_text(instruction: Instruction) -> str:
    """The attribute; one that names a mesh ends behind the braces that a comma may stand before."""
    head = instruction.attributes.split(", metadata={")[0]
    match = re.search(r"replica_groups=(mesh\[[^\]]*\](?:, device_ids=\(\[.*?\](?:T\([^)]*\))?\))? \{[^}]*\})", head)
    if match:
        return match[1]
    return instruction.attribute("replica_groups") or "{}"


def parse_groups(text: str, devices: int) -> np.ndarray:
    """The three notations: {{0,1},{2,3}}; [2,2]<=[4] with an optional transposition; a mesh and its axes."""
    if text == "{}":
        return np.arange(devices)[None]
    iota = _IOTA.match(text)
    if iota:
        return _iota(iota)
    mesh = _MESH.match(text)
    if mesh:
        return _of_mesh(mesh)
    groups = [[int(n) for n in group.split(",") if n] for group in re.findall(r"\{([\d,]*)\}", text[1:-1])]
    if not groups or len({len(group) for group in groups}) != 1:
        raise UnreadableProgram(f"replica groups of an unknown form: {text[:80]}")
    return np.array(groups, np.int64)


def _of_mesh(match: re.Match) -> np.ndarray:
    """Devices in the order of `device_ids`, as an array with the axes named; 'a':(2)4 is the part of axis a of size 4
    that has 2 parts outside of it."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", match[1])}
    parts = [(name, int(before or 1), int(size or 0)) for name, before, size in _PART.findall(match[3])]
    order = np.arange(np.prod(list(sizes.values())))
    if match[2]:
        shape, axes = _ORDER.fullmatch(match[2]).groups()  # type: ignore[union-attr]
        order = order.reshape([int(n) for n in shape.split(",")])
        order = order.transpose([int(n) for n in axes.split(",")]) if axes else order
    shape, joined = [], []
    for name, size in sizes.items():
        mine = [(before, part or size) for other, before, part in parts if other == name]
        at = 1
        for before, part in sorted(mine):
            if at != before:
                shape.append(before // at)
            joined.append(len(shape))
            shape.append(part)
            at = before * part
        if at != size:
            shape.append(size // at)
    others = [axis for axis in range(len(shape)) if axis not in joined]
    count = int(np.prod([shape[axis] for axis in joined]))
    return order.reshape(shape).transpose(*others, *joined).reshape(-1, count)


def _iota(match: re.Match) -> np.ndarray:
    """[2,4]<=[4,2]T(1,0): 0..7 as [4, 2], transposed, in rows of 4."""
    shape, source = ([int(n) for n in match[i].split(",")] for i in (1, 2))
    numbers = np.arange(np.prod(source)).reshape(source)
    if match[3]:
        numbers = numbers.transpose([int(n) for n in match[3].split(",")])
    return numbers.reshape(shape)


def varying_axes(groups: np.ndarray, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of the mesh along which the devices of a group (or the two ends of a permute) differ."""
    names, sizes = tuple(mesh_shape), tuple(mesh_shape.values())
    coordinates = np.stack(np.unravel_index(groups, sizes))  # [axes, groups, devices]
    differs = (coordinates != coordinates[..., :1]).any((1, 2))
    return tuple(name for name, differ in zip(names, differs, strict=True) if differ)
