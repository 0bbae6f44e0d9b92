"""Softmax attention with windows, segments, soft-cap and grouped heads; `visible` says which key a query may see."""

from zoo.kernels.attention.dispatch import dot_product_attention as dot_product_attention
from zoo.kernels.attention.visibility import visible as visible
