"""FLOPs and bytes of compiled programs, groups of collectives, times of links."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo.ahead_of_time import tpu
from zoo.ahead_of_time.collectives import CollectiveReader
from zoo.ahead_of_time.costs import collective_kind, hbm_bytes, matrix_flops
from zoo.ahead_of_time.hlo import parse_program
from zoo.ahead_of_time.interconnect import Network, links_of
from zoo.ahead_of_time.replica_groups import parse_groups, varying_axes


def one_instruction(line: str, operands: str = "", before: str = "") -> tuple:
    """(program, its entry, the instruction named %it)."""
    header = "HloModule m, is_scheduled=true, num_partitions=8"
    program = parse_program(f"{header}\n\n{before}ENTRY %main () -> f32[] {{\n{operands}  {line}\n}}\n")
    return program, program.main, program.main.by_name["it"]


def test_the_products_of_a_scan_count_as_often_as_those_of_unrolled_layers():
    def f(x, w, unroll):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w, unroll=unroll)[0]

    x, w = jnp.zeros((8, 16)), jnp.zeros((5, 16, 24))
    w = w[..., :16]
    for unroll in (False, True):
        compiled = jax.jit(f, static_argnums=2).lower(x, w, unroll).compile()
        program = parse_program(compiled.as_text())
        assert sum(e.times * matrix_flops(program, e.computation, e.instruction) for e in program.walk()) == (
            5 * 2 * 8 * 16 * 16
        )


@pytest.mark.parametrize("window", [(1, 4), (3, 4), (4, 4)], ids=str)
def test_a_convolution_counts_the_products_with_elements_that_exist(window):
    # As a TPU writes "btd,dnh->btnh": 4 heads are a window over a single element, padded on both sides.
    size, heads = window
    operands = f"  %a = bf16[32,48,{size}]{{2,1,0}} parameter(0)\n  %b = bf16[48,{heads},8]{{2,1,0}} parameter(1)\n"
    out = size + 2 * (heads - 1) - heads + 1
    line = (
        f"ROOT %it = bf16[32,{out},8]{{2,1,0}} convolution(%a, %b), window={{size={heads} pad={heads - 1}_{heads - 1} "
        "rhs_reversal=1}, dim_labels=bf0_i0o->b0f"
    )
    assert matrix_flops(*one_instruction(line, operands)) == 2 * 32 * 48 * 8 * size * heads


def test_strided_and_dilated_convolutions_match_a_count_by_hand():
    x, k = np.ones((2, 9, 3)), np.ones((4, 3, 5))
    for options in ({"window_strides": (2,)}, {"lhs_dilation": (2,)}, {"rhs_dilation": (2,)},
                    {"window_strides": (3,), "lhs_dilation": (2,)}):  # fmt: skip
        settings = {"window_strides": (1,), "padding": [(2, 3)], **options}

        def f(a, b, settings=settings):
            return jax.lax.conv_general_dilated(a, b, dimension_numbers=("NWC", "WIO", "NWC"), **settings)

        out = f(x, k)  # of ones: each element is the number of products that it sums
        program = parse_program(jax.jit(f).lower(x, k).compiler_ir("hlo").as_hlo_text())
        found = sum(matrix_flops(program, e.computation, e.instruction) for e in program.walk())
        assert found == 2 * float(out.sum())


def test_a_product_that_a_library_computes_counts_like_any_other():
    operands = "  %a = bf16[32,48]{1,0} parameter(0)\n  %b = bf16[48,8]{1,0} parameter(1)\n"
    line = (
        'ROOT %it = (bf16[32,8]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", '
        'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
    )
    assert matrix_flops(*one_instruction(line, operands)) == 2 * 32 * 48 * 8


def test_bytes_are_those_of_operands_and_result_outside_of_vector_memory():
    operands = "  %a = f32[64,128]{1,0} parameter(0)\n  %b = f32[64,128]{1,0:T(8,128)S(1)} parameter(1)\n"
    assert hbm_bytes(*one_instruction("ROOT %it = f32[64,128]{1,0} add(%a, %b)", operands)) == 2 * 64 * 128 * 4


def test_a_fusion_that_takes_one_layer_of_the_stack_reads_only_that():
    before = (
        "%f (p: f32[23,64,128], i: s32[]) -> bf16[64,128] {\n  %p = f32[23,64,128]{2,1,0} parameter(0)\n"
        "  %i = s32[] parameter(1)\n  %z = s32[] constant(0)\n"
        "  %s = f32[1,64,128]{2,1,0} dynamic-slice(%p, %i, %z, %z), dynamic_slice_sizes={1,64,128}\n"
        "  %c = bf16[1,64,128]{2,1,0} convert(%s)\n  ROOT %r = bf16[64,128]{1,0} bitcast(%c)\n}\n\n"
    )
    operands = "  %a = f32[23,64,128]{2,1,0} parameter(0)\n  %n = s32[] parameter(1)\n"
    line = "ROOT %it = bf16[64,128]{1,0} fusion(%a, %n), kind=kLoop, calls=%f"
    assert hbm_bytes(*one_instruction(line, operands, before)) == 64 * 128 * (4 + 2) + 4


@pytest.mark.parametrize(
    ("text", "first", "axes"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", [0, 1, 2, 3], ("data", "tensor")),
        ("[4,2]<=[8]", [0, 1], ("tensor",)),
        ("[4,2]<=[2,4]T(1,0)", [0, 4], ("fsdp",)),
        ("mesh['a'=2,'b'=4] {'b'}", [0, 1, 2, 3], ("data", "tensor")),
        ("mesh['a'=2,'b'=4] {'a'}", [0, 4], ("fsdp",)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [0, 4], ("fsdp",)),
        ("mesh['a'=8] {'a':(2)2}", [0, 2], ("data",)),
        ("{}", [0, 1, 2, 3, 4, 5, 6, 7], ("fsdp", "data", "tensor")),
    ],
)
def test_groups_in_every_notation(text, first, axes):
    groups = parse_groups(text, 8)
    assert groups[0].tolist() == first
    assert sorted(groups.ravel().tolist()) == list(range(8))
    assert varying_axes(groups, {"fsdp": 2, "data": 2, "tensor": 2}) == axes


def test_the_axes_of_a_real_collective_are_found():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))

    def f(x):
        return jax.lax.with_sharding_constraint(x.sum(0), NamedSharding(mesh, PartitionSpec()))

    for axes in (("data",), ("fsdp", "tensor")):
        x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(axes, None)))
        program = parse_program(jax.jit(f).lower(x).compile().as_text())
        reader = CollectiveReader(program, mesh.shape, None)
        (found,) = [reader.read(e.computation, e.instruction) for e in program.walk() if collective_kind(e.instruction)]
        assert (found.kind, found.axes, found.bytes) == ("all-reduce", axes, 64)


def slice_of(*sizes: int, slices: int = 1) -> list[SimpleNamespace]:
    """Devices of a slice in the order of its coordinates."""
    return [SimpleNamespace(coords=place, slice_index=index) for index in range(slices) for place in np.ndindex(*sizes)]


def test_a_whole_dimension_of_a_torus_is_a_ring_and_a_part_of_it_a_line():
    network, link = Network(slice_of(4, 8, 1), links_of(tpu.V5P)), 9e10
    along_y = np.arange(32).reshape(4, 8)
    everywhere, half = np.arange(32)[None], along_y.reshape(8, 4)
    size = 8e9
    assert network.dimensions(along_y) == ("y",) and network.dimensions(everywhere) == ("x", "y")
    gather = network.seconds("all-gather", along_y, size / 8, size)
    assert gather == pytest.approx(size * 7 / 8 / (2 * link))
    assert network.seconds("all-reduce", along_y, size, size) == pytest.approx(2 * gather)
    assert network.seconds("reduce-scatter", half, size, size / 4) == pytest.approx(size * 3 / 4 / link)
    assert network.seconds("all-gather", everywhere, size / 32, size) == pytest.approx(size * 31 / 32 / (4 * link))
    # A small message takes the time of its hops, half-way round each ring.
    assert network.seconds("all-gather", everywhere, 1, 32) == pytest.approx((2 + 4) * 1e-6)
    assert Network(slice_of(4, 4, 1), links_of(tpu.V5E)).seconds(
        "all-gather", np.arange(4)[None], size / 4, size
    ) == pytest.approx(size * 3 / 4 / 4.5e10)


def test_a_permute_takes_its_hops_and_what_crosses_slices_the_slow_network():
    network = Network(slice_of(8, 1, 1, slices=2), links_of(tpu.V5P))
    shift = np.array([(i, (i + 1) % 8) for i in range(8)])
    assert network.seconds("collective-permute", shift, 9e10, 9e10) == pytest.approx(1 + 1e-6)
    across = np.arange(16).reshape(2, 8).T
    assert network.dimensions(across) == ("DCN",)
    assert network.seconds("all-reduce", across, 6.25e9, 6.25e9) == pytest.approx(1.0)
    both = network.seconds("all-reduce", np.arange(16)[None], 6.25e9, 6.25e9)
    assert math.isclose(both, 2 * 6.25e9 * 7 / 8 / 1.8e11 + 1 / 8, rel_tol=1e-6)
