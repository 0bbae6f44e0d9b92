"""The device mesh: which devices hold copies of the model, which share its parameters, its sequences, its matrices."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from zoo.errors import UserError, nearest_name


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis, from the outermost to the innermost; one of them may be -1, which takes what is left."""

    replica: int = 1
    """Copies of everything, one per slice (or group of slices): only gradients travel between them (data-centre
    network). Must be a multiple of the number of slices."""
    data: int = 1
    """Copies of the parameters within a slice; each sees its part of the batch."""
    fsdp: int = -1
    """Devices that share parameters and optimizer state (ZeRO-3); each sees its part of the batch, too."""
    context: int = 1
    """Devices that share the tokens of one sequence, and parameters and optimizer state."""
    expert: int = 1
    """Devices that share the experts of one layer; each sees its part of the batch. A dense layer takes it as fsdp."""
    tensor: int = 1
    """Devices that share heads, feed-forward and vocabulary of one layer."""


AXES = tuple(MeshConfig.__dataclass_fields__)
"""Names of the mesh axes; every mesh has all of them, most of size 1."""


def mesh_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """The size of every axis for so many devices. Raises `UserError` when they do not multiply out."""
    sizes = asdict(config)
    shown = ", ".join(f"{name}={size}" for name, size in sizes.items() if size != 1) or "of one device"
    if any(size == 0 or size < -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise UserError(f"mesh {shown}: every axis needs a positive size, at most one may be -1 (the rest)")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values():
        if devices % fixed:
            raise UserError(f"mesh {shown}: {devices} devices are not divisible by {fixed}")
        return {name: devices // fixed if size == -1 else size for name, size in sizes.items()}
    if fixed != devices:
        raise UserError(f"mesh {shown} takes {fixed} devices, there are {devices}")
    return sizes


def parse_mesh(text: str) -> MeshConfig:
    """The mesh that "data=2,tensor=4" names: other axes have one device, and -1 takes what is left.

    Raises `UserError` for names that are no axis and for what is no whole number.
    """
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in AXES:
            raise UserError(f"mesh {text}: unknown axis {name!r}; {nearest_name(name, AXES)}")
        try:
            sizes[name] = int(size)
        except ValueError:
            raise UserError(f"mesh {text}: {name} needs a whole number, such as {name}=8") from None
    return MeshConfig(**sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes of `MeshConfig` over `devices` (all of them by default).

    On TPUs, the axes are laid along the wires of the slice, the innermost ones first. Several slices lie along the
    replica axis, the only one that may cross them.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes(config, len(devices))
    shape = tuple(sizes.values())
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and sizes["replica"] % slices:
        raise UserError(
            f"mesh replica={sizes['replica']}: the devices lie in {slices} slices, of which replica must be a multiple"
        )
    if devices[0].platform != "tpu":
        array = np.array(devices).reshape(shape)
    elif slices > 1:
        within = (sizes["replica"] // slices, *shape[1:])
        between = (slices, *[1] * (len(shape) - 1))
        array = mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
    else:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))
