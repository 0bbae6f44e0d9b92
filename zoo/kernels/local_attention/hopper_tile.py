"""One tile of attention on a Hopper warpgroup: matrix products by wgmma, and the softmax arithmetic between them.

The arithmetic is the same code on the GPU and in interpret mode. JAX's interpreter of Mosaic GPU runs threads, barriers
and copies as they are, but has no layouts, and no wgmma with an operand in registers or transposed: there `interpret`
takes the plain product of the same references.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Float, Int

from zoo.kernels.attention.visibility import visible_pairs

ROWS = 64
"""Rows of a tile: the height of a wgmma."""

LOG2_E = math.log2(math.e)

_LOWEST = -1e30
"""Running maximum before any key: finite, so that 2^(-inf - maximum) is 0 also for a row that has seen none."""


@dataclass(frozen=True)
class Tile:
    """Scores of 64 rows against `columns`; rows are queries and columns keys, or the other way round."""

    columns: int
    """Columns per tile."""
    scale: float
    """See `dot_product_attention`, as for the next three."""
    soft_cap: float | None
    causal: bool
    sliding_window: int | None
    running_maximum: bool
    """Whether weights are relative to a running maximum (online softmax), or to 0."""
    accumulator: Any
    """dtype of scores and sums: float32, or float64 for float64 inputs."""
    interpret: bool
    """Whether the kernel runs in interpret mode on the CPU."""

    # ---- products and loads: what differs between the GPU and interpret mode ----

    def product_transposed(self, left, right, meanwhile=lambda: None) -> Float[Array, "r c"]:
        """left . right^T of two references to shared memory; `meanwhile` is called while the tensor cores work."""
        if self.interpret:
            meanwhile()
            return _product(left[...], right[...].T)

        def run(accumulator):
            plgpu.wgmma(accumulator, left, plgpu.transpose_ref(right, (1, 0)))
            meanwhile()
            return accumulator[...]

        return pl.run_scoped(run, plgpu.ACC((left.shape[0], right.shape[0]), jnp.float32))

    def accumulate(self, total: Float[Array, "r h"], left: Float[Array, "r c"], right) -> Float[Array, "r h"]:
        """total + left . right, with right a reference to shared memory."""
        left = left.astype(right.dtype)
        if self.interpret:
            return total + _product(left, right[...])
        return pl.run_state(lambda accumulator: plgpu.wgmma(accumulator, left, right))(plgpu.ACC.init(total))

    def hide_some(self, masked, logs, row_marks, column_marks, rows_are_queries=True) -> Float[Array, "r c"]:
        """If `masked`, -inf where the query does not see the key.

        marks: (reference, *index) of the positions of rows and columns and, if there are any, their segments.
        """

        def hide(logs):
            kinds = range(row_marks[0].shape[-2])
            rows = [along_rows(self.row_values(*row_marks, i), logs.shape) for i in kinds]
            columns = [along_columns(self.column_values(*column_marks, i), logs.shape) for i in kinds]
            queries, keys = (rows, columns) if rows_are_queries else (columns, rows)
            return jnp.where(self.visible(queries, keys), logs, -jnp.inf)

        return jax.lax.cond(masked, hide, lambda logs: logs, logs)

    def zeros(self, width: int) -> Float[Array, "r h"]:
        """What `accumulate` starts from."""
        return self._laid_out(jnp.zeros((ROWS, width), self.accumulator), plgpu.Layout.WGMMA)

    def row_values(self, ref, *index) -> Array:
        """ref[index], one value per row."""
        return self._load(ref, index, plgpu.Layout.WGMMA.reduce(1))

    def column_values(self, ref, *index) -> Array:
        """ref[index], one value per column."""
        return self._load(ref, index, plgpu.Layout.WGMMA.reduce(0))

    def _load(self, ref, index, layout):
        return ref[index] if self.interpret else plgpu.load(ref, index, layout=layout, optimized=False)

    def _full_rows(self, value):
        return self._laid_out(jnp.full((ROWS,), value, self.accumulator), plgpu.Layout.WGMMA.reduce(1))

    def _laid_out(self, x, layout):
        return x if self.interpret else plgpu.layout_cast(x, layout)

    # ---- arithmetic ----

    def logs(self, products: Float[Array, "r c"]) -> Float[Array, "r c"]:
        """log2(e) * cap(scale * product): to base 2, because the hardware's exponential is 2^x."""
        return self.logs_and_slope(products)[0]

    def logs_and_slope(self, products: Float[Array, "r c"]) -> tuple[Float[Array, "r c"], Float[Array, "r c"] | float]:
        """`logs`, and the derivative of cap(s) at s = scale * product, which is 1 - tanh(s / c)^2.

        With y = 1 / (1 + e^2x): tanh(x) = 1 - 2y, 1 - tanh(x)^2 = 4y(1 - y); and 1 / z = rsqrt(z)^2, so that each step
        is one accurate instruction. The hardware's own tanh is good to 2^-11: with a cap of 50, 2 percent of a weight.
        """
        if self.soft_cap is None:
            return products * (self.scale * LOG2_E), 1.0
        root = jax.lax.rsqrt(1 + jnp.exp2(products * (2 * LOG2_E * self.scale / self.soft_cap)))
        complement = root * root
        logs = (LOG2_E * self.soft_cap) - (2 * LOG2_E * self.soft_cap) * complement
        return logs, 4 * complement * (1 - complement)

    def visible(self, queries: list[Int[Array, "r c"]], keys: list[Int[Array, "r c"]]) -> Bool[Array, "r c"]:
        """Of each pair; queries, keys: positions and perhaps segments."""
        segments = (queries[1], keys[1]) if len(keys) > 1 else (None, None)
        return visible_pairs(queries[0], keys[0], *segments, causal=self.causal, sliding_window=self.sliding_window)

    def no_keys(self) -> tuple[Float[Array, " r"], Float[Array, " r"]]:
        """(running maximum, running sum) before any key."""
        return self._full_rows(_LOWEST if self.running_maximum else 0), self._full_rows(0)

    def softmax(self, logs: Float[Array, "r c"], maximum, total):
        """(weights, new maximum, new sum, factor of everything summed before, or None if that is 1)."""
        factor = None
        if self.running_maximum:
            largest = jnp.maximum(maximum, logs.max(axis=1))
            factor = jnp.exp2(maximum - largest)
            maximum, total = largest, total * factor
            logs = logs - along_rows(maximum, logs.shape)
        weights = jnp.exp2(logs)
        return weights, maximum, total + weights.sum(axis=1), factor


def along_rows(values: Float[Array, " r"], shape: tuple[int, ...]) -> Float[Array, "r c"]:
    """The same value along a row."""
    return jax.lax.broadcast_in_dim(values, shape, (0,))


def along_columns(values: Float[Array, " c"], shape: tuple[int, ...]) -> Float[Array, "r c"]:
    """The same value along a column."""
    return jax.lax.broadcast_in_dim(values, shape, (1,))


def _product(left, right):
    accumulator = jnp.promote_types(left.dtype, jnp.float32)
    precision = jax.lax.Precision.HIGHEST if left.dtype == accumulator else None
    return jnp.dot(left, right, preferred_element_type=accumulator, precision=precision)
