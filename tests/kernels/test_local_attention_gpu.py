"""The Triton kernel of local attention: interpreted, it is the reference's function; lowered, Triton takes it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from tests.marks import all_but, slow
from zoo.ahead_of_time.gpu import TARGETS, lower_for_gpu
from zoo.kernels.attention.inputs import AttentionInputs, check_inputs
from zoo.kernels.attention.reference import reference_attention
from zoo.kernels.attention.visibility import visible
from zoo.kernels.attention.xla import xla_attention
from zoo.kernels.local_attention.gpu import local_attention_gpu
from zoo.kernels.local_attention.gpu_common import Options
from zoo.kernels.local_attention.gpu_forward import forward
from zoo.kernels.local_attention.gpu_tiles import BLACKWELL_TILES, HOPPER_TILES, PORTABLE_TILES, default_tile

BLOCK = 16
_PLACES = "query_positions", "key_positions", "query_segment_ids", "key_segment_ids"


def make_inputs(
    *,
    dtype=jnp.float64,
    batch=2,
    queries=53,
    keys=None,
    heads=4,
    kv_heads=2,
    head_dim=16,
    segments=True,
    amplitude=1.0,
    seed=0,
    **options,
) -> AttentionInputs:
    """Random arrays; rows packed with documents of random lengths, and padding (segment 0) at the end."""
    rng = np.random.default_rng(seed)
    keys = keys or queries
    shapes = (batch, queries, heads, head_dim), (batch, keys, kv_heads, head_dim), (batch, keys, kv_heads, head_dim)
    query, key, value = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    positions, ids = np.zeros((2, batch, keys), np.int32)
    for row in range(batch):
        cuts = np.sort(rng.choice(np.arange(1, keys), 3, replace=False)) if segments else []
        for index, (start, stop) in enumerate(zip([0, *cuts], [*cuts, keys], strict=True)):
            positions[row, start:stop] = np.arange(stop - start)
            ids[row, start:stop] = (index + 1) % 4
    packed = {
        "query_positions": jnp.asarray(positions[:, keys - queries :]),
        "key_positions": jnp.asarray(positions),
        "query_segment_ids": jnp.asarray(ids[:, keys - queries :]) if segments else None,
        "key_segment_ids": jnp.asarray(ids) if segments else None,
        "ordered_positions": True,
    }
    defaults = {"scale": head_dim**-0.5, "causal": True, "sliding_window": 17, "logits_soft_cap": 50.0}
    return check_inputs(amplitude * query, key, value, **defaults | packed | options)


def kernel(inputs):
    return local_attention_gpu(inputs, block_q=BLOCK, block_k=BLOCK)


def out_and_gradients(implementation, inputs, dtype=None):
    """(out, gradients of query, key, value) for random gradients of the output, computed in `dtype`."""
    dtype = dtype or inputs.query.dtype
    weight = jnp.asarray(np.random.default_rng(9).normal(size=inputs.query.shape), inputs.query.dtype)

    @jax.jit
    def run(query, key, value):
        def attention(query, key, value):
            return implementation(dataclasses.replace(inputs, query=query, key=key, value=value))

        out, pull = jax.vjp(attention, query, key, value)
        return out, *pull(weight.astype(dtype))

    results = run(*(x.astype(dtype) for x in (inputs.query, inputs.key, inputs.value)))
    return [np.asarray(x, np.float64) for x in results]


def assert_equals_reference(inputs, implementation=kernel):
    got, expected = out_and_gradients(implementation, inputs), out_and_gradients(reference_attention, inputs)
    for name, one, other in zip(("out", "query", "key", "value"), got, expected, strict=True):
        assert np.abs(one - other).max() <= 1e-12 * max(1, np.abs(other).max()), name


def errors(inputs, implementation, dtype):
    """Largest and root-mean-square error of each result in `dtype`, relative to the float64 reference's largest."""
    return errors_from(out_and_gradients(reference_attention, inputs, jnp.float64), inputs, implementation, dtype)


def errors_from(exact, inputs, implementation, dtype):
    found = out_and_gradients(implementation, inputs, dtype)
    differences = [(one - other) / np.abs(other).max() for one, other in zip(found, exact, strict=True)]
    return np.array([(np.abs(x).max(), np.sqrt(np.square(x).mean())) for x in differences])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


WINDOWS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 64, None]


@pytest.mark.parametrize(
    ("window", "soft_cap"),
    # Every window, with the running maximum (no cap) and without it in turn.
    all_but(list(zip(WINDOWS, itertools.cycle([None, 50.0]))), list(itertools.product(WINDOWS, [None, 50.0]))),
)
def test_it_is_the_reference_at_every_window_of_packed_rows(window, soft_cap, x64):
    assert_equals_reference(make_inputs(sliding_window=window, logits_soft_cap=soft_cap))


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), *slow((3, 1), (8, 1)), (12, 2)])
def test_it_is_the_reference_for_groups_of_any_size(heads, kv_heads, x64):
    assert_equals_reference(make_inputs(heads=heads, kv_heads=kv_heads, batch=1))


def test_a_group_that_takes_several_tiles_is_the_reference(x64):
    inputs = make_inputs(heads=16, kv_heads=1, batch=1)
    assert default_tile("query_gradient", 16, jnp.float64).rows // 4 < 16
    assert_equals_reference(inputs)
    assert_equals_reference(inputs, local_attention_gpu)


@pytest.mark.parametrize("soft_cap", [5.0, 90.0])
def test_it_is_the_reference_with_and_without_the_running_maximum(soft_cap, x64):
    assert_equals_reference(make_inputs(logits_soft_cap=soft_cap, amplitude=10.0))


@pytest.mark.parametrize("soft_cap", [*slow(50.0), 80.0])
def test_saturated_scores_are_the_reference(soft_cap, x64):
    inputs = make_inputs(amplitude=250.0, logits_soft_cap=soft_cap, segments=False)
    scores = inputs.scale * np.einsum("btnh,bsnh->bnts", inputs.query[:, :, ::2], inputs.key)
    assert np.abs(scores).max() > 1000
    assert_equals_reference(inputs)


LENGTHS = [(1, 53), (5, 5), (33, 70), (64, 64)]


@pytest.mark.parametrize(
    ("queries", "keys", "ordered"),
    all_but(
        [(1, 53, True), (5, 5, False), (33, 70, True), (64, 64, False)],
        [(*lengths, ordered) for lengths in LENGTHS for ordered in (True, False)],
    ),
)
def test_it_is_the_reference_for_any_lengths(queries, keys, ordered, x64):
    assert_equals_reference(make_inputs(queries=queries, keys=keys, ordered_positions=ordered))


def test_it_is_the_reference_for_positions_in_any_order(x64):
    inputs = make_inputs(segments=False, ordered_positions=False)
    order = np.random.default_rng(3).permuted(np.tile(np.arange(53, dtype=np.int32), (2, 1)), axis=1)
    inputs = dataclasses.replace(inputs, query_positions=jnp.asarray(order[::-1]), key_positions=jnp.asarray(order))
    assert_equals_reference(inputs)


@pytest.mark.parametrize("options", [{}, *slow({"segments": False}), {"segments": False, "sliding_window": None}])
def test_it_is_the_reference_when_not_causal(options, x64):
    assert_equals_reference(make_inputs(causal=False, **options))


def test_a_query_that_sees_nothing_gets_zeros_and_a_gradient_of_zero(x64):
    inputs = make_inputs()
    blind = jnp.where(jnp.arange(53) % 3 == 0, 7, inputs.query_segment_ids)
    inputs = dataclasses.replace(inputs, query_segment_ids=blind)
    out, query_gradient, *_ = out_and_gradients(kernel, inputs)
    assert not out[:, ::3].any() and not query_gradient[:, ::3].any()
    assert_equals_reference(inputs)


@pytest.mark.parametrize("soft_cap", [None, 50.0])
def test_the_saved_logarithm_is_that_of_the_sum_of_weights(soft_cap, x64):
    inputs = make_inputs(batch=1, heads=2, kv_heads=2, logits_soft_cap=soft_cap)
    blind = jnp.where(jnp.arange(53) % 3 == 0, 7, inputs.query_segment_ids)
    inputs = dataclasses.replace(inputs, query_segment_ids=blind)
    options = Options(inputs.scale, True, inputs.sliding_window, soft_cap, True, BLOCK, BLOCK, True)
    scores = inputs.scale * jnp.einsum("btnh,bsnh->btns", inputs.query, inputs.key)
    scores = scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)
    mask = visible(*(getattr(inputs, name) for name in _PLACES), sliding_window=inputs.sliding_window)[:, :, None]
    total = jnp.where(mask, jnp.exp(scores), 0).sum(-1)
    expected = jnp.where(total == 0, jnp.inf, jnp.log2(total))
    np.testing.assert_allclose(forward(inputs, options)[1], expected, rtol=1e-12, atol=1e-12)


def test_its_gradient_is_that_of_finite_differences(x64):
    inputs = make_inputs(queries=19, batch=1, heads=2, kv_heads=1)

    @jax.jit
    def attention(query, key, value):
        return kernel(dataclasses.replace(inputs, query=query, key=key, value=value))

    arrays = inputs.query, inputs.key, inputs.value
    jax.test_util.check_grads(attention, arrays, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_it_maps_over_an_axis(x64):
    inputs = make_inputs(batch=3)

    @jax.jit
    def attention(query, key, value):
        one = dataclasses.replace(inputs, query=query[None], key=key[None], value=value[None])
        places = {name: getattr(inputs, name)[:1] for name in _PLACES}
        return kernel(dataclasses.replace(one, **places))[0]

    arrays = inputs.query, inputs.key, inputs.value
    apart = jnp.stack([attention(*(x[row] for x in arrays)) for row in range(3)])
    assert np.abs(jax.vmap(attention)(*arrays) - apart).max() <= 1e-12


@pytest.mark.parametrize(("soft_cap", "amplitude"), [(50.0, 1.0), *slow((None, 1.0)), (90.0, 10.0)])
def test_float32_is_exact_to_a_few_roundings(soft_cap, amplitude, x64):
    inputs = make_inputs(dtype=jnp.float32, logits_soft_cap=soft_cap, amplitude=amplitude, head_dim=64)
    (out, _), *gradients = errors(inputs, kernel, jnp.float32)
    assert out <= 2e-6
    assert np.max(gradients) <= 1e-5


@pytest.mark.parametrize(
    ("dtype", "soft_cap", "amplitude"),
    all_but(
        [(jnp.bfloat16, 50.0, 1.0), (jnp.bfloat16, None, 1.0), (jnp.float16, 50.0, 100.0), (jnp.float16, 5.0, 30.0)],
        [
            (dtype, *case)
            for dtype in (jnp.bfloat16, jnp.float16)
            for case in ((50.0, 1.0), (50.0, 100.0), (None, 1.0), (5.0, 30.0))
        ],
    ),
)
def test_16_bit_errors_are_at_most_twice_those_of_xla(dtype, soft_cap, amplitude, x64):
    inputs = make_inputs(dtype=dtype, logits_soft_cap=soft_cap, amplitude=amplitude, head_dim=64, queries=70)
    exact = out_and_gradients(reference_attention, inputs, jnp.float64)
    ours, xla = (errors_from(exact, inputs, attention, dtype) for attention in (kernel, xla_attention))
    assert (ours <= 2 * xla).all()


def test_blocks_without_a_visible_key_are_not_read(x64):
    """A key that is read and masked would spread its NaN: 0 times NaN is NaN."""
    length, window = 8 * BLOCK, 2 * BLOCK
    inputs = make_inputs(queries=length, batch=1, sliding_window=window, segments=False)
    segments = (jnp.arange(length, dtype=jnp.int32) >= 6 * BLOCK)[None].astype(jnp.int32)
    inputs = dataclasses.replace(inputs, query_segment_ids=segments, key_segment_ids=segments)
    clean, *_ = out_and_gradients(kernel, inputs)
    poisoned = dataclasses.replace(inputs, key=inputs.key.at[:, : 2 * BLOCK].set(jnp.nan))
    out, *_ = out_and_gradients(kernel, poisoned)
    # Blocks 0 and 1 hold NaN; of the window, blocks 4 and later see none of them.
    np.testing.assert_array_equal(out[:, 4 * BLOCK :], clean[:, 4 * BLOCK :])
    poisoned = dataclasses.replace(inputs, value=inputs.value.at[:, 5 * BLOCK : 6 * BLOCK].set(jnp.nan))
    out, *_ = out_and_gradients(kernel, poisoned)
    # Block 5 lies within the window of blocks 6 and 7, in another segment.
    np.testing.assert_array_equal(out[:, 6 * BLOCK :], clean[:, 6 * BLOCK :])
    assert np.isnan(out[:, 5 * BLOCK : 6 * BLOCK]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 48}, "'pallas_gpu' takes head sizes 16, 32, 64, 128 and 256, not 48"),
        ({"head_dim": 512}, "'pallas_gpu' takes head sizes 16, 32, 64, 128 and 256, not 512"),
        ({"dtype": jnp.float8_e4m3fn}, "'pallas_gpu' takes bfloat16, float16 and float32, not float8_e4m3fn"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(options, message):
    with pytest.raises(NotImplementedError, match=message):
        kernel(make_inputs(**{"dtype": jnp.float32} | options))


def test_float64_is_for_the_interpreter_only(x64):
    with pytest.raises(NotImplementedError, match="'pallas_gpu' takes bfloat16, float16 and float32, not float64"):
        local_attention_gpu(make_inputs(), interpret=False)


@pytest.mark.parametrize("blocks", [{"block_q": 0}, {"block_k": 8}, {"block_k": 48}])
def test_blocks_that_have_no_meaning_are_refused(blocks):
    with pytest.raises(ValueError, match=f"{next(iter(blocks))} must be"):
        local_attention_gpu(make_inputs(dtype=jnp.float32), **blocks)


def lower(target, *, head_dim=256, heads=16, kv_heads=8, length=8192, segments=False, **options):
    """Forward and backward in bfloat16 at the default tiles, as text."""

    def shape(heads):
        return jax.ShapeDtypeStruct((1, length, heads, head_dim), jnp.bfloat16)

    def run(query, key, value, weight, positions):
        places = dict.fromkeys(_PLACES[:2], positions) | dict.fromkeys(_PLACES[2:], positions if segments else None)
        defaults = {"scale": 0.0625, "causal": True, "sliding_window": 4096, "logits_soft_cap": 50.0}

        def attention(query, key, value):
            inputs = check_inputs(query, key, value, **defaults | places | {"ordered_positions": True} | options)
            return local_attention_gpu(inputs)

        out, pull = jax.vjp(attention, query, key, value)
        return out, pull(weight)

    positions = jax.ShapeDtypeStruct((1, length), jnp.int32)
    arguments = shape(heads), shape(kv_heads), shape(kv_heads), shape(heads), positions
    return lower_for_gpu(run, *arguments, target=target).as_text()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize(("head_dim", "kernels"), [(64, 3), (128, 3), (256, 4)])
def test_the_default_tiles_lower_for_every_gpu(target, head_dim, kernels):
    text = lower(target, head_dim=head_dim)
    assert count_kernels(text) == kernels


@pytest.mark.parametrize(
    "options",
    [
        {"sliding_window": None},
        {"segments": True},
        {"segments": True, "heads": 6, "kv_heads": 2, "length": 8191},
        {"causal": False, "logits_soft_cap": None},
        {"heads": 8, "kv_heads": 8},
        {"heads": 32, "kv_heads": 1},
    ],
    ids=str,
)
def test_every_kind_of_layer_lowers(options):
    assert count_kernels(lower(TARGETS["H200"], **options)) == 4


def count_kernels(text: str) -> int:
    return sum("custom_call @" in line and "triton" in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("name", "tiles"),
    [("A100", PORTABLE_TILES), ("H100", HOPPER_TILES), ("H200", HOPPER_TILES), ("B200", BLACKWELL_TILES)],
)
def test_every_generation_gets_its_own_tiles(name, tiles):
    seen = []

    def look(x):
        seen.append(default_tile("value_gradient", 256, jnp.bfloat16))
        return x

    lower_for_gpu(look, jax.ShapeDtypeStruct((1,), jnp.float32), target=TARGETS[name])
    assert seen == [tiles["value_gradient", 256, 2]]
    assert len({table["value_gradient", 256, 2] for table in (PORTABLE_TILES, HOPPER_TILES, BLACKWELL_TILES)}) == 3
