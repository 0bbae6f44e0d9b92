"""What becomes of the grouped products in compiled programs: grouped kernels, exact FLOPs, no large array."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from tests.marks import all_but
from zoo.ahead_of_time.gpu import A100, B200, H200, TARGETS, has_cuda_wheels, lower_for_gpu
from zoo.ahead_of_time.gpu_registers import compile_with_facts
from zoo.ahead_of_time.tpu import TARGETS as TPU_TARGETS
from zoo.ahead_of_time.tpu import compile_for_tpu, has_libtpu
from zoo.kernels.grouped_matmul import grouped_matmul

ROWS, INNER, OUTER, GROUPS = 2048, 256, 512, 16
NAMES = ["grouped_matmul", "grouped_matmul_outer", "grouped_matmul_transposed"]


def products(rows=ROWS, inner=INNER, outer=OUTER, groups=GROUPS, dtype=jnp.bfloat16):
    """(function, shapes): the product, the gradient of the rows and that of the matrices."""

    def run(lhs, rhs, d_out, sizes):
        out, pull = jax.vjp(lambda lhs, rhs: grouped_matmul(lhs, rhs, sizes), lhs, rhs)
        return out, *pull(d_out)

    shapes = [jax.ShapeDtypeStruct(s, dtype) for s in ((rows, inner), (groups, inner, outer), (rows, outer))]
    return run, (*shapes, jax.ShapeDtypeStruct((groups,), jnp.int32))


def largest_array(text: str) -> int:
    """Elements of the largest array that a program names."""
    shapes = re.findall(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]", text)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def test_on_cpu_no_array_is_larger_than_the_matrices():
    function, shapes = products(dtype=jnp.float32)
    compiled = jax.jit(function).lower(*shapes).compile()
    assert largest_array(compiled.as_text()) == GROUPS * INNER * OUTER < ROWS * GROUPS * INNER
    # The sum of one matrix, and blocks of rows: the results are written in place.
    assert compiled.memory_analysis().temp_size_in_bytes <= 4 * (3 * INNER * OUTER + 2 * ROWS * OUTER)


@pytest.mark.skipif(not has_libtpu(), reason="libtpu is not installed (it comes with the extra `tpu`)")
@pytest.mark.parametrize("target", all_but(["v5e"], list(TPU_TARGETS)))
def test_on_tpu_three_grouped_kernels_do_two_flops_for_each_of_mkn(target):
    function, shapes = products()
    compiled = compile_for_tpu(function, *shapes, target=TPU_TARGETS[target])
    text = compiled.as_text()
    calls = re.findall(r"%([a-z_]+)[.\d]* = [^=\n]* custom-call\([^\n]*\"tpu_custom_call\"", text)
    kernels = [re.sub(r"^(transpose_|jvp_)*|_*$", "", call) for call in calls]
    assert sorted(kernels) == NAMES
    assert compiled.cost_analysis()["flops"] == pytest.approx(3 * 2 * ROWS * INNER * OUTER, rel=0.01)
    assert largest_array(text) == GROUPS * INNER * OUTER < ROWS * GROUPS * INNER
    # The gradient of the rows reads the matrices as they lie.
    assert f"bf16[{GROUPS},{OUTER},{INNER}]" not in text
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20


@pytest.mark.slow
@pytest.mark.skipif(not has_libtpu(), reason="libtpu is not installed (it comes with the extra `tpu`)")
@pytest.mark.parametrize("target", TPU_TARGETS)
@pytest.mark.parametrize("shape", [(8192, 4096, 14336, 8), (8192, 2048, 1408, 64), (16, 4096, 14336, 8)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_tiles_of_large_models_fit_the_memory_of_every_chip(target, shape, dtype):
    function, shapes = products(*shape, dtype=dtype)
    compiled = compile_for_tpu(function, *shapes, target=TPU_TARGETS[target])
    assert compiled.cost_analysis()["flops"] == pytest.approx(3 * 2 * math.prod(shape[:3]), rel=0.01)


def test_for_gpu_the_products_are_lowered_to_grouped_triton_kernels():
    function, shapes = products()
    text = lower_for_gpu(function, *shapes, target=H200).as_text()
    assert sorted(re.findall(r'name = "(grouped_matmul[a-z_]*)"', text)) == NAMES
    assert "chlo.ragged_dot" not in text and "stablehlo.dot" not in text


needs_cuda = pytest.mark.skipif(not has_cuda_wheels(), reason="needs the CUDA wheels: pip install jax-flax-zoo[cuda]")


@functools.cache
def compiled_for_gpu(name, dtype, shape):
    function, shapes = products(*shape, dtype=dtype)
    compiled, facts = compile_with_facts(function, *shapes, target=TARGETS[name])
    return compiled, {kernel.name: kernel for kernel in facts}


@pytest.mark.gpu_compile
@needs_cuda
@pytest.mark.parametrize("shape", [(8192, 4096, 14336, 8), (8191, 2052, 1412, 64), (128, 4096, 14336, 8)], ids=str)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", TARGETS)
def test_no_gpu_tile_spills_or_exceeds_the_shared_memory(name, dtype, shape):
    _, kernels = compiled_for_gpu(name, dtype, shape)
    kernels = {name: kernel for name, kernel in kernels.items() if name.startswith("grouped_matmul")}
    assert sorted(kernels) == NAMES
    for kernel in kernels.values():
        assert kernel.spill_stores == kernel.spill_loads == 0, kernel
        assert 0 < kernel.shared_memory <= TARGETS[name].shared_memory_per_block, kernel


@pytest.mark.gpu_compile
@needs_cuda
@pytest.mark.parametrize(
    ("target", "instruction"), [(A100, "mma.sync"), (H200, "wgmma.mma_async"), (B200, "tcgen05.mma")]
)
def test_gpu_kernels_use_the_matrix_instruction_of_their_generation_and_are_alone(target, instruction):
    compiled, kernels = compiled_for_gpu(target.name, jnp.bfloat16, (8192, 4096, 14336, 8))
    for name in NAMES:
        counts = kernels[name].matrix_instructions
        assert [kind for kind, count in counts.items() if count] == [instruction]
    # No other kernel multiplies matrices, and what they need besides is a list of steps.
    assert not any(sum(kernel.matrix_instructions.values()) for name, kernel in kernels.items() if name not in NAMES)
    assert "cublas" not in compiled.as_text()
    assert largest_array(compiled.as_text()) == 8 * 4096 * 14336
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20
