"""FLOP accounting against brute force and against what XLA counts; peaks by device name."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.training.mfu import (
    GPU_PEAKS,
    attention_pairs,
    decoder_forward_flops_per_token,
    device_peak_flops,
    measured_matmul_rate,
    model_flops_utilization,
    peak_flops,
)

SIZES = dict(embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=16, hidden_dim=96, vocab_size=300)


@pytest.mark.parametrize("window", [None, 1, 2, 3, 7, 8, 9, 100])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 20])
def test_attention_pairs_equal_the_visible_entries_of_the_mask(length, window):
    query, key = np.arange(length)[:, None], np.arange(length)[None, :]
    visible = (key <= query) & (key > query - (window or length))
    assert attention_pairs(length, window) == visible.sum()


def test_decoder_flops_equal_what_xla_counts_for_its_matrix_products():
    # Sequences of one token: causal attention is then dense, and XLA counts no masked pair.
    batch, layers = 8, 3
    d, n, k, h, f, v = SIZES.values()

    def forward(x, w):
        for layer in range(layers):
            heads = (x @ w["query"][layer]).reshape(batch, 1, n, h)
            key = jnp.repeat((x @ w["key"][layer]).reshape(batch, 1, k, h), n // k, axis=2)
            value = jnp.repeat((x @ w["value"][layer]).reshape(batch, 1, k, h), n // k, axis=2)
            scores = jnp.einsum("btnh,bsnh->bnts", heads, key)
            x = jnp.einsum("bnts,bsnh->btnh", scores, value).reshape(batch, n * h) @ w["output"][layer]
            x = ((x @ w["gate"][layer]) * (x @ w["up"][layer])) @ w["down"][layer]
        return x @ w["head"]

    shapes = {
        "query": (layers, d, n * h), "key": (layers, d, k * h), "value": (layers, d, k * h),
        "output": (layers, n * h, d), "gate": (layers, d, f), "up": (layers, d, f), "down": (layers, f, d),
        "head": (d, v),
    }  # fmt: skip
    weights = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    lowered = jax.jit(forward).lower(jax.ShapeDtypeStruct((batch, d), jnp.float32), weights)
    expected = decoder_forward_flops_per_token(**SIZES, windows=[None] * layers, sequence_length=1)
    gating = layers * f  # the elementwise product, which is not counted
    assert lowered.cost_analysis()["flops"] / batch == expected + gating


def test_attention_flops_grow_with_the_visible_pairs_and_the_query_heads_alone():
    def attention(windows, length, **changes):
        sizes = SIZES | changes
        with_attention = decoder_forward_flops_per_token(**sizes, windows=windows, sequence_length=length)
        return with_attention - decoder_forward_flops_per_token(**sizes, windows=windows, sequence_length=1)

    one_pair = 4 * 4 * 16
    assert attention([None], 9) == one_pair * (45 / 9 - 1)
    assert attention([4], 9) == pytest.approx(one_pair * (30 / 9 - 1))
    assert attention([4, None], 9) == pytest.approx(attention([4], 9) + attention([None], 9))
    assert attention([None], 9, num_kv_heads=1) == attention([None], 9, num_kv_heads=4)


def test_a_router_costs_one_product_a_layer():
    dense = decoder_forward_flops_per_token(**SIZES, windows=[None, 8], sequence_length=16)
    routed = decoder_forward_flops_per_token(**SIZES, windows=[None, 8], sequence_length=16, router_experts=10)
    assert routed - dense == 2 * 2 * 32 * 10


def test_utilization_counts_a_training_step_as_three_forward_passes():
    assert model_flops_utilization(1e9, 1e3, 6e12) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("kind", "cores", "expected"),
    [
        ("TPU v4", 2, 275e12),
        ("TPU v4", 1, 137.5e12),
        ("TPU v5 lite", 1, 197e12),
        ("TPU v5", 2, 459e12),
        ("TPU v6 lite", 1, 918e12),
        ("TPU7x", 1, 1153.5e12),
        ("NVIDIA H100 80GB HBM3", None, 989e12),
        ("NVIDIA H100 PCIe", None, 756e12),
        ("NVIDIA H200", None, 989e12),
        ("NVIDIA H20", None, 148e12),
        ("NVIDIA A100-SXM4-80GB", None, 312e12),
        ("NVIDIA A10G", None, 70e12),
        ("NVIDIA L40S", None, 362e12),
        ("NVIDIA B200", None, 2250e12),
        ("NVIDIA RTX A4000", None, None),
        ("cpu", None, None),
    ],
)
def test_the_peak_of_a_device_is_that_of_its_data_sheet(kind, cores, expected):
    device = SimpleNamespace(device_kind=kind, **({} if cores is None else {"num_cores": cores}))
    assert device_peak_flops(device) == expected


def test_no_gpu_hides_another_one_in_the_table():
    for name, peak in GPU_PEAKS.items():
        assert device_peak_flops(SimpleNamespace(device_kind=f"NVIDIA {name}")) == peak


def test_on_cpu_the_yardstick_is_measured_and_shared_by_the_virtual_devices():
    rate = measured_matmul_rate(seconds=0.05, size=128)
    assert 1e8 < rate < 1e14
    peak, label = peak_flops(jax.devices())
    assert label == "of measured matmul rate"
    assert peak == measured_matmul_rate() / len(jax.devices())


def test_an_unknown_accelerator_has_no_peak_and_says_so():
    peak, label = peak_flops([SimpleNamespace(device_kind="Frobnicator 9", platform="gpu", process_index=0)])
    assert peak is None and "Frobnicator 9" in label
