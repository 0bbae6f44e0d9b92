"""The Hopper kernels in JAX's interpreter of Mosaic GPU (float64, races detected), and lowered for the H100."""

import logging
import os
import re
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

from zoo.ahead_of_time.gpu import A100, H100, has_cuda_wheels, lower_for_gpu
from zoo.kernels.attention.inputs import AttentionInputs, check_inputs
from zoo.kernels.attention.reference import reference_attention
from zoo.kernels.attention.xla import xla_attention
from zoo.kernels.local_attention import hopper
from zoo.kernels.local_attention.hopper import DEFAULT_BLOCKS, Blocks, local_attention_hopper
from zoo.kernels.local_attention.hopper_pipeline import Ring

if jax.__version_info__ >= (0, 11):
    pytest.skip("JAX 0.12's interpreter reports a race; see docs/decisions.md, 2026-11-25", allow_module_level=True)

SMALL_BLOCKS = Blocks(64, 2, 64, (2, 1), 64, 2)


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """float64 in all threads, because the interpreter has its own; and each kernel compiled once, not per thread."""
    programs, lock = {}, threading.Lock()

    def run(jaxpr, constants, *arguments):
        with lock:
            if id(jaxpr) not in programs:
                program = jax.jit(lambda *x: jax.core.eval_jaxpr(jaxpr, *x) and None)
                programs[id(jaxpr)] = jaxpr, program.trace(constants, *arguments).lower().compile()
        programs[id(jaxpr)][1](constants, *arguments)

    monkeypatch.setattr(thread_map, "_run_jaxpr", run)
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
    gpu_callbacks.reset_gpu_interpret_mode_state()


def make_inputs(
    lengths=(128, 128),
    heads=(2, 1),
    head_dim=64,
    batch=1,
    dtype=jnp.float64,
    magnitude=1.0,
    positions=None,
    segment_ids=None,
    **options,
) -> AttentionInputs:
    random = np.random.default_rng(0)
    shapes = [(batch, length, count, head_dim) for length, count in zip((*lengths, lengths[1]), (*heads, heads[1]))]
    query, key, value = (jnp.asarray(random.normal(size=shape), dtype) for shape in shapes)
    query_positions, key_positions = positions or (None, None)
    query_segment_ids, key_segment_ids = segment_ids or (None, None)
    defaults = dict(causal=True, sliding_window=None, logits_soft_cap=None, ordered_positions=False)
    return check_inputs(
        query * magnitude,
        key,
        value,
        scale=head_dim**-0.5,
        query_positions=query_positions,
        key_positions=key_positions,
        query_segment_ids=query_segment_ids,
        key_segment_ids=key_segment_ids,
        **(defaults | options),
    )


def with_gradients(attention, inputs: AttentionInputs, dtype):
    """(output, gradients of query, key and value) for a fixed gradient of the output."""
    gradient = jnp.asarray(np.random.default_rng(1).normal(size=inputs.query.shape), dtype)

    def of(query, key, value):
        return attention(AttentionInputs(**(vars(inputs) | {"query": query, "key": key, "value": value})))

    arrays = (x.astype(dtype) for x in (inputs.query, inputs.key, inputs.value))
    out, pull_back = jax.vjp(of, *arrays)
    return out, *pull_back(gradient.astype(out.dtype))


def interpreted(inputs: AttentionInputs, blocks: Blocks | None = SMALL_BLOCKS):
    return local_attention_hopper(inputs, blocks=blocks, interpret=True)


def packed(length, *starts):
    """Segment ids [1, length] that rise by one at each start, and a last one that no key has."""
    return jnp.searchsorted(jnp.asarray(starts), jnp.arange(length), side="right").astype(jnp.int32)[None]


CASES = {
    "window and cap": dict(sliding_window=70, logits_soft_cap=5.0),
    "no cap": dict(sliding_window=70),
    "cap above 80": dict(sliding_window=70, logits_soft_cap=100.0),
    "window 1": dict(sliding_window=1, logits_soft_cap=50.0),
    "no window, not causal": dict(causal=False, lengths=(64, 192)),
    "window, not causal, odd length": dict(causal=False, sliding_window=33, lengths=(150, 150)),
    "one head, odd length": dict(heads=(1, 1), lengths=(200, 200), sliding_window=65, logits_soft_cap=50.0),
    "four heads": dict(heads=(4, 1), sliding_window=64),
    "three heads of two": dict(heads=(6, 2), lengths=(64, 64)),
    "interior blocks": dict(lengths=(320, 320), heads=(1, 1), sliding_window=200, logits_soft_cap=50.0),
    "saturated": dict(sliding_window=70, logits_soft_cap=50.0, magnitude=100.0),
    "saturated without cap": dict(sliding_window=70, magnitude=100.0),
    "segments": dict(lengths=(256, 256), heads=(1, 1), segment_ids=(packed(256, 30, 140),) * 2, logits_soft_cap=5.0),
    "queries that see nothing": dict(segment_ids=(packed(128, 40), packed(128, 90)), sliding_window=20),
    "queries that see nothing, capped": dict(
        segment_ids=(packed(128, 40), packed(128, 90)), sliding_window=20, logits_soft_cap=5.0
    ),
    "later queries": dict(
        lengths=(64, 192),
        positions=(jnp.arange(128, 192)[None], jnp.arange(192)[None]),
        ordered_positions=True,
        sliding_window=80,
    ),
    "positions in any order": dict(
        positions=(jnp.arange(128)[None, ::-1], jnp.roll(jnp.arange(128), 17)[None]), sliding_window=40
    ),
    "two sequences": dict(batch=2, lengths=(64, 64), segment_ids=(jnp.asarray([[0] * 64, [0] * 20 + [1] * 44]),) * 2),
    "head size 128": dict(head_dim=128, sliding_window=70, logits_soft_cap=50.0),
    "head size 256": dict(head_dim=256, sliding_window=70, logits_soft_cap=50.0),
    "head size 256, no cap": dict(head_dim=256, sliding_window=70),
}
QUICK = ("queries that see nothing",)


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES])
def test_output_and_gradients_equal_the_reference_in_float64_without_races(case):
    inputs = make_inputs(**CASES[case])
    ours = with_gradients(interpreted, inputs, jnp.float64)
    assert not gpu_callbacks.get_races().races_found
    for one, other in zip(ours, with_gradients(reference_attention, inputs, jnp.float64), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * max(1, float(jnp.abs(other).max())))


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", DEFAULT_BLOCKS)
def test_default_blocks_give_the_reference(head_dim):
    inputs = make_inputs(head_dim=head_dim, lengths=(320, 320), sliding_window=200, logits_soft_cap=50.0)
    ours = with_gradients(lambda x: interpreted(x, None), inputs, jnp.float64)
    assert not gpu_callbacks.get_races().races_found
    for one, other in zip(ours, with_gradients(reference_attention, inputs, jnp.float64), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * max(1, float(jnp.abs(other).max())))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("cap", [None, 50.0])
def test_error_in_16_bits_is_no_larger_than_that_of_xla(dtype, cap):
    """Root mean squares: the largest error is that of rounding the largest result, for both."""
    inputs = make_inputs(lengths=(256, 256), dtype=dtype, sliding_window=100, logits_soft_cap=cap)
    exact = with_gradients(reference_attention, inputs, jnp.float64)
    ours, xla = (with_gradients(attention, inputs, dtype) for attention in (interpreted, xla_attention))
    for one, other, truth in zip(ours, xla, exact, strict=True):
        error, allowed = (float(jnp.square(x.astype(jnp.float64) - truth).mean() ** 0.5) for x in (one, other))
        assert error <= 1.1 * allowed


def test_a_consumer_that_frees_a_block_before_it_reads_it_is_found(monkeypatch):
    wait, free = Ring.wait, Ring.free

    def wait_and_free(self, step):
        block = wait(self, step)
        free(self, step)
        return block

    monkeypatch.setattr(Ring, "wait", wait_and_free)
    monkeypatch.setattr(Ring, "free", lambda self, step: None)
    jax.block_until_ready(interpreted(make_inputs(lengths=(256, 256), heads=(1, 1))))
    assert gpu_callbacks.get_races().races_found


@pytest.mark.parametrize("head_dim", DEFAULT_BLOCKS)
def test_forward_and_backward_lower_for_the_h100(head_dim):
    """Lowering refuses more than 227 KB of shared memory, and layouts that do not fit together."""
    text = lower_for_gpu(layer, *layer_shapes(head_dim), target=H100).as_text()
    for kernel in ("forward", "query_gradient", "key_gradients"):
        assert f"local_attention_hopper_{kernel}" in text


def layer(query, key, value, segment_ids):
    def loss(query, key, value):
        inputs = check_inputs(
            query,
            key,
            value,
            scale=0.1,
            causal=True,
            sliding_window=4096,
            logits_soft_cap=None if query.dtype == jnp.float16 else 50.0,
            query_positions=None,
            key_positions=None,
            query_segment_ids=segment_ids,
            key_segment_ids=segment_ids,
            ordered_positions=True,
        )
        return local_attention_hopper(inputs).astype(jnp.float32).sum()

    return jax.grad(loss, (0, 1, 2))(query, key, value)


def layer_shapes(head_dim, dtype=jnp.bfloat16):
    query = jax.ShapeDtypeStruct((1, 8192, 16, head_dim), dtype)
    key = jax.ShapeDtypeStruct((1, 8192, 8, head_dim), dtype)
    return query, key, key, jax.ShapeDtypeStruct((1, 8192), jnp.int32)


REGISTERS = """
import jax.numpy as jnp
from tests.kernels.test_local_attention_hopper import layer, layer_shapes
from zoo.ahead_of_time.gpu import TARGETS, compile_for_gpu
for dtype in (jnp.bfloat16, jnp.float16):
    compile_for_gpu(layer, *layer_shapes({head_dim}, dtype), target=TARGETS["{target}"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not has_cuda_wheels(), reason="needs the CUDA wheels: pip install -e '.[cuda]'")
@pytest.mark.parametrize("target", ["H100", "H200"])
@pytest.mark.parametrize("head_dim", DEFAULT_BLOCKS)
def test_ptxas_spills_no_register(head_dim, target, repository):
    """Mosaic GPU has its own compiler, whose report of ptxas goes to standard output."""
    environment = os.environ | {"MOSAIC_GPU_DUMP_PTXAS": "1", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    script = REGISTERS.format(head_dim=head_dim, target=target)
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, env=environment, capture_output=True, text=True, check=True
    )
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", run.stdout + run.stderr)
    assert spills == [("0", "0")] * 6


def test_what_the_kernel_lacks_is_refused():
    with pytest.raises(NotImplementedError, match="'mosaic_gpu' takes head sizes 64, 128 and 256, not 32"):
        local_attention_hopper(make_inputs(head_dim=32))
    with pytest.raises(NotImplementedError, match="'mosaic_gpu' takes bfloat16 and float16, not float32"):
        local_attention_hopper(make_inputs(dtype=jnp.float32))
    with pytest.raises(NotImplementedError, match="'mosaic_gpu' is for Hopper GPUs .H100, H200., not NVIDIA A100"):
        lower_for_gpu(layer, *layer_shapes(64), target=A100)


def test_use_on_hardware_logs_that_it_is_not_verified_there(caplog):
    hopper._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        lower_for_gpu(layer, *layer_shapes(64, jnp.float16), target=H100)
    assert "not verified on hardware" in caplog.text
