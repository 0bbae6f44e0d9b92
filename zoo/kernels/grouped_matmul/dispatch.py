"""The grouped matrix product: hands its arguments to one named implementation, those of its gradients too."""

import functools
import importlib
import logging

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.kernels.platform import target_platform

IMPLEMENTATIONS = {"reference": "reference", "xla": "cpu", "xla_ragged": "tpu"}
"""Names of implementations, and the module that holds each of them."""


def grouped_matmul(
    lhs: Float[Array, "m k"],
    rhs: Float[Array, "g k n"],
    group_sizes: Int[Array, " g"],
    *,
    implementation: str | None = None,
) -> Float[Array, "m n"]:
    """out[m] = lhs[m] rhs[g], where group g holds the rows after those of the groups before it, group_sizes[g] of them.

    Rows beyond sum(group_sizes) come out as zero and give no gradient. Products are in the dtype of `lhs`, sums in
    float32. Differentiable in `lhs` and `rhs`.

    Args:
      group_sizes: int32, known when the program runs; their sum is at most M.
      implementation: None = the best one on the back end.

    Raises:
      ValueError: an unknown implementation, or shapes that do not fit.
      NotImplementedError: a back end without an implementation.
    """
    if lhs.ndim != 2 or rhs.ndim != 3 or lhs.shape[1] != rhs.shape[1] or group_sizes.shape != rhs.shape[:1]:
        raise ValueError(f"grouped_matmul: got {lhs.shape}, {rhs.shape} and {group_sizes.shape}; want MK, GKN and G")
    return _grouped_matmul(lhs, rhs, group_sizes, implementation or best_implementation(target_platform()))


def best_implementation(platform: str) -> str:
    """The implementation that a call without a name gets on "cpu", "gpu" or "tpu"."""
    if platform not in ("cpu", "tpu"):
        raise NotImplementedError(f"grouped_matmul has no implementation for {platform} yet")
    return {"cpu": "xla", "tpu": "xla_ragged"}[platform]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _grouped_matmul(lhs, rhs, group_sizes, implementation: str):
    return _load(implementation)[0](lhs, rhs.astype(lhs.dtype), group_sizes)


def _forward(lhs, rhs, group_sizes, implementation: str):
    return _grouped_matmul(lhs, rhs, group_sizes, implementation), (lhs, rhs, group_sizes)


def _backward(implementation: str, saved, d_out):
    lhs, rhs, group_sizes = saved
    product, outer = _load(implementation)
    d_lhs = product(d_out, rhs.astype(lhs.dtype), group_sizes, transposed=True)
    d_rhs = outer(lhs, d_out, group_sizes).astype(rhs.dtype)
    return d_lhs, d_rhs, np.zeros(group_sizes.shape, jax.dtypes.float0)


_grouped_matmul.defvjp(_forward, _backward)


@functools.cache
def _load(name: str):
    # Cached, so that the choice is logged once per process.
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"unknown grouped matmul implementation {name!r}; known: {', '.join(IMPLEMENTATIONS)}")
    logging.getLogger(__name__).info("grouped matmul implementation: %s", name)
    file = IMPLEMENTATIONS[name]
    module = importlib.import_module(f"zoo.kernels.grouped_matmul.{file}")
    return getattr(module, f"{file}_product"), getattr(module, f"{file}_outer")
