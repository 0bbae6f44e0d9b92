"""The device mesh: which devices hold copies of the model, which share its parameters, which share its matrices."""

from dataclasses import dataclass

import jax
from jax.sharding import AxisType, Mesh

from zoo.errors import UserError


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one of them may be -1, which takes what the others leave."""

    data: int = 1
    """Replicas of the parameters; each sees its part of the batch."""
    fsdp: int = -1
    """Devices that share parameters and optimizer state (ZeRO-3); each sees its part of the batch, too."""
    tensor: int = 1
    """Devices that share heads, feed-forward and vocabulary of one layer."""


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes (data, fsdp, tensor) over `devices` (all of them by default)."""
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
    if any(size == 0 or size < -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise UserError(f"mesh {shown}: every axis needs a positive size, at most one may be -1 (the rest)")
    fixed = 1
    for size in sizes.values():
        fixed *= max(size, 1)
    if -1 in sizes.values():
        if len(devices) % fixed:
            raise UserError(f"mesh {shown}: {len(devices)} devices are not divisible by {fixed}")
        sizes = {name: len(devices) // fixed if size == -1 else size for name, size in sizes.items()}
    elif fixed != len(devices):
        raise UserError(f"mesh {shown} takes {fixed} devices, there are {len(devices)}")
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3, devices=devices)
