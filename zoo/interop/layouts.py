"""How one tensor is laid out in a foreign checkpoint, written as an equation of axes: ``"(N H) D -> D N H"``.

Left of the arrow stands the stored tensor, right of it ours; parentheses join axes into one dimension, and a stored
axis "1" has no counterpart. The same equation read backwards is the export, so that the two cannot disagree.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_ONE = "1"


@dataclass(frozen=True)
class Layout:
    """One equation, and the maps that follow from it. Axes are words; their sizes come from the model."""

    equation: str
    """For example ``"(N H) D -> D N H"`` for a query projection that PyTorch keeps as [heads * head_dim, embed]."""

    @cached_property
    def _stored(self) -> list[tuple[str, ...]]:
        """Axes of each stored dimension."""
        groups = re.findall(r"\(([^)]*)\)|(\w+)", self.equation.split("->")[0])
        return [tuple(joined.split()) if joined else (single,) for joined, single in groups]

    @cached_property
    def _order(self) -> tuple[int, ...]:
        """For each of our dimensions its place among the stored axes."""
        axes = [axis for group in self._stored for axis in group if axis != _ONE]
        ours = self.equation.split("->")[1].split()
        if sorted(axes) != sorted(ours) or len(set(axes)) != len(axes):
            raise ValueError(f"layout {self.equation!r} does not name the same axes on both sides")
        return tuple(axes.index(axis) for axis in ours)

    def stored_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of the stored tensor."""
        return tuple(math.prod(1 if axis == _ONE else sizes[axis] for axis in group) for group in self._stored)

    def to_ours(self, stored: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """A view of the stored tensor in our layout (no copy unless it is not contiguous)."""
        split = [sizes[axis] for group in self._stored for axis in group if axis != _ONE]
        return stored.reshape(split).transpose(self._order)

    def to_stored(self, ours: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Our array in the stored layout; a copy where dimensions are joined."""
        return ours.transpose(np.argsort(self._order)).reshape(self.stored_shape(sizes))
