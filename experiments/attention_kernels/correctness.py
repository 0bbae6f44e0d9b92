"""The kernels in interpret mode against the dense reference in float64: whether what is measured is right.

The limits are the project's: 1e-12 in float64, 2e-6 (gradients 1e-5) in float32, and in bfloat16 twice the error of the
blocked XLA implementation. `tests/kernels` holds the whole grid of options; this is a sample for the report.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention_kernels.subjects import attention_inputs
from zoo.kernels.attention.reference import reference_attention
from zoo.kernels.attention.xla import xla_attention
from zoo.kernels.local_attention.gpu import local_attention_gpu
from zoo.kernels.local_attention.tpu import local_attention_tpu

LENGTH, SLIDING_WINDOW, HEADS, KV_HEADS, HEAD_DIM = 200, 150, 2, 1, 64
KERNELS: dict[str, Callable] = {
    "pallas_tpu": partial(local_attention_tpu, block=128, interpret=True),
    "pallas_gpu": partial(local_attention_gpu, interpret=True),
}


@dataclass(frozen=True)
class Error:
    """Greatest difference from the reference in float64, over the greatest value of the reference."""

    kernel: str
    """Implementation."""
    dtype: str
    """Of the inputs."""
    logits_soft_cap: float | None
    """Soft-cap of the scores."""
    forward: float
    """Of the result."""
    gradient: float
    """Worst of the gradients of query, key and value."""
    forward_limit: float
    """What is allowed."""
    gradient_limit: float
    """What is allowed."""

    @property
    def passed(self) -> bool:
        """Whether both are within their limits."""
        return self.forward <= self.forward_limit and self.gradient <= self.gradient_limit


def check(dtypes: tuple[str, ...], soft_caps: tuple[float | None, ...]) -> list[Error]:
    """Every kernel, dtype and soft-cap."""
    found = []
    with jax.enable_x64(True):
        for soft_cap in soft_caps:
            for dtype in dtypes:
                arrays = _arrays(dtype)
                expected = _outcome(reference_attention, [x.astype(jnp.float64) for x in arrays], soft_cap)
                limits = {"float64": (1e-12, 1e-12), "float32": (2e-6, 1e-5)}.get(dtype)
                if limits is None:
                    forward, gradient = _errors(_outcome(xla_attention, arrays, soft_cap), expected)
                    limits = 2 * forward, 2 * gradient
                for name, kernel in KERNELS.items():
                    errors = _errors(_outcome(kernel, arrays, soft_cap), expected)
                    found.append(Error(name, dtype, soft_cap, *errors, *limits))
    return found


def _arrays(dtype: str) -> list[jax.Array]:
    generator = np.random.default_rng(0)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return [jnp.asarray(generator.standard_normal((1, LENGTH, n, HEAD_DIM)), dtype) for n in heads]


def _outcome(attention: Callable, arrays: list[jax.Array], soft_cap: float | None) -> list[np.ndarray]:
    """The result and the gradients for a given gradient of the result."""

    @jax.jit
    def run(query, key, value, out_gradient):
        def apply(query, key, value):
            return attention(attention_inputs(query, key, value, SLIDING_WINDOW, soft_cap))

        out, pullback = jax.vjp(apply, query, key, value)
        return out, *pullback(out_gradient.astype(out.dtype))

    return [np.asarray(x, np.float64) for x in run(*arrays)]


def _errors(found: list[np.ndarray], expected: list[np.ndarray]) -> tuple[float, float]:
    forward, *gradients = (float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected))
    return forward, max(gradients)


def main() -> None:
    """Prints the errors as one line of JSON; arguments: dtypes."""
    dtypes = tuple(sys.argv[1:])
    print(json.dumps([asdict(error) for error in check(dtypes, (50.0, None))]))


if __name__ == "__main__":
    main()
