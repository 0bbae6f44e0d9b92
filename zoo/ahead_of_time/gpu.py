"""Programs compiled for NVIDIA GPUs on a machine that has none.

Lowering needs no CUDA packages and finds what Triton refuses: shapes that are no power of two, products too small.
Compiling needs the wheels of the extra `cuda` (3.4 GB) and runs XLA's GPU compiler to the machine code: it finds tiles
that exceed the shared memory, and the program's temporary memory. Registers and spills: `gpu_registers`.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec


@dataclass(frozen=True)
class GpuTarget:
    """A GPU as XLA's compiler sees it. Memory in bytes, rates in bytes/s, FLOP/s and Hz."""

    name: str
    """The name that users know: A100, H100, H200, B200."""
    device_kind: str
    """What jax.Device.device_kind says of it."""
    compute_capability: tuple[int, int]
    """(8, 0) is PTX target sm_80."""
    multiprocessors: int
    """Streaming multiprocessors."""
    fpus_per_multiprocessor: int
    """float32 lanes of a multiprocessor."""
    shared_memory_per_block: int
    """Most shared memory that one block of threads can ask for."""
    shared_memory_per_multiprocessor: int
    """Shared memory of all blocks that run at once."""
    l2_bytes: int
    """Level-2 cache."""
    hbm_bytes: int
    """Main memory."""
    hbm_bytes_per_second: float
    """Bandwidth of the main memory."""
    clock_hz: float
    """Boost clock."""
    flops: float
    """Peak of dense bfloat16 matrix products."""

    @property
    def ptx_target(self) -> str:
        """The architecture for ptxas; from Hopper on with the features that only it has, as XLA compiles it."""
        major, minor = self.compute_capability
        return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


KIB = 2**10
A100 = GpuTarget(
    "A100",
    "NVIDIA A100-SXM4-80GB",
    (8, 0),
    108,
    64,
    163 * KIB,
    164 * KIB,
    40 * 2**20,
    85_100_068_864,
    2039e9,
    1.41e9,
    312e12,
)
"""A100 80 GB SXM. NVIDIA A100 datasheet; shared memory: CUDA C++ programming guide, table of compute capabilities."""

H100 = GpuTarget(
    "H100",
    "NVIDIA H100 80GB HBM3",
    (9, 0),
    132,
    128,
    227 * KIB,
    228 * KIB,
    50 * 2**20,
    84_942_979_072,
    3352e9,
    1.98e9,
    989e12,
)
"""H100 SXM. NVIDIA H100 datasheet; shared memory as for the A100."""

H200 = GpuTarget(
    "H200", "NVIDIA H200", (9, 0), 132, 128, 227 * KIB, 228 * KIB, 50 * 2**20, 151_397_597_184, 4800e9, 1.98e9, 989e12
)
"""H200 SXM: an H100 with more and faster memory. NVIDIA H200 datasheet."""

B200 = GpuTarget(
    "B200",
    "NVIDIA B200",
    (10, 0),
    148,
    128,
    227 * KIB,
    228 * KIB,
    132_644_864,
    191_514_411_008,
    7672e9,
    1.965e9,
    2250e12,
)
"""B200. NVIDIA Blackwell datasheet; capacities as the driver reports them (OpenXLA's description of the B200)."""

TARGETS = {target.name: target for target in (A100, H100, H200, B200)}


class CudaWheelsMissing(RuntimeError):
    """The CUDA wheels, which hold the compiler, are not installed."""


def has_cuda_wheels() -> bool:
    """Whether jax's CUDA plugin and ptxas are installed; a GPU is not needed."""
    return any(find_spec(f"jax_cuda{version}_plugin") is not None for version in (12, 13))


def require_cuda_wheels() -> None:
    """Raises CudaWheelsMissing, which names what to install."""
    if not has_cuda_wheels():
        raise CudaWheelsMissing(
            "compiling for GPUs needs the CUDA wheels, which are not installed: `pip install jax-flax-zoo[cuda]`"
        )


def lower_for_gpu(function: Callable, *arguments, target: GpuTarget) -> jax.stages.Lowered:
    """jax.jit(function) lowered for the target; arguments: a pytree of arrays or jax.ShapeDtypeStruct."""
    device = AbstractDevice(device_kind=target.device_kind, num_cores=target.multiprocessors, platform="gpu")
    mesh = AbstractMesh((1,), ("device",), axis_types=(AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))


def compile_for_gpu(
    function: Callable, *arguments, target: GpuTarget, compiler_options: dict | None = None
) -> jax.stages.Compiled:
    """jax.jit(function) compiled for one such GPU; `memory_analysis()` of the result says its temporary memory.

    XLA's autotuner, which would need the device, is off.

    Raises:
      CudaWheelsMissing: without the wheels.
      jax.errors.JaxRuntimeError: a kernel asks for more shared memory than the target has.
    """
    sharding = NamedSharding(gpu_mesh(target), PartitionSpec())

    def place(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    lowered = lower_for_gpu(function, *jax.tree.map(place, arguments), target=target)
    options: dict[str, str | bool | int] = {"xla_gpu_autotune_level": 0, **(compiler_options or {})}
    with without_compilation_cache():
        return lowered.compile(compiler_options=options)  # type: ignore[arg-type]  # XLA takes integers too.


@contextmanager
def without_compilation_cache():
    """JAX writes programs for described devices to its persistent cache, and cannot read them back: it warns."""
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        reset_cache()
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        reset_cache()


def gpu_mesh(target: GpuTarget) -> Mesh:
    """A mesh of one described device: programs compile for it and cannot run. Raises CudaWheelsMissing."""
    return Mesh(np.array(gpu_devices(target)), ("device",))


def gpu_devices(target: GpuTarget, hosts: int = 1, per_host: int = 1) -> Sequence[jax.Device]:
    """Descriptions of GPUs, those of a host joined by NVLink. Raises CudaWheelsMissing."""
    require_cuda_wheels()
    shape = f"1x{hosts}x{per_host}"
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name=shape, topology=shape, target_config=_target_config(target)
    )
    return topology.devices


def _target_config(target: GpuTarget) -> str:
    """The description that XLA's compiler takes in place of a device (GpuTargetConfigProto, as text)."""
    major, minor = target.compute_capability
    features = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * KIB}
  shared_memory_per_core: {target.shared_memory_per_multiprocessor}
  shared_memory_per_block_optin: {target.shared_memory_per_block}
  threads_per_core_limit: 2048
  core_count: {target.multiprocessors}
  fpus_per_core: {target.fpus_per_multiprocessor}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  memory_bandwidth: {int(target.hbm_bytes_per_second)}
  l2_cache_size: {target.l2_bytes}
  clock_rate_ghz: {target.clock_hz / 1e9}
  device_memory_size: {target.hbm_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}
  registers_per_core_limit: {2**16}
  registers_per_block_limit: {2**16}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 13 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{target.device_kind}"
"""
