"""Weights and images drawn from seeds: goldens that were computed with them need not hold them."""

from collections.abc import Mapping, Sequence

import numpy as np


def drawn_weights(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, np.ndarray]:
    """Tensors of a convolutional network under torch's names, drawn in the order of `shapes`.

    Kernels and matrices are normal of variance 2 / fan-in, so that depth changes no scale; norms' weights are around 1,
    biases and running means around 0, running variances at least 1/2; counters are 0. All but these are float32.
    """
    # Unlike that of Generator, this stream of numbers is the same in every version of NumPy (NEP 19).
    draw, tensors = np.random.RandomState(seed), {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = np.zeros((), np.int64)
            continue
        values = draw.standard_normal(tuple(shape))
        if len(shape) > 1:
            values *= (2 / np.prod(shape[1:])) ** 0.5
        elif name.endswith("running_var"):
            values = 0.5 + np.abs(values)
        else:
            values = 0.3 * values + name.endswith(".weight")
        tensors[name] = values.astype(np.float32)
    return tensors


def drawn_images(shape: Sequence[int], seed: int) -> np.ndarray:
    """Normal numbers, float32."""
    return np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)
