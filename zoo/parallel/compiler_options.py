"""Options for XLA's compiler, the same for running a program and for planning it.

They go to `jax.jit(..., compiler_options=...)` or `lowered.compile(compiler_options=...)`; the environment variables
XLA_FLAGS and LIBTPU_INIT_ARGS are not needed.
"""

from collections.abc import Mapping

TPU: Mapping[str, bool] = {
    # Parameters are gathered while the matrix products before them run, piece by piece inside of these.
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_fuse_kloop_fusions": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    # Gradients are added between data-parallel devices while the rest of the backward pass runs.
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
}
"""Overlap of collectives and computation, which is off without them. The set that MaxText's published runs use, and
loop fusions as carriers of collectives, which hides three quarters of the gathers of tokens in the 27B's plan."""

DEFAULT_VMEM_KIB = str(16 * 1024)
"""Vector memory that the compiler gives a fusion by itself."""

VMEM_KIB: Mapping[str, int] = {
    "TPU v5": 48 * 1024,
    "TPU v5p": 48 * 1024,
    "TPU v5 lite": 96 * 1024,
    "TPU v5e": 96 * 1024,
    "TPU v6 lite": 96 * 1024,
    "TPU v6e": 96 * 1024,
    "TPU7x": 48 * 1024,
}
"""Vector memory that a fusion may use, by `device_kind`: three quarters of what the core has. With the default, tiles
of matrix products are small: the 27B's computations take 0.62 s with it and 0.56 s with 48 MiB. v4 has no more."""


def compiler_options(platform: str, device_kind: str = "") -> dict[str, bool | str]:
    """Options for the programs of a platform ("tpu", "gpu", "cuda", "cpu"), {} where the defaults are right."""
    if platform != "tpu":
        return {}
    options: dict[str, bool | str] = dict(TPU)
    if device_kind in VMEM_KIB:
        options["xla_tpu_scoped_vmem_limit_kib"] = str(VMEM_KIB[device_kind])
    return options
