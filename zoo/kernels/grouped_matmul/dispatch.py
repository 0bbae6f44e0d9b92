"""The grouped matrix product: hands its arguments to one named implementation, those of its gradients too."""

import functools
import importlib
import logging
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.kernels.platform import target_platform

IMPLEMENTATIONS = {"reference": "reference", "xla": "cpu", "pallas_tpu": "tpu", "pallas_gpu": "gpu"}
"""Names of implementations, and the module that holds each of them."""

_BEST = {"cpu": "xla", "tpu": "pallas_tpu", "gpu": "pallas_gpu"}


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
      implementation: "reference" (dense, the specification), "xla" (loops over blocks of rows, for CPU), "pallas_tpu",
        "pallas_gpu" (grouped kernels; on another back end they are interpreted, slowly); None = the back end's own.

    Raises:
      ValueError: an unknown implementation, or shapes that do not fit.
      NotImplementedError: a dtype that the implementation lacks.
    """
    if lhs.ndim != 2 or rhs.ndim != 3 or lhs.shape[1] != rhs.shape[1] or group_sizes.shape != rhs.shape[:1]:
        raise ValueError(f"grouped_matmul: got {lhs.shape}, {rhs.shape} and {group_sizes.shape}; want MK, GKN and G")
    return _grouped_matmul(lhs, rhs, group_sizes, implementation or _BEST[target_platform()])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _grouped_matmul(lhs, rhs, group_sizes, implementation: str):
    return _products(implementation)[0](lhs, rhs.astype(lhs.dtype), group_sizes)


def _forward(lhs, rhs, group_sizes, implementation: str):
    return _grouped_matmul(lhs, rhs, group_sizes, implementation), (lhs, rhs, group_sizes)


def _backward(implementation: str, saved, d_out):
    lhs, rhs, group_sizes = saved
    product, outer = _products(implementation)
    d_lhs = product(d_out, rhs.astype(lhs.dtype), group_sizes, transposed=True)
    d_rhs = outer(lhs, d_out, group_sizes).astype(rhs.dtype)
    return d_lhs, d_rhs, np.zeros(group_sizes.shape, jax.dtypes.float0)


_grouped_matmul.defvjp(_forward, _backward)


def _products(name: str) -> tuple[Callable, Callable]:
    """(the product, the outer product) of an implementation."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"unknown grouped matmul implementation {name!r}; known: {', '.join(IMPLEMENTATIONS)}")
    return _load(name, target_platform())


@functools.cache
def _load(name: str, platform: str) -> tuple[Callable, Callable]:
    # Cached, so that the choice is logged once per process. Imported when used: Pallas takes as long as all the rest.
    logging.getLogger(__name__).info("grouped matmul implementation: %s", name)
    file = IMPLEMENTATIONS[name]
    module = importlib.import_module(f"zoo.kernels.grouped_matmul.{file}")
    product, outer = getattr(module, f"{file}_product"), getattr(module, f"{file}_outer")
    if name.startswith("pallas"):
        interpret = file != platform
        return functools.partial(product, interpret=interpret), functools.partial(outer, interpret=interpret)
    return product, outer
