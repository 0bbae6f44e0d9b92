"""GPU programs compiled without a GPU: what the kernels of local attention take of registers and memory."""

import functools
import math
import re
import subprocess
import warnings
from typing import cast

import jax
import jax.numpy as jnp
import pytest

from zoo.ahead_of_time import gpu
from zoo.ahead_of_time.gpu import (
    A100,
    H200,
    TARGETS,
    CudaWheelsMissing,
    compile_for_gpu,
    has_cuda_wheels,
    lower_for_gpu,
)
from zoo.ahead_of_time.gpu_registers import _ptxas_reports, compile_with_facts, find_ptxas
from zoo.kernels.attention.inputs import AttentionInputs
from zoo.kernels.local_attention.gpu import local_attention_gpu
from zoo.kernels.local_attention.gpu_tiles import HOPPER_TILES, Pass

needs_cuda = [
    pytest.mark.gpu_compile,
    pytest.mark.skipif(not has_cuda_wheels(), reason="needs the CUDA wheels: pip install jax-flax-zoo[cuda]"),
]


def gpu_compile(test):
    """The marks of a test that compiles for GPUs."""
    for mark in needs_cuda:
        test = mark(test)
    return test


def attention_and_gradients(
    length,
    head_dim,
    *,
    heads=16,
    kv_heads=8,
    window: int | None = 4096,
    soft_cap=50.0,
    segments=False,
    dtype=jnp.bfloat16,
    blocks=(None, None),
):
    """(function, shapes of its arguments): local attention of Gemma 2 9B, forward and backward."""

    def shape(heads):
        return jax.ShapeDtypeStruct((1, length, heads, head_dim), dtype)

    def run(query, key, value, weight, positions):
        def attention(query, key, value):
            inputs = AttentionInputs(
                query=query,
                key=key,
                value=value,
                scale=head_dim**-0.5,
                causal=True,
                sliding_window=window,
                logits_soft_cap=soft_cap,
                query_positions=positions,
                key_positions=positions,
                query_segment_ids=positions if segments else None,
                key_segment_ids=positions if segments else None,
                ordered_positions=True,
            )
            return local_attention_gpu(inputs, block_q=blocks[0], block_k=blocks[1])

        out, pull = jax.vjp(attention, query, key, value)
        return out, pull(weight)

    positions = jax.ShapeDtypeStruct((1, length), jnp.int32)
    return run, (shape(heads), shape(kv_heads), shape(kv_heads), shape(heads), positions)


@functools.cache
def compiled(name, length, head_dim, **options):
    function, shapes = attention_and_gradients(length, head_dim, **options)
    return compile_with_facts(function, *shapes, target=TARGETS[name])


def kernels(name, length, head_dim, **options):
    facts = compiled(name, length, head_dim, **options)[1]
    return {x.name.removeprefix("local_attention_"): x for x in facts if x.name.startswith("local_attention_")}


@gpu_compile
@pytest.mark.parametrize("options", [{}, {"soft_cap": None, "segments": True}], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("name", TARGETS)
def test_no_default_tile_spills_or_exceeds_the_shared_memory(name, head_dim, options):
    found = kernels(name, 8192, head_dim, **options)
    keys = {"key_gradient", "value_gradient"} if head_dim == 256 else {"key_value_gradient"}
    assert found.keys() == {"forward", "query_gradient"} | keys
    limit = TARGETS[name].shared_memory_per_block if name != "A100" else 99 * 1024  # The tiles are for small GPUs too.
    for kernel in found.values():
        assert kernel.spill_stores == kernel.spill_loads == 0, kernel
        assert 0 < kernel.shared_memory <= limit, kernel
        assert 0 < kernel.registers <= 255, kernel


@gpu_compile
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("name", ["A100", "H200"])
def test_float32_tiles_do_not_spill_either(name, head_dim):
    for kernel in kernels(name, 8192, head_dim, dtype=jnp.float32).values():
        assert kernel.spill_stores == kernel.spill_loads == 0, kernel
        assert 0 < kernel.shared_memory <= 99 * 1024, kernel


@gpu_compile
@pytest.mark.parametrize(
    ("name", "instruction"), [("A100", "mma.sync"), ("H200", "wgmma.mma_async"), ("B200", "tcgen05.mma")]
)
def test_every_generation_uses_its_own_matrix_instruction(name, instruction):
    for kernel in kernels(name, 8192, 256).values():
        assert [kind for kind, count in kernel.matrix_instructions.items() if count] == [instruction], kernel


@gpu_compile
@pytest.mark.parametrize("head_dim", [128, 256])
def test_scores_are_not_computed_twice_on_hopper(head_dim):
    """With 64 rows and eight warps Triton would let both halves of the warps compute all scores."""
    products = {"forward": (1, 1), "query_gradient": (2, 1), "key_gradient": (2, 1), "value_gradient": (1, 1)}
    for name, kernel in kernels("H200", 8192, head_dim).items():
        tile = HOPPER_TILES[cast(Pass, name), head_dim, 2]
        over_head_dim, over_tile = products.get(name, (2, 2))
        summed = tile.block_k if name in ("forward", "query_gradient") else tile.rows
        # Each instruction sums over 16; a warp group has 64 rows. There is a loop with a mask and one without.
        needed = 2 * (over_head_dim * head_dim + over_tile * summed) // 16
        assert kernel.matrix_instructions["wgmma.mma_async"] == needed, kernel


@gpu_compile
@pytest.mark.parametrize("length", [8192, 8191])
def test_no_buffer_grows_with_the_square_of_the_length_or_with_the_window(length):
    text = compiled("H200", length, 256, heads=2, kv_heads=1, segments=True)[0].as_text()
    shapes = [tuple(map(int, shape.split(","))) for shape in re.findall(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]", text)]
    assert max(map(math.prod, shapes)) == length * 2 * 256 < length * 4096


@gpu_compile
def test_temporary_memory_is_linear_in_the_length():
    short, long = (compiled("H200", length, 256)[0].memory_analysis().temp_size_in_bytes for length in (8192, 32768))
    assert 3.9 < long / short < 4.1
    # lse and mean, float32 per query and head, and a few integers per block.
    assert long < 1.1 * 2 * 4 * 32768 * 16


@gpu_compile
def test_the_grid_grows_with_the_length_only():
    short, long = (kernels("H200", length, 256) for length in (8192, 32768))
    for name in short:
        assert math.prod(long[name].grid) == 4 * math.prod(short[name].grid)
    # 64 queries of both heads of a group, or 128 keys, to a block; one column of the grid per key/value head.
    assert short["forward"].grid == (8192 // 64, 8, 1)
    assert short["key_gradient"].grid == (8192 // 128, 8, 1)


@gpu_compile
def test_a_tile_that_exceeds_the_shared_memory_is_found():
    function, shapes = attention_and_gradients(1024, 256, blocks=(128, 128))
    with pytest.raises(jax.errors.JaxRuntimeError, match="[Ss]hared memory"):
        compile_for_gpu(function, *shapes, target=A100)


@gpu_compile
def test_compiling_twice_gives_the_same_facts_whatever_the_compilation_cache_holds():
    shape = jax.ShapeDtypeStruct((256,), jnp.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (compile_with_facts(lambda x: jnp.cumsum(x) * 3, shape, target=H200)[1] for _ in range(2))
    assert first == second and len(first) > 0
    assert jax.config.jax_enable_compilation_cache


@gpu_compile
def test_spills_are_counted():
    spilled = kernels("H200", 1024, 128, dtype=jnp.float32, blocks=(16, 32))["forward"]
    assert spilled.registers == 255
    assert spilled.spill_stores > 100 and spilled.spill_loads > 100


@gpu_compile
def test_ptxas_refuses_what_is_no_ptx(tmp_path):
    path = tmp_path / "code.ptx"
    path.write_text("nonsense")
    with pytest.raises(RuntimeError, match="ptxas refused code.ptx for sm_90a"):
        _ptxas_reports(path, H200)
    assert "release" in subprocess.run([find_ptxas(), "--version"], capture_output=True, text=True, check=True).stdout


def test_without_the_cuda_wheels_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    with pytest.raises(CudaWheelsMissing, match=r"needs the CUDA wheels.*pip install jax-flax-zoo\[cuda\]"):
        compile_for_gpu(lambda x: x + 1, jax.ShapeDtypeStruct((8,), jnp.float32), target=H200)


def test_lowering_needs_no_cuda_wheels_and_takes_pytrees():
    shape = jax.ShapeDtypeStruct((8, 8), jnp.bfloat16)
    lowered = lower_for_gpu(lambda tree: tree["a"] @ tree["b"], {"a": shape, "b": shape}, target=H200)
    assert "dot_general" in lowered.as_text()


@pytest.mark.parametrize(
    ("name", "ptx_target"), [("A100", "sm_80"), ("H100", "sm_90a"), ("H200", "sm_90a"), ("B200", "sm_100a")]
)
def test_targets_have_the_architecture_that_ptxas_knows(name, ptx_target):
    assert TARGETS[name].ptx_target == ptx_target
