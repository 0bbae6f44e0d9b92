"""Names of machines: v5e:16x16, v5p:8x24x32, v4:8x16x32, tpu7x:4x4x4, h200:8."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from zoo.ahead_of_time import gpu, tpu
from zoo.errors import UserError, nearest_name

_TPU_NAMES = {target.name.lower(): target for target in tpu.TARGETS.values()}
_GPU_NAMES = {target.name.lower(): target for target in gpu.TARGETS.values()}
_EXAMPLES = "for example v5e:16x16, v5p:8x24x32, v4:8x16x32, v6e:16x16, tpu7x:4x4x4, h200:8"
_FLAT = ("v5e", "v6e")


@dataclass(frozen=True)
class Topology:
    """Chips that are described but not there."""

    name: str
    """As the user spells it."""
    target: tpu.TpuTarget | gpu.GpuTarget
    """Generation."""
    slices: int
    """Slices, which only the data-centre network joins."""
    devices: Sequence[Any]
    """JAX devices; on TPU7x two per chip."""
    devices_per_chip: int
    """2 on TPU7x, else 1."""

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return len(self.devices) // self.devices_per_chip

    @property
    def platform(self) -> str:
        """ "tpu" or "gpu"."""
        return "tpu" if isinstance(self.target, tpu.TpuTarget) else "gpu"

    @property
    def flops(self) -> float:
        """Peak of a device, FLOP/s in bfloat16."""
        return self.target.flops / self.devices_per_chip

    @property
    def hbm_bytes(self) -> float:
        """Main memory of a device."""
        return self.target.hbm_bytes / self.devices_per_chip

    @property
    def hbm_bytes_per_second(self) -> float:
        """Bandwidth of a device's main memory."""
        return self.target.hbm_bytes_per_second / self.devices_per_chip

    @property
    def clock_hz(self) -> float:
        """Clock; where it is not published, the one that gives the published peak (`TpuTarget.bundles_per_second`)."""
        target = self.target
        if isinstance(target, gpu.GpuTarget):
            return target.clock_hz
        return target.clock_hz or target.bundles_per_second


def open_topology(name: str, slices: int = 1) -> Topology:
    """The machine of that name. Raises `UserError`: an unknown name, a shape that the compiler refuses, no compiler."""
    generation, _, shape = name.partition(":")
    kind = generation.lower()
    if kind not in {**_TPU_NAMES, **_GPU_NAMES}:
        raise UserError(f"unknown topology {name!r}: {nearest_name(kind, [*_TPU_NAMES, *_GPU_NAMES])}; {_EXAMPLES}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise UserError(f"topology {name!r} has no shape of the form NxM or NxMxL; {_EXAMPLES}")
    if slices < 1:
        raise UserError(f"--slices must be at least 1, got {slices}")
    if kind in _GPU_NAMES:
        return _gpus(name, _GPU_NAMES[kind], shape, slices)
    target = _TPU_NAMES[kind]
    dimensions = shape.split("x")
    if len(dimensions) != (2 if kind in _FLAT else 3):
        right = "two dimensions, such as 16x16" if kind in _FLAT else "three dimensions, such as 4x4x8"
        raise UserError(f"topology {name!r}: {target.name} slices have {right}")
    try:
        devices = tpu.tpu_devices(target, f"{kind}:{shape}", slices=slices)
    except tpu.LibtpuMissing as error:
        raise UserError(str(error)) from None
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"topology {name!r}: {str(error).splitlines()[0]}; {_EXAMPLES}") from None
    chips = math.prod(map(int, dimensions)) * slices
    return Topology(name, target, slices, devices, len(devices) // chips)


def cache_folder() -> Path:
    """Where compiled programs and readings of kernels are kept: $XDG_CACHE_HOME or ~/.cache, a folder per compiler."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    try:
        compiler = version("libtpu")
    except PackageNotFoundError:
        compiler = "none"
    return Path(base) / "jax-flax-zoo" / f"libtpu-{compiler}"


def _gpus(name: str, target: gpu.GpuTarget, shape: str, slices: int) -> Topology:
    if slices > 1:
        raise UserError(
            f"--slices is for TPUs; topology {name!r} takes hosts x GPUs, such as {target.name.lower()}:2x8"
        )
    sizes = [int(n) for n in shape.split("x")]
    if len(sizes) > 2:
        raise UserError(f"topology {name!r}: GPUs are hosts x GPUs per host, such as {target.name.lower()}:2x8")
    hosts, per_host = sizes if len(sizes) == 2 else (1, sizes[0])
    try:
        devices = gpu.gpu_devices(target, hosts, per_host)
    except gpu.CudaWheelsMissing as error:
        raise UserError(str(error)) from None
    return Topology(name, target, hosts, devices, 1)
