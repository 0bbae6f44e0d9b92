"""Kernels that others maintain compute the reference's function, and refuse what they cannot compute."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas.ops.tpu import splash_attention as jax_splash

from tests.marks import all_but, slow
from zoo.ahead_of_time import gpu, tpu
from zoo.kernels.attention.inputs import AttentionInputs, check_inputs
from zoo.kernels.attention.reference import reference_attention
from zoo.kernels.attention.visibility import EMPTY_POSITION
from zoo.kernels.attention.xla import xla_attention
from zoo.kernels.global_attention import cudnn_attention, splash, splash_attention
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh
from zoo.parallel.per_shard import per_shard


def make_inputs(queries=200, keys=None, heads=4, kv_heads=2, head_dim=64, batch=2, packed=False, **options):
    """Rows of two documents when packed, the second of them shorter; queries stand at the end of the keys."""
    rng = np.random.default_rng(0)
    keys = keys or queries
    query = rng.normal(size=(batch, queries, heads, head_dim))
    key, value = rng.normal(size=(2, batch, keys, kv_heads, head_dim))
    cuts = np.array([[keys // 2 + 9 * row] for row in range(batch)])
    index = np.arange(keys)
    segments = jnp.asarray(index >= cuts, jnp.int32) if packed else None
    positions = jnp.asarray(np.where(packed & (index >= cuts), index - cuts, index), jnp.int32)
    arguments = dict(
        scale=head_dim**-0.5,
        causal=True,
        sliding_window=None,
        logits_soft_cap=None,
        query_positions=positions[:, keys - queries :],
        key_positions=positions,
        query_segment_ids=None if segments is None else segments[:, keys - queries :],
        key_segment_ids=segments,
        ordered_positions=True,
    )
    qkv = (jnp.asarray(x, jnp.float32) for x in (query, key, value))
    return check_inputs(*qkv, **(arguments | options))


def value_and_gradients(attention, inputs: AttentionInputs, dtype, **options):
    """(out, gradients) in float64 of a fixed sum of the outputs; the inputs are rounded to bfloat16 first."""
    weight = np.random.default_rng(9).normal(size=inputs.query.shape)

    def loss(query, key, value):
        out = attention(dataclasses.replace(inputs, query=query, key=key, value=value), **options)
        return (out * jnp.asarray(weight, out.dtype)).sum(), out

    with jax.enable_x64(True):
        qkv = (x.astype(jnp.bfloat16).astype(dtype) for x in (inputs.query, inputs.key, inputs.value))
        gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), (out, gradients))


CASES = (
    dict(queries=200, packed=True, logits_soft_cap=50.0),
    dict(queries=301, heads=8, kv_heads=1, packed=True),
    dict(queries=130, keys=431, heads=2, kv_heads=2, logits_soft_cap=90.0),
    dict(queries=131, keys=300, packed=True, logits_soft_cap=50.0),
    dict(queries=257, head_dim=128, scale=144**-0.5),
    dict(queries=1, keys=140, batch=1, logits_soft_cap=5.0),
)


@functools.cache
def truth_of(case: int):
    return value_and_gradients(reference_attention, make_inputs(**CASES[case]), jnp.float64)


@pytest.mark.parametrize("case", all_but([1, 2, 4, 5], list(range(6))), ids=lambda case: str(CASES[case]))
def test_splash_equals_the_reference(case):
    expected, expected_gradients = truth_of(case)
    out, gradients = value_and_gradients(splash_attention, make_inputs(**CASES[case]), jnp.float32)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6)
    for gradient, truth in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, truth, rtol=0, atol=1e-5 * np.abs(truth).max())


@pytest.mark.parametrize("case", all_but([1, 2], list(range(5))), ids=lambda case: str(CASES[case]))
def test_the_error_of_splash_in_bfloat16_is_at_most_twice_that_of_xla(case):
    inputs, truth = make_inputs(**CASES[case]), truth_of(case)

    def errors(attention):
        result = value_and_gradients(attention, inputs, jnp.bfloat16)
        return [np.sqrt(np.square(a - b).mean()) for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(truth))]

    for error, error_of_xla in zip(errors(splash_attention), errors(xla_attention), strict=True):
        assert error <= 2 * error_of_xla


@pytest.mark.parametrize("window", [1, 128, *slow(500)])
def test_splash_has_windows_where_positions_are_consecutive(window):
    inputs = make_inputs(300, 340, packed=True, sliding_window=window)
    expected = value_and_gradients(reference_attention, inputs, jnp.float64)
    result = value_and_gradients(splash_attention, inputs, jnp.float32, consecutive_positions=True)
    chex.assert_trees_all_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 20])
def test_keys_without_a_token_are_not_seen_and_queries_that_see_nothing_get_zeros(window):
    # A cache that is not full: the first 250 of 340 slots are empty, so 10 queries have no key at or before them. A gap
    # of 30 slots is longer than the window.
    inputs = make_inputs(100, 340, sliding_window=window)
    slot = jnp.arange(340)
    empty = (slot < 250) | (slot >= 290) & (slot < 320)
    inputs = dataclasses.replace(inputs, key_positions=jnp.where(empty, EMPTY_POSITION, inputs.key_positions))
    expected = value_and_gradients(reference_attention, inputs, jnp.float64)
    result = value_and_gradients(splash_attention, inputs, jnp.float32, consecutive_positions=True)
    blind = [*range(10), *(range(69, 80) if window else [])]
    np.testing.assert_array_equal((result[0] == 0).all((0, 2, 3)).nonzero()[0], blind)
    chex.assert_trees_all_close(result, expected, atol=1e-5, rtol=0)


def test_padding_between_the_tokens_of_a_row_is_not_seen():
    inputs = make_inputs(300, packed=True)
    holds_token = np.random.default_rng(1).random((2, 300)) < 0.7
    inputs = dataclasses.replace(inputs, key_positions=jnp.where(holds_token, inputs.key_positions, EMPTY_POSITION))
    expected = value_and_gradients(reference_attention, inputs, jnp.float64)
    result = value_and_gradients(splash_attention, inputs, jnp.float32)
    chex.assert_trees_all_close(result, expected, atol=1e-5, rtol=0)


def test_a_query_of_another_segment_than_its_key_gets_zeros():
    inputs = make_inputs(140, packed=True)
    inputs = dataclasses.replace(inputs, key_segment_ids=jnp.where(inputs.key_segment_ids == 1, 7, 0))
    expected = value_and_gradients(reference_attention, inputs, jnp.float64)
    result = value_and_gradients(splash_attention, inputs, jnp.float32)
    assert (result[0][0, 70:] == 0).all()
    chex.assert_trees_all_close(result, expected, atol=1e-5, rtol=0)


def test_float32_products_are_exact_forward_and_backward():
    inputs = make_inputs(128)

    def loss(query, key, value):
        return splash_attention(dataclasses.replace(inputs, query=query, key=key, value=value)).sum()

    program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(inputs.query, inputs.key, inputs.value))
    products = program.count("dot_general[")
    # Forward q k and p v; backward q k, do v and ds k for the queries, q k, p do, do v and ds q for the keys.
    assert products >= 9
    assert program.count("Precision.HIGHEST") == 2 * products


@pytest.mark.parametrize("window", [None, 100, 300])
@pytest.mark.parametrize("offset", [0, 77, 1000])
def test_blocks_of_the_band_are_told_by_their_corners(window, offset):
    options = (None if window is None else window - 1, 0), offset
    band = splash._Band((512, 1536), *options)
    compared = jax_splash.LocalMask((512, 1536), *options)
    for rows in range(0, 512, 128):
        for columns in range(0, 1536, 256):
            block = slice(rows, rows + 128), slice(columns, columns + 256)
            assert band[block].any() == compared[block].any()
            assert band[block].all() == compared[block].all()


def test_the_set_up_compares_indices_in_blocks_on_the_diagonal_only(monkeypatch):
    compared = []
    original = jax_splash.LocalMask.__getitem__
    monkeypatch.setattr(
        jax_splash.LocalMask, "__getitem__", lambda self, block: compared.append(block) or original(self, block)
    )
    blocks = 32
    splash._kernel(splash._Call(blocks * 512, blocks * 512, 512, 512, None, None, True))
    # Two passes for each of the grids: forward, dq and dkv.
    assert 0 < len(compared) <= 6 * blocks


@pytest.mark.parametrize("most_rows", [64, 256, 512, 1024, 4096])
def test_blocks_cover_every_length_with_little_padding(most_rows):
    largest = min(max(most_rows, 128), 1024)
    for length in [*range(1, 3000, 7), 8192, 131072]:
        block = splash._block(length, most_rows)
        blocks = math.ceil(length / block)
        assert block <= largest and block % 128 == 0 and (block <= 512 or block % 256 == 0)
        assert blocks == math.ceil(length / largest)
        assert blocks * block - length < 256 * blocks
    assert splash._block(8192, most_rows) == largest


def test_splash_runs_per_device_and_rematerialised():
    inputs = make_inputs(140, batch=4, packed=True, logits_soft_cap=50.0)
    query_axes, key_axes = (("batch", "length", name, None) for name in ("heads", "kv_heads"))

    def attend(query, key, value, segments):
        segments = dict(query_segment_ids=segments, key_segment_ids=segments)
        return splash_attention(dataclasses.replace(inputs, query=query, key=key, value=value, **segments))

    def loss(query, key, value):
        axes = (query_axes, key_axes, key_axes, ("batch", "length"))
        attend_per_device = jax.checkpoint(per_shard(attend, axes, query_axes))
        return jnp.sin(attend_per_device(query, key, value, inputs.query_segment_ids)).sum()

    def gradients():
        return jax.device_get(jax.jit(jax.grad(lambda *qkv: loss(*qkv), argnums=(0, 1, 2)))(*qkv))

    # Positions are not among the divided arrays: all rows share them.
    inputs = dataclasses.replace(inputs, query_positions=jnp.arange(140)[None], key_positions=jnp.arange(140)[None])
    qkv = inputs.query, inputs.key, inputs.value
    expected = gradients()
    with activation_sharding(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), ShardingRules()):
        chex.assert_trees_all_close(gradients(), expected, atol=1e-6)


REFUSED = [
    (dict(ordered_positions=False), "ordered_positions"),
    (dict(causal=False), "not causal"),
    (dict(sliding_window=8), "sliding_window"),
]


@pytest.mark.parametrize(("options", "feature"), REFUSED, ids=str)
def test_splash_raises_for_what_it_cannot_do(options, feature):
    with pytest.raises(NotImplementedError, match=f"'splash' does not support .*{feature}"):
        splash_attention(make_inputs(**options))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float16], ids=str)
def test_splash_raises_for_dtypes_that_it_would_not_compute_in(dtype):
    with jax.enable_x64(True):
        inputs = make_inputs()
        qkv = {name: getattr(inputs, name).astype(dtype) for name in ("query", "key", "value")}
        with pytest.raises(NotImplementedError, match="'splash' does not support float.*only bfloat16 and float32"):
            splash_attention(dataclasses.replace(inputs, **qkv))


TPUS = {target.name: target for target in (tpu.V5E, tpu.V5P, tpu.V6E)}


@pytest.mark.slow
@pytest.mark.skipif(not tpu.has_libtpu(), reason="libtpu is not installed")
@pytest.mark.parametrize(("head_dim", "dtype"), [(256, jnp.bfloat16), (128, jnp.bfloat16), (256, jnp.float32)])
@pytest.mark.parametrize("target", TPUS.values(), ids=TPUS)
def test_splash_compiles_for_tpus_in_linear_memory(target, head_dim, dtype):
    length, heads, kv_heads = 8192, 8, 4
    struct = jax.ShapeDtypeStruct
    query, key = (struct((1, length, n, head_dim), dtype) for n in (heads, kv_heads))
    tokens = struct((1, length), jnp.int32)

    def loss(query, key, value, positions, segments):
        inputs = check_inputs(
            query,
            key,
            value,
            scale=1 / 16,
            causal=True,
            sliding_window=None,
            logits_soft_cap=50.0,
            query_positions=positions,
            key_positions=positions,
            query_segment_ids=segments,
            key_segment_ids=segments,
            ordered_positions=True,
        )
        return splash_attention(inputs).astype(jnp.float32).sum()

    gradients = jax.grad(loss, argnums=(0, 1, 2))
    compiled = tpu.compile_for_tpu(gradients, query, key, key, tokens, tokens, target=target)
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3
    query_bytes = length * heads * head_dim * dtype.dtype.itemsize
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * query_bytes


# ---- cuDNN ----


def cudnn_inputs(dtype=jnp.bfloat16, **options):
    inputs = make_inputs(**options)
    qkv = {name: getattr(inputs, name).astype(dtype) for name in ("query", "key", "value")}
    return dataclasses.replace(inputs, **qkv)


@pytest.mark.parametrize("window", [None, 100])
def test_cudnn_is_lowered_forward_and_backward(window, monkeypatch):
    # jax asks the installed library and the device for their versions: there are none.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91300)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda version: version != "10.0")
    monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda v: v == "9.0")
    inputs = cudnn_inputs(queries=512, head_dim=256, sliding_window=window)

    def loss(query, key, value):
        inputs_ = dataclasses.replace(inputs, query=query, key=key, value=value)
        return cudnn_attention(inputs_, consecutive_positions=True).astype(jnp.float32).sum()

    gradients = jax.grad(loss, argnums=(0, 1, 2))
    program = gpu.lower_for_gpu(gradients, inputs.query, inputs.key, inputs.value, target=gpu.H100).as_text()
    for call in ("__cudnn$fmhaSoftmax(", "__cudnn$fmhaSoftmaxBackward("):
        assert program.count(call) == 1
    assert program.count("CAUSAL") == 2
    # cuDNN's window counts the query's own key.
    assert program.count(r"sliding_window_length\22: 100") == (2 if window else 0)
    assert "512x512" not in program


@pytest.mark.parametrize(
    ("options", "feature"),
    [
        *REFUSED,
        (dict(logits_soft_cap=50.0), "logits_soft_cap"),
        (dict(packed=True), "segment ids"),
        (dict(keys=300), "200 queries against 300 keys"),
        (dict(head_dim=260), "heads of size 260"),
        (dict(dtype=jnp.float32), "float32"),
    ],
    ids=str,
)
def test_cudnn_raises_for_what_it_cannot_do(options, feature, monkeypatch):
    monkeypatch.setattr("zoo.kernels.global_attention.cudnn.target_platform", lambda: "gpu")
    with pytest.raises(NotImplementedError, match=f"'cudnn' does not support .*{feature}"):
        cudnn_attention(cudnn_inputs(**options))


def test_cudnn_raises_where_there_is_no_gpu():
    with pytest.raises(NotImplementedError, match="'cudnn' does not support the back end 'cpu'"):
        cudnn_attention(cudnn_inputs())
