"""Images as sequences of patches, and positions of patches in images of any size."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.nn.execution import Execution
from zoo.nn.parameters import fan_in_normal, parameter, project

_STEPS = 1024
"""Coordinates are rounded to this part of a table cell: float32 cannot tell them apart at the far end of a grid, and
the centres of the training grid's patches must come out as the table's own rows."""


class PatchEmbedding(nnx.Module):
    """patch . kernel + b + position table interpolated at the patch's place."""

    def __init__(self, patch_size: int, channels: int, embed_dim: int, grid: int, *, execution: Execution, rngs):
        dtype = execution.weight_dtype
        fan_in = patch_size * patch_size * channels
        self.dtype, self.grid = execution.dtype, grid
        shape, axes = (patch_size, patch_size, channels, embed_dim), (None, None, None, "embed")
        self.kernel = parameter(rngs, shape, axes, fan_in_normal(fan_in), dtype)
        self.bias = parameter(rngs, (embed_dim,), ("norm",), jax.nn.initializers.zeros, dtype)
        self.position = parameter(rngs, (grid * grid, embed_dim), (None, "embed"), fan_in_normal(embed_dim), dtype)

    def __call__(self, patches: Float[Array, "b t p"], coordinates: Float[Array, "b t 2"]) -> Float[Array, "b t d"]:
        """patches: pixels in the order (row, column, channel). coordinates: (row, column) of a patch's centre as
        fractions 0..1 of its image. The result has the compute dtype."""
        kernel = self.kernel[...]
        flat = project("btp,pd->btd", patches.astype(self.dtype), kernel.reshape(-1, kernel.shape[-1]))
        positions = interpolated(self.position[...], self.grid, coordinates)
        return flat + self.bias[...].astype(self.dtype) + positions.astype(self.dtype)


def interpolated(
    table: Float[Array, "cells d"], grid: int, coordinates: Float[Array, "b t 2"]
) -> Float[Array, "b t d"]:
    """The float32 bilinear interpolation of a grid x grid table, row by row, at fractions 0..1 of its sides.

    Cell i has its centre at (i + 1/2) / grid, where the result is the table's row exactly; beyond the outermost
    centres it stays as it is there. The gradient goes to the table alone.
    """
    place = jnp.round((coordinates.astype(jnp.float32) * grid - 0.5) * _STEPS) / _STEPS
    place = jax.lax.stop_gradient(jnp.clip(place, 0, grid - 1))
    low = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, max(grid - 2, 0))
    high, part = jnp.minimum(low + 1, grid - 1), place - low
    total = jnp.zeros((), jnp.float32)
    for rows, row_weight in ((low[..., 0], 1 - part[..., 0]), (high[..., 0], part[..., 0])):
        for columns, column_weight in ((low[..., 1], 1 - part[..., 1]), (high[..., 1], part[..., 1])):
            values = jnp.take(table, rows * grid + columns, axis=0).astype(jnp.float32)
            total = total + (row_weight * column_weight)[..., None] * values
    return total


def patchified(pixels: Float[Array, "b c h w"], patch_size: int) -> tuple[Float[Array, "b t p"], Float[Array, "1 t 2"]]:
    """(patches row by row, coordinates of their centres) of images [B, C, H, W]; what is left of the sides after whole
    patches is cut off at the bottom and on the right."""
    batch, channels, height, width = pixels.shape
    rows, columns = height // patch_size, width // patch_size
    whole = pixels[:, :, : rows * patch_size, : columns * patch_size]
    split = whole.reshape(batch, channels, rows, patch_size, columns, patch_size)
    patches = split.transpose(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size * patch_size * channels)
    centres = ((jnp.arange(count, dtype=jnp.float32) + 0.5) / count for count in (rows, columns))
    return patches, jnp.stack(jnp.meshgrid(*centres, indexing="ij"), axis=-1).reshape(1, rows * columns, 2)
