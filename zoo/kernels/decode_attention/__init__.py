"""Attention of a decode step, one query per row, over a key/value cache that is read once and as it lies."""

from zoo.kernels.decode_attention.dispatch import decode_attention as decode_attention
from zoo.kernels.decode_attention.dispatch import decode_attention_part as decode_attention_part
from zoo.kernels.decode_attention.dispatch import merge_decoded as merge_decoded
