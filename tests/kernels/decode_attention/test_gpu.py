"""The GPU kernels as Triton lowers them for real GPUs; no GPU and no CUDA package is needed."""

import functools

import jax.numpy as jnp
import pytest

from tests.kernels.decode_attention.cases import DecodeCase, abstract
from zoo.ahead_of_time.gpu import TARGETS, has_cuda_wheels, lower_for_gpu
from zoo.ahead_of_time.gpu_registers import compile_with_facts
from zoo.kernels.decode_attention.gpu import gpu_decode_attention

GEMMA2_9B = DecodeCase(1, 8, 2, 256, 4096, 4096)
GEMMA2_27B = DecodeCase(8, 16, 2, 128, 8192, None)
ODD = DecodeCase(3, 1, 3, 64, 301, 301)
CASES = [
    (GEMMA2_9B, "bfloat16", "bfloat16"),
    (GEMMA2_27B, "bfloat16", "bfloat16"),
    (ODD, "float32", "float32"),
    (ODD, "bfloat16", "float32"),
    (ODD, "float16", "float16"),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("case", "dtype", "cache_dtype"), CASES, ids=str)
def test_it_lowers_to_two_kernels_for_every_gpu(case, dtype, cache_dtype, target):
    for soft_cap in (50.0, None):
        call = functools.partial(gpu_decode_attention, **case.options(soft_cap))
        text = lower_for_gpu(call, *abstract(case, dtype, cache_dtype), target=TARGETS[target]).as_text()
        assert text.count("@__gpu$xla.gpu.triton") == 2


@pytest.mark.gpu_compile
@pytest.mark.skipif(not has_cuda_wheels(), reason="the CUDA wheels (extra `cuda`), which compile for GPUs, are missing")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("case", "dtype", "cache_dtype"), CASES, ids=str)
def test_it_compiles_without_spills_and_two_programs_fit_on_a_multiprocessor(case, dtype, cache_dtype, target):
    call = functools.partial(gpu_decode_attention, **case.options(50.0))
    _, facts = compile_with_facts(call, *abstract(case, dtype, cache_dtype), target=TARGETS[target])
    kernels = {kernel.name: kernel for kernel in facts if kernel.name.startswith("decode_attention")}
    assert kernels.keys() == {"decode_attention", "decode_attention_merge"}
    assert all(kernel.spill_stores == kernel.spill_loads == 0 for kernel in kernels.values())
    assert 2 * kernels["decode_attention"].shared_memory <= TARGETS[target].shared_memory_per_multiprocessor
    if jnp.dtype(dtype).itemsize == 2:
        assert kernels["decode_attention"].matrix_instructions["mma.sync"]
