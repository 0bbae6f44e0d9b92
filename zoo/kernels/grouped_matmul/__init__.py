"""Products of rows sorted by group, each with its group's matrix: the experts' products of a dropless layer."""

from zoo.kernels.grouped_matmul.dispatch import grouped_matmul as grouped_matmul
