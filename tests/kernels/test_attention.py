"""Every implementation computes the reference's function: values, gradients, all options together."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.marks import all_but
from zoo.kernels import dot_product_attention
from zoo.kernels.attention import dispatch, xla
from zoo.kernels.attention.dispatch import best_implementation
from zoo.kernels.attention.inputs import check_inputs
from zoo.kernels.attention.reference import reference_attention


def arrays(batch=2, queries=300, keys=None, heads=4, kv_heads=2, head_dim=16, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    keys = keys or queries

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    return (
        normal(batch, queries, heads, head_dim),
        normal(batch, keys, kv_heads, head_dim),
        normal(batch, keys, kv_heads, head_dim),
    )


def packed(batch: int, length: int, segments: bool, seed=0):
    """Positions and segment ids of rows packed with documents of random lengths, padding (segment 0) at the end."""
    rng = np.random.default_rng(seed)
    positions, ids = np.zeros((2, batch, length), np.int32)
    for row in range(batch):
        cuts = sorted(rng.choice(np.arange(1, length), 3, replace=False)) if segments else []
        for index, (start, stop) in enumerate(zip([0, *cuts], [*cuts, length], strict=True)):
            positions[row, start:stop] = np.arange(stop - start)
            ids[row, start:stop] = index + 1 if index < 3 else 0
    return jnp.asarray(positions), jnp.asarray(ids)


def compare(qkv, *, atol=2e-5, **options):
    weight = jnp.asarray(np.random.default_rng(9).normal(size=qkv[0].shape), jnp.float32)

    def value_and_gradients(implementation):
        def loss(*qkv):
            out = dot_product_attention(*qkv, implementation=implementation, **options)
            return (out * weight).sum(), out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)

    chex.assert_trees_all_close(value_and_gradients("xla"), value_and_gradients("reference"), atol=atol, rtol=1e-4)


WHOLE, SCANNED = (50.0, True, 2**28), (None, False, 2**20)
"""(soft-cap, segments, bytes of scores): 2**20 bytes force the scanned and recomputed path."""
WINDOWS = (None, 127, 128, 129, 200)


@pytest.mark.parametrize(
    ("window", "way"),
    all_but(
        [(None, WHOLE), (None, SCANNED), (127, SCANNED), (128, WHOLE), (129, SCANNED), (200, WHOLE)],
        [(window, way) for window in WINDOWS for way in (WHOLE, SCANNED)],
    ),
)
def test_blocked_attention_equals_the_reference(window, way, monkeypatch):
    soft_cap, segments, score_bytes = way
    monkeypatch.setattr(xla, "SCORE_BYTES", score_bytes)
    positions, ids = packed(2, 500, segments)
    compare(
        arrays(queries=500),
        scale=0.7,
        sliding_window=window,
        logits_soft_cap=soft_cap,
        query_positions=positions,
        key_positions=positions,
        query_segment_ids=ids,
        key_segment_ids=ids,
        ordered_positions=True,
    )


def test_queries_at_the_end_of_longer_keys_equal_the_reference():
    positions, ids = packed(2, 812, segments=False)
    compare(
        arrays(queries=300, keys=812, kv_heads=1),
        scale=0.7,
        sliding_window=130,
        logits_soft_cap=90.0,
        query_positions=positions[:, -300:],
        key_positions=positions,
        ordered_positions=True,
    )


def test_positions_without_a_promise_may_be_in_any_order():
    qkv = arrays(queries=400)
    order = jnp.asarray(np.random.default_rng(1).permutation(400), jnp.int32)[None].repeat(2, 0)
    compare(qkv, scale=0.7, sliding_window=64, query_positions=order, key_positions=order)


def test_without_causality_both_sides_are_seen():
    compare(arrays(queries=300), scale=0.7, causal=False, sliding_window=64)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_query_that_sees_nothing_gets_zeros_and_finite_gradients(implementation):
    qkv = arrays(queries=8)
    positions = jnp.tile(jnp.arange(8)[None], (2, 1))
    attend = functools.partial(
        dot_product_attention,
        scale=1.0,
        query_positions=positions,
        key_positions=positions + 4,
        implementation=implementation,
    )
    assert (attend(*qkv)[:, :4] == 0).all()
    chex.assert_tree_all_finite(jax.grad(lambda *qkv: attend(*qkv).sum(), argnums=(0, 1, 2))(*qkv))


def test_bfloat16_stays_within_its_rounding_of_the_reference():
    qkv = arrays(queries=300, dtype=jnp.bfloat16)
    options = dict(scale=0.25, sliding_window=70, logits_soft_cap=50.0)
    out, expected = (dot_product_attention(*qkv, implementation=i, **options) for i in ("xla", "reference"))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), expected.astype(jnp.float32), atol=0.02)


def test_the_reference_computes_in_float64_when_given_float64():
    with jax.enable_x64(True):
        qkv = [jnp.asarray(np.asarray(x), jnp.float64) for x in arrays(queries=6, heads=2, kv_heads=1)]
        out = dot_product_attention(*qkv, scale=0.3, logits_soft_cap=5.0, implementation="reference")
        query, key, value = map(np.asarray, qkv)
        scores = 5.0 * np.tanh(0.3 * np.einsum("btnh,bsh->bnts", query, key[:, :, 0]) / 5.0)
        weights = np.where(np.tril(np.ones((6, 6), bool)), np.exp(scores), 0)
        expected = np.einsum("bnts,bsh->btnh", weights / weights.sum(-1, keepdims=True), value[:, :, 0])
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, expected, atol=1e-14)


@pytest.mark.parametrize("backward", [False, True])
def test_a_local_layer_compiles_without_a_buffer_of_length_squared(backward):
    length, window = 4096, 256
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)

    def attend(query, key, value):
        return dot_product_attention(query, key, value, scale=1.0, sliding_window=window, logits_soft_cap=50.0).sum()

    function = jax.grad(attend, argnums=(0, 1, 2)) if backward else attend
    compiled = jax.jit(function).lower(shape((1, length, 2, 16)), *[shape((1, length, 1, 16))] * 2).compile()
    sizes = [
        int(np.prod([int(n) for n in dims.split(",")])) for dims in re.findall(r"f32\[([\d,]+)\]", compiled.as_text())
    ]
    assert max(sizes) < length * length
    assert max(sizes) <= 2 * length * (window + 2 * xla.block_size(window))


def test_memory_of_a_local_layer_grows_linearly():
    def temporary_bytes(length):
        qkv = [jax.ShapeDtypeStruct((1, length, heads, 16), jnp.float32) for heads in (2, 1, 1)]

        def loss(query, key, value):
            return dot_product_attention(query, key, value, scale=1.0, sliding_window=256).sum()

        lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*qkv)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(16_384) < 8.5 * temporary_bytes(2_048)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(sliding_window=0), "sliding_window"),
        (dict(logits_soft_cap=-1.0), "logits_soft_cap"),
        (dict(query_positions=jnp.zeros((2, 8), jnp.int32)), "given together"),
        (dict(implementation="flash"), "unknown attention implementation"),
    ],
)
def test_options_without_meaning_raise(change, message):
    with pytest.raises(ValueError, match=message):
        dot_product_attention(*arrays(queries=8), scale=1.0, **change)


def test_shapes_that_do_not_fit_raise():
    query, key, value = arrays(queries=8)
    with pytest.raises(ValueError, match="multiple of K"):
        dot_product_attention(query[:, :, :3], key, value, scale=1.0)
    with pytest.raises(ValueError, match="explicit query_positions"):
        dot_product_attention(query[:, :4], key, value, scale=1.0)
    with pytest.raises(ValueError, match="floating dtype"):
        dot_product_attention(query, key.astype(jnp.bfloat16), value, scale=1.0)


@pytest.mark.parametrize(
    ("implementation", "options", "feature"),
    [
        ("pallas_tpu", dict(sliding_window=4, dtype=jnp.float16), "float16"),
        ("pallas_tpu", dict(sliding_window=4, in_order=False), "positions that are not promised to be in order"),
        ("pallas_tpu", dict(causal=False), "attention that is not causal"),
        ("pallas_gpu", dict(head_dim=24), "head size"),
        ("splash", dict(sliding_window=4, in_order=True), "sliding_window with explicit positions"),
        ("cudnn", dict(), "the back end 'cpu'"),
    ],
)
def test_what_an_implementation_does_not_do_raises_and_names_both(implementation, options, feature):
    shape = {name: options.pop(name) for name in ("dtype", "head_dim") if name in options}
    if "in_order" in options:
        places = jnp.tile(jnp.arange(8)[None], (2, 1))
        options |= dict(query_positions=places, key_positions=places, ordered_positions=options.pop("in_order"))
    with pytest.raises(NotImplementedError, match=f"'{implementation}'.*{feature}"):
        dot_product_attention(*arrays(queries=8, **shape), scale=1.0, implementation=implementation, **options)


@pytest.mark.parametrize(
    ("platform", "options", "expected"),
    [
        ("cpu", {}, "xla"),
        ("tpu", {}, "pallas_tpu"),
        ("tpu", dict(sliding_window=4), "pallas_tpu"),
        ("tpu", dict(sliding_window=4, dtype=jnp.float16), "xla"),
        ("tpu", dict(causal=False), "xla"),
        ("gpu", {}, "pallas_gpu"),
        ("gpu", dict(sliding_window=4), "pallas_gpu"),
        ("gpu", dict(head_dim=24), "xla"),
    ],
)
def test_without_a_name_a_call_gets_the_fastest_implementation_that_can_do_it(platform, options, expected):
    shape = {name: options.pop(name) for name in ("dtype", "head_dim") if name in options}
    nothing = ("query_positions", "key_positions", "query_segment_ids", "key_segment_ids", "sliding_window")
    options = dict.fromkeys(nothing) | dict(scale=1.0, causal=True, logits_soft_cap=None) | options
    inputs = check_inputs(*arrays(queries=8, **shape), ordered_positions=False, **options)
    assert best_implementation(inputs, platform) == expected


def test_the_choice_is_logged_once(caplog):
    dispatch._load.cache_clear()
    with caplog.at_level("INFO", logger="zoo.kernels.attention.dispatch"):
        for window in (4, 4, None):
            dot_product_attention(*arrays(queries=8), scale=1.0, sliding_window=window)
    assert [record.getMessage() for record in caplog.records] == [
        "attention implementation of local layers: xla",
        "attention implementation of global layers: xla",
    ]


def test_the_specification_uses_the_one_definition_of_visibility():
    """Value rows are one-hot, so the output shows which keys each query averaged."""
    length = 7
    query = jnp.zeros((1, length, 1, 8))
    value = jnp.eye(length, 8)[None, :, None]
    inputs = check_inputs(
        query, jnp.zeros_like(query), value, scale=1.0, causal=True, sliding_window=3, logits_soft_cap=None,
        query_positions=None, key_positions=None, query_segment_ids=None, key_segment_ids=None,
        ordered_positions=False,
    )  # fmt: skip
    seen = np.asarray(reference_attention(inputs))[0, :, 0, :length] > 0
    assert seen.sum(1).tolist() == [1, 2, 3, 3, 3, 3, 3]
