"""How many floating-point operations a model needs, how many a device can do, and the ratio of the two (MFU).

Counted are the multiplications and additions that the model's definition asks for: matrix products, and of attention
only the (query, key) pairs that are visible. What an implementation computes beyond that (masked blocks,
rematerialisation) is its own loss and does not count (PaLM, arXiv 2204.02311, appendix B). Norms, softmax and
activation functions are left out, as everywhere.
"""

import re
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

TRAINING_TO_FORWARD = 3
"""A backward pass has two matrix products for every one of the forward pass."""

# Dense bfloat16 FLOP/s of a chip and the number of cores that it has: cloud.google.com/tpu/docs, one page a generation.
# Whether jax's device is a chip or a core differs (v2, v3 and TPU7x: a core); device.num_cores tells.
TPU_PEAKS = {
    "TPU v2": (46e12, 2),
    "TPU v3": (123e12, 2),
    "TPU v4": (275e12, 2),
    "TPU v5 lite": (197e12, 1),
    "TPU v5e": (197e12, 1),
    "TPU v5": (459e12, 2),
    "TPU v5p": (459e12, 2),
    "TPU v6 lite": (918e12, 1),
    "TPU v6e": (918e12, 1),
    "TPU7x": (2307e12, 2),
}

# Dense bfloat16 FLOP/s (T4, V100: float16) with float32 accumulation: NVIDIA's data sheets, whose "with sparsity"
# figures are twice these. The first name that is a word of device_kind counts.
GPU_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H20": 148e12,
    "H800": 989e12,
    "GB300": 2500e12,
    "B300": 2250e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "B100": 1750e12,
    "A100": 312e12,
    "A800": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A30": 165e12,
    "A40": 150e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


def device_peak_flops(device: Any) -> float | None:
    """Peak dense bfloat16 FLOP/s of a jax device, by its `device_kind`; None for one that is not in the tables."""
    kind = device.device_kind
    if kind in TPU_PEAKS:
        chip, cores = TPU_PEAKS[kind]
        return chip * getattr(device, "num_cores", cores) / cores
    return next((peak for name, peak in GPU_PEAKS.items() if re.search(rf"\b{name}\b", kind)), None)


@cache
def measured_matmul_rate(seconds: float = 0.3, size: int = 1024) -> float:
    """Float32 FLOP/s that the whole default device reaches on [size, size] matrix products, best of `seconds`.

    This is the yardstick for CPUs, which have no published peak. Virtual CPU devices share one machine: divide by
    their number. Measured once a process.
    """
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    a = jnp.full((size, size), 0.5, jnp.float32)
    multiply(a, a).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        multiply(a, a).block_until_ready()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return 2 * size**3 / best


def peak_flops(devices: Sequence[Any]) -> tuple[float | None, str]:
    """FLOP/s per device that MFU is a fraction of, and what to call it: the data sheet's figure; on CPU the measured
    rate of matrix products, divided among the devices of this machine; (None, reason) for an unknown accelerator."""
    device = devices[0]
    if device.platform == "cpu":
        local = sum(other.process_index == device.process_index for other in devices)
        return measured_matmul_rate() / local, "of measured matmul rate"
    peak = device_peak_flops(device)
    if peak is None:
        return None, f"peak of {device.device_kind} unknown"
    return peak, f"of {peak / 1e12:.0f} TFLOP/s"


def model_flops_utilization(flops_per_token: float, tokens_per_second_per_device: float, peak: float) -> float:
    """MFU of training as a fraction of 1; `flops_per_token` is that of a forward pass."""
    return TRAINING_TO_FORWARD * flops_per_token * tokens_per_second_per_device / peak


def attention_pairs(sequence_length: int, window: int | None) -> int:
    """(query, key) pairs that causal attention sees in one sequence; a query sees itself and window - 1 keys before it.

    With w = min(window, T) the first w queries see 1, 2, ..., w keys and the other T - w see w.
    """
    visible = sequence_length if window is None else min(window, sequence_length)
    return visible * (visible + 1) // 2 + (sequence_length - visible) * visible


def decoder_forward_flops_per_token(
    *,
    embed_dim: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    hidden_dim: int,
    vocab_size: int,
    windows: Sequence[int | None],
    sequence_length: int,
    router_experts: int = 0,
) -> float:
    """Forward FLOPs per token of a decoder, averaged over a sequence that is one document; training takes 3x that.

        projections  2 D H (2 N + 2 K)          queries and output per query head, keys and values per kv head
        attention    4 N H pairs / T            scores and weighted values: per query head, whatever K is
        feed-forward 6 D F  (+ 2 D E)           gate, up, down; F = `hidden_dim`
        output head  2 D V                      the embedding look-up is no arithmetic

    `windows` has one entry per layer, None for global attention. For a mixture of experts `hidden_dim` is the width of
    the experts that one token uses, together, and `router_experts` the number E that its router scores.
    """
    projections = 4 * embed_dim * head_dim * (num_heads + num_kv_heads)
    feed_forward = 6 * embed_dim * hidden_dim + 2 * embed_dim * router_experts
    pairs = sum(attention_pairs(sequence_length, window) for window in windows)
    attention = 4 * num_heads * head_dim * pairs / sequence_length
    return len(windows) * (projections + feed_forward) + attention + 2 * embed_dim * vocab_size
