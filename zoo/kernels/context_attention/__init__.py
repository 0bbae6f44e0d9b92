"""Attention over sequences whose tokens are divided among devices: local layers take a halo from their neighbours,
global layers pass keys and values around in a ring or gather them."""

from zoo.kernels.context_attention.dispatch import choose_exchange as choose_exchange
from zoo.kernels.context_attention.dispatch import context_attention as context_attention
from zoo.kernels.context_attention.dispatch import device_attention as device_attention
