"""Kernels: one folder per operation. Its ``reference.py`` is the specification of every other path."""

from zoo.kernels.attention import dot_product_attention as dot_product_attention
