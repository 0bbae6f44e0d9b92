"""Kernels: one folder per operation. Its ``reference.py`` is the specification that every other path is tested against."""

from zoo.kernels.attention import dot_product_attention as dot_product_attention
