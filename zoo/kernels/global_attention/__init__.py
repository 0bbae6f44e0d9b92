"""Attention without a window, through kernels that others maintain; see `zoo.kernels.attention` for the function."""

from zoo.kernels.global_attention.cudnn import cudnn_attention as cudnn_attention
from zoo.kernels.global_attention.splash import splash_attention as splash_attention
