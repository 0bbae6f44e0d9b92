"""Programs compiled for TPUs on a machine that has none: libtpu's compiler needs only a description of the chips."""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclass(frozen=True)
class TpuTarget:
    """A TPU generation. Rates and capacities are those of a chip, in FLOP/s, bytes/s and bytes."""

    name: str
    """The name that users know: v4, v5e, v5p, v6e, TPU7x."""
    topology: str
    """Smallest topology that libtpu describes, one host of four chips; larger ones: `tpu_mesh`."""
    cores: int
    """TensorCores of a chip."""
    megacore: bool
    """Whether both cores of a chip are one JAX device, which halves the parallel dimension of a kernel's grid."""
    flops: float
    """Peak of bfloat16 matrix products."""
    hbm_bytes_per_second: float
    """Bandwidth of the main memory."""
    hbm_bytes: float
    """Main memory."""
    vmem_bytes: int
    """Vector memory of one core."""
    flops_per_bundle: int
    """Most FLOPs that the matrix units of one core do per instruction bundle (one cycle)."""
    clock_hz: float | None
    """Clock where it is published, otherwise None."""

    @property
    def bundles_per_second(self) -> float:
        """The rate at which one core would reach its share of the peak; the clock, where that is published."""
        return self.flops / (self.cores * self.flops_per_bundle)


MIB = 2**20
GIB = 2**30
_UNITS_128 = 4 * 2 * 128 * 128
# Units of 256 x 256 that take two rows a cycle: libtpu's bundle profile reckons 4 cycles for a product of 8 rows.
_UNITS_256 = 2 * 2 * 2 * 256 * 256

V4 = TpuTarget("v4", "v4:2x2x1", 2, True, 275e12, 1228e9, 32 * GIB, 16 * MIB, _UNITS_128, 1.05e9)
"""Rates, memory: cloud.google.com/tpu/docs/v4; clock: Jouppi et al. 2023, arXiv:2304.01433, table 4."""

V5E = TpuTarget("v5e", "v5e:2x2x1", 1, False, 197e12, 819e9, 16 * GIB, 128 * MIB, _UNITS_128, 1.5e9)
"""cloud.google.com/tpu/docs/v5e; clock: "How to Scale Your Model" (jax-ml.github.io/scaling-book), chapter TPUs."""

V5P = TpuTarget("v5p", "v5p:2x2x1", 2, True, 459e12, 2765e9, 95 * GIB, 64 * MIB, _UNITS_128, 1.75e9)
"""cloud.google.com/tpu/docs/v5p; clock as for v5e."""

V6E = TpuTarget("v6e", "v6e:2x2x1", 1, False, 918e12, 1640e9, 32 * GIB, 128 * MIB, _UNITS_256, None)
"""cloud.google.com/tpu/docs/v6e."""

TPU7X = TpuTarget("TPU7x", "tpu7x:2x2x1", 2, False, 2307e12, 7380e9, 192 * GIB, 64 * MIB, _UNITS_256, None)
"""cloud.google.com/tpu/docs/tpu7x; a chip is two JAX devices, each with half of its memory and rates."""
# Vector memories: `TpuInfo` of jax.experimental.pallas.tpu, which is public in every version of jax that we support.

TARGETS = {target.name: target for target in (V4, V5E, V5P, V6E, TPU7X)}


class LibtpuMissing(RuntimeError):
    """libtpu, which holds the compiler, is not installed."""


def has_libtpu() -> bool:
    """Whether the compiler is installed."""
    return find_spec("libtpu") is not None


def require_libtpu() -> None:
    """Raises LibtpuMissing, which names what to install."""
    if not has_libtpu():
        raise LibtpuMissing(
            "compiling for TPUs needs libtpu, which is not installed: `pip install libtpu` (or the extra `tpu`)"
        )


def libtpu_environment() -> dict[str, str]:
    """Variables that libtpu reads once, when it is loaded, on a machine without a TPU.

    They stop it from asking a cloud's metadata server what machine this is, and from locking other processes out.
    """
    return {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    }


def tpu_devices(target: TpuTarget, topology: str | None = None, *, slices: int = 1) -> Sequence[jax.Device]:
    """Descriptions of the devices of a slice, `topology` such as "v5p:8x8x8"; compilers take them, programs cannot run.

    slices: that many slices of this topology, joined by the data-centre network; a device's `slice_index` says which.

    Raises: LibtpuMissing. libtpu is loaded by the first call; a process that has no TPU gets the variables it needs.
    """
    require_libtpu()
    if jax.default_backend() != "tpu":
        for name, value in libtpu_environment().items():
            os.environ.setdefault(name, value)
    options: dict[str, Any] = {"chip_config_name": "megacore"} if target is V4 else {}
    if slices > 1:
        options["num_slices"] = slices
    description = topologies.get_topology_desc(platform="tpu", topology_name=topology or target.topology, **options)
    return description.devices


def tpu_mesh(
    target: TpuTarget,
    shape: Sequence[int] = (1,),
    axes: Sequence[str] = ("device",),
    *,
    topology: str | None = None,
) -> Mesh:
    """A mesh of the first devices of a slice; with the default values, of one device."""
    count = int(np.prod(shape))
    devices = tpu_devices(target, topology)
    if count > len(devices):
        raise ValueError(
            f"a mesh of {count} devices needs more than the {len(devices)} of {topology or target.topology}"
        )
    return Mesh(np.array(devices[:count]).reshape(tuple(shape)), tuple(axes))


def compile_for_tpu(
    function: Callable, *arguments, target: TpuTarget, mesh: Mesh | None = None, **jit_options
) -> jax.stages.Compiled:
    """`jax.jit(function, **jit_options)` compiled for a chip that is not there; arguments as for `lower`.

    arguments: pytrees of jax.ShapeDtypeStruct. One without a sharding is replicated over `mesh`, which is one device
    by default; give shardings of a `tpu_mesh` to compile a program of many chips.

    The result has `memory_analysis()`, `cost_analysis()` and `as_text()`. Raises: LibtpuMissing.
    """
    mesh = mesh or tpu_mesh(target)
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(x):
        return x if x.sharding is not None else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated)

    # The kernels ask the mesh of the context which chip they are built for.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        traced = jax.jit(function, **jit_options).trace(*jax.tree.map(place, arguments))
        lowered = traced.lower(lowering_platforms=("tpu",))
    with nothing_cached():
        return lowered.compile()


@contextlib.contextmanager
def nothing_cached():
    """A program for a chip that is not there cannot be read back from jax's cache: the attempt only warns."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, float("inf"))
    try:
        yield
    finally:
        jax.config.update(name, before)
