"""Packed weights: the numbers they stand for, products and rows of them, and what compiled programs hold in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from tests.marks import slow
from zoo.ahead_of_time.tpu import TARGETS, compile_for_tpu, has_libtpu
from zoo.errors import UserError
from zoo.inference import generation
from zoo.inference.model import take_apart
from zoo.inference.sampling import Sampling
from zoo.interop import Packing, packed_model
from zoo.models import build
from zoo.nn import packed as packed_module
from zoo.nn.packed import PackedWeight, packed_expert_products, packed_product, packed_rows, unpack
from zoo.nn.parameters import project
from zoo.nn.quantise import quantise


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def squared_error(packed, weight) -> float:
    return float(np.square(np.asarray(unpack(packed, np.float32)) - weight).sum())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("equation", "inputs", "weight", "num_contracted"),
    [
        ("btd,df->btf", (2, 3, 64), (64, 40), 1),
        ("btd,dnh->btnh", (2, 3, 64), (64, 4, 8), 1),
        ("btnh,nhd->btd", (2, 3, 4, 16), (4, 16, 24), 2),
    ],
)
def test_project_takes_packed_weights_as_it_takes_arrays(equation, inputs, weight, num_contracted, bits):
    packed = quantise(random(*weight), bits, num_contracted=num_contracted)
    assert packed.shape == weight
    expected = jnp.einsum(equation, random(*inputs), unpack(packed, jnp.float32))
    np.testing.assert_allclose(project(equation, random(*inputs), packed), expected, atol=1e-4)


@pytest.mark.parametrize("rows", [96, 101], ids=["whole blocks", "a prime number of rows"])
def test_a_product_in_blocks_is_the_product(rows, monkeypatch):
    table = quantise(random(rows, 64), 4, num_contracted=1, is_table=True)
    whole = packed_product(random(3, 64), table, dtype=jnp.float32, precision=None)
    monkeypatch.setattr(packed_module, "BLOCK_ELEMENTS", {"cpu": 64 * 32})
    blocked = packed_product(random(3, 64), table, dtype=jnp.float32, precision=None)
    np.testing.assert_allclose(blocked, whole, atol=1e-5)
    index = np.array([rows - 1, 0])
    np.testing.assert_array_equal(packed_rows(table, index, jnp.float32), unpack(table, jnp.float32)[index])


@pytest.mark.parametrize("sizes", [(5, 0, 3, 1), (0, 0, 0, 0), (1, 2, 0, 7)], ids=str)
def test_rows_meet_the_packed_matrix_of_their_expert_and_rows_of_none_give_zero(sizes, monkeypatch):
    monkeypatch.setattr(packed_module, "EXPERT_ROWS", 4)
    matrices = random(4, 32, 24)
    weight = jax.tree.map(lambda *parts: jnp.stack(parts), *(quantise(each, 4, num_contracted=1) for each in matrices))
    rows = random(10, 32)
    found = jax.jit(packed_expert_products, static_argnames="precision")(rows, weight, jnp.array(sizes), precision=None)
    ids = np.repeat(np.arange(len(sizes)), sizes)
    matrices = np.asarray(unpack(weight, jnp.float32))
    expected = np.zeros((10, 24), np.float32)
    expected[: len(ids)] = np.einsum("rk,rko->ro", rows[: len(ids)], matrices[ids])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_experts_with_equally_many_rows_meet_their_packed_matrices():
    weight = jax.tree.map(
        lambda *parts: jnp.stack(parts), *(quantise(each, 8, num_contracted=1) for each in random(3, 32, 16))
    )
    rows = random(3, 2, 32)
    expected = jnp.einsum("erk,eko->ero", rows, unpack(weight, jnp.float32))
    np.testing.assert_allclose(packed_expert_products(rows, weight, None, precision=None), expected, atol=1e-5)


def test_a_program_never_holds_more_of_the_experts_than_a_part_of_one_of_them():
    struct, experts, width = jax.ShapeDtypeStruct, 8, 2048
    scales = struct((experts, width, width // 32), jnp.float16)
    weight = PackedWeight(struct((experts, width, width // 2), jnp.uint8), scales, 4, 32, (width,), (width,), False)
    product = lambda rows, weight, sizes: packed_expert_products(rows, weight, sizes, precision=None)  # noqa: E731
    compiled = jax.jit(product).lower(struct((2, width), jnp.float32), weight, struct((experts,), jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * width * width  # one expert's matrix in float32


def test_four_bits_lie_two_to_a_byte_the_first_half_of_a_row_in_the_low_ones():
    weight = np.zeros((1, 64), np.float32)
    weight[0, :3], weight[0, 32:35] = (-8, 1, 2), (-8, 3, 4)
    packed = quantise(weight, 4, num_contracted=1, is_table=True)
    assert packed.packed.shape == (1, 32) and packed.scales.tolist() == [[1, 1]]
    assert packed.packed[0, :4].tolist() == [0x00, 0xB9, 0xCA, 0x88]
    np.testing.assert_array_equal(unpack(packed, np.float32), weight)


def test_the_search_errs_less_than_the_scale_of_the_largest_element():
    weight = random(64, 128)
    searched = quantise(weight, 4, num_contracted=1, is_table=True)
    largest = quantise(weight, 4, num_contracted=1, is_table=True, search=False)
    assert squared_error(searched, weight) < 0.92 * squared_error(largest, weight)
    groups = weight.reshape(-1, 32)
    plain = np.abs(groups).max(1, keepdims=True) / 7
    rounded = np.square(np.round(groups / plain) * plain - groups).sum()
    assert squared_error(searched, weight) < 0.75 * rounded


@pytest.mark.parametrize("bits", [4, 8])
def test_a_group_of_zeros_stays_zero_and_too_large_weights_are_refused(bits):
    weight = random(2, 64)
    weight[1, 32:] = 0
    packed = quantise(weight, bits, num_contracted=1, is_table=True)
    assert not np.asarray(unpack(packed, np.float32))[1, 32:].any()
    with pytest.raises(UserError, match="too large for float16"):
        quantise(weight * 1e8, bits, num_contracted=1, is_table=True)


def test_groups_that_do_not_divide_and_conversions_are_refused():
    with pytest.raises(UserError, match="groups of 32 do not divide the 40"):
        quantise(random(40, 8), 4, num_contracted=1)
    with pytest.raises(UserError, match="not 3"):
        quantise(random(64, 8), 3, num_contracted=1)
    with pytest.raises(UserError, match="for inference"):
        quantise(random(64, 8), 4, num_contracted=1).astype(jnp.bfloat16)


def decode_memory(model) -> tuple[int, int]:
    """(bytes of the weights, of the largest temporaries of the decode program)."""
    structure, arrays = take_apart(model)
    programs = generation._programs(structure, Sampling(temperature=0), 0, None)
    tokens, none = np.ones((1, 4), np.int32), np.zeros(0, np.int32)
    keys = generation.row_keys(0, tokens, np.ones_like(tokens))
    arguments = (arrays, tokens, np.arange(4, dtype=np.int32)[None], None, keys, none)
    cache, last = jax.eval_shape(lambda *a: programs.prefill(*a, cache_length=8), *arguments)
    compiled = programs.decode.lower(arrays, cache, last, keys, none, 4).compile()
    return sum(array.nbytes for array in arrays), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("bits", [4, *slow(8)])
def test_the_decode_program_never_holds_unpacked_weights(bits, monkeypatch):
    # Each matrix of a layer is one block, which XLA would unpack for all layers at once; the head is eight.
    monkeypatch.setattr(packed_module, "BLOCK_ELEMENTS", {"cpu": 1 << 16})
    generation._programs.cache_clear()
    model = build(zoo.presets()["gemma2-nano"], rngs=nnx.Rngs(0))
    weights = sum(array.nbytes for array in take_apart(model)[1])
    packed_bytes, temporary = decode_memory(packed_model(model, Packing(bits=bits, search=False)))
    generation._programs.cache_clear()
    assert packed_bytes < weights * (0.15 if bits == 4 else 0.28)
    assert temporary < 0.25 * weights


@pytest.mark.skipif(not has_libtpu(), reason="libtpu is not installed (it comes with the extra `tpu`)")
def test_on_a_tpu_the_output_head_is_unpacked_in_its_own_memory_only():
    struct = jax.ShapeDtypeStruct
    rows, width = 256_000, 1024
    scales = struct((rows, width // 32), jnp.float16)
    head = PackedWeight(struct((rows, width // 2), jnp.uint8), scales, 4, 32, (width,), (rows,), True)
    product = lambda hidden, head: packed_product(hidden, head, dtype=jnp.float32, precision=None)  # noqa: E731
    compiled = compile_for_tpu(product, struct((1, width), jnp.bfloat16), head, target=TARGETS["v5e"])
    assert compiled.memory_analysis().temp_size_in_bytes < 0.05 * 2 * rows * width
