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
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    # Gradients are added between data-parallel devices while the rest of the backward pass runs.
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
}
"""Overlap of collectives and computation, which is off without them. The set that MaxText's published runs use."""

_BY_PLATFORM: Mapping[str, Mapping[str, bool]] = {"tpu": TPU}


def compiler_options(platform: str) -> dict[str, bool]:
    """Options for the programs of a platform ("tpu", "gpu", "cuda", "cpu"), {} where the defaults are right."""
    return dict(_BY_PLATFORM.get(platform, {}))
