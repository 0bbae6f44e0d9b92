"""Attention of a decode step, one query per row, over a key/value cache that is read once and as it lies."""

from zoo.kernels.decode_attention.dispatch import decode_attention as decode_attention
