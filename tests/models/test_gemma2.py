import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.marks import all_but, slow
from zoo.errors import UserError
from zoo.models import Gemma2Config, build, config_from_dict, config_to_dict, preset, presets
from zoo.nn import Execution, stack_layers, unstack_layers

TINY = Gemma2Config(
    vocab_size=96,
    embed_dim=32,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_dim=48,
    query_pre_attn_scalar=12,
    sliding_window=8,
)
SHORT = dataclasses.replace(TINY, num_layers=2)  # one layer of each kind: unrolled ones take long to compile


@functools.cache
def make(config=TINY, **execution):
    return build(config, execution=Execution(**execution), rngs=nnx.Rngs(0))


def run(model, tokens, **arguments):
    """The model's call, compiled as a whole: operation by operation it would take ten times as long to compile."""
    return _run(*nnx.split(model), tokens, arguments)


@functools.partial(jax.jit, static_argnums=0)
def _run(graphdef, state, tokens, arguments):
    return nnx.merge(graphdef, state)(tokens, **arguments)


def tokens(batch=2, length=40):
    return jax.random.randint(jax.random.key(1), (batch, length), 3, TINY.vocab_size)


# Gemma 2 report, tables 1 and 2: embedding rows 256,000 of the released files (the paper counts 256,128).
COUNTS = [
    ("gemma2-2b", 2_614_341_888, 2_024_517_888),
    ("gemma2-9b", 9_241_705_984, 8_324_201_984),
    ("gemma2-27b", 27_227_128_320, 26_047_480_320),
]


@pytest.mark.parametrize(
    ("name", "total", "non_embedding", "scan_layers"),
    all_but(
        [(*COUNTS[0], False), *((*count, True) for count in COUNTS)],
        [(*count, scan_layers) for count in COUNTS for scan_layers in (False, True)],
    ),
)
def test_parameter_counts_equal_the_report_to_the_last_digit(name, total, non_embedding, scan_layers):
    config = preset(name)
    abstract = nnx.eval_shape(lambda: make(config, scan_layers=scan_layers))
    sizes = [int(np.prod(x.shape)) for x in jax.tree.leaves(nnx.state(abstract))]
    assert sum(sizes) == config.num_parameters() == total
    assert total - config.vocab_size * config.embed_dim == non_embedding
    paper_rows = dataclasses.replace(config, vocab_size=256_128)
    assert paper_rows.num_parameters() - non_embedding == 256_128 * config.embed_dim


@pytest.mark.parametrize(
    ("name", "scale", "cap"), [("gemma2-2b", 1 / 16, 50), ("gemma2-9b", 1 / 16, 50), ("gemma2-27b", 1 / 12, 50)]
)
def test_query_scale_of_each_size(name, scale, cap):
    config = preset(name)
    assert config.query_pre_attn_scalar**-0.5 == scale
    assert config.attn_logit_soft_cap == cap
    assert config.window(0) == 4096 and config.window(1) is None and config.window(config.num_layers - 1) is None


def test_embedding_normaliser_is_rounded_to_bfloat16():
    for name, rounded in (("gemma2-2b", 48.0), ("gemma2-9b", 59.75), ("gemma2-27b", 68.0)):
        assert float(jnp.asarray(preset(name).embed_dim ** 0.5, jnp.bfloat16)) == rounded


def test_scanned_and_unrolled_layers_compute_the_same():
    np.testing.assert_allclose(run(make(), tokens()), run(make(scan_layers=True), tokens()), atol=3e-5)


def test_stacking_converts_between_both_layouts_bit_for_bit():
    unrolled, scanned = nnx.state(make()), nnx.state(make(scan_layers=True))
    chex.assert_trees_all_equal(nnx.to_pure_dict(stack_layers(unrolled, 2)), nnx.to_pure_dict(scanned))
    chex.assert_trees_all_equal(nnx.to_pure_dict(unstack_layers(scanned, 2)), nnx.to_pure_dict(unrolled))


def test_scanning_an_incomplete_unit_is_refused():
    with pytest.raises(UserError, match="multiple of the repeating unit"):
        make(dataclasses.replace(TINY, num_layers=3), scan_layers=True)
    assert run(make(dataclasses.replace(TINY, num_layers=3)), tokens()).shape == (2, 40, 96)


@pytest.mark.parametrize("scan_layers", [*slow(False), True])
def test_every_remat_policy_gives_the_same_gradients(scan_layers):
    config = TINY if scan_layers else SHORT

    def gradients(policy):
        graphdef, state = nnx.split(make(config, scan_layers=scan_layers, remat_policy=policy))
        loss = jax.jit(jax.grad(lambda state: jnp.square(nnx.merge(graphdef, state)(tokens())).mean()))
        return nnx.to_pure_dict(loss(state))

    none = gradients("none")
    chex.assert_trees_all_close(gradients("full"), none, atol=1e-5)
    chex.assert_trees_all_close(gradients("dots"), none, atol=1e-5)


def test_bfloat16_compute_with_float32_parameters_follows_float32():
    model, exact = make(compute_dtype="bfloat16"), make()
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    logits = run(model, tokens())
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, run(exact, tokens()), atol=0.25)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_prefill_chunks_and_single_tokens_equal_the_full_forward_pass_far_past_the_window(scan_layers):
    model, ids = make(TINY if scan_layers else SHORT, scan_layers=scan_layers), tokens(length=40)
    cache, parts = model.init_cache(2, 40), []
    for start, stop in [(0, 13), (13, 16), (16, 28), *((i, i + 1) for i in range(28, 40))]:
        logits, cache = run(model, ids[:, start:stop], cache=cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), run(model, ids), atol=3e-5)


def test_the_cache_of_a_local_layer_has_exactly_window_slots():
    cache = make().init_cache(2, 100)
    assert [layer.slots for layer in cache] == [8, 100, 8, 100]
    assert [layer.slots for layer in make().init_cache(2, 5)] == [5, 5, 5, 5]


def test_left_padded_prompts_continue_as_if_alone():
    model, ids = make(), tokens(length=24)
    pad = 7
    mask = jnp.arange(24)[None] >= jnp.array([[0], [pad]])
    positions = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
    segments = mask.astype(jnp.int32)
    logits, cache = run(model, ids, positions=positions, segment_ids=segments, cache=model.init_cache(2, 30))
    alone = run(model, ids[1:, pad:])
    np.testing.assert_allclose(logits[1:, pad:], alone, atol=3e-5)
    following = jnp.array([[5], [6]])
    logits, _ = run(model, following, positions=positions[:, -1:] + 1, cache=cache)
    alone = run(model, jnp.concatenate([ids[1:, pad:], following[1:]], 1))
    np.testing.assert_allclose(logits[1, 0], alone[0, -1], atol=3e-5)


def test_packed_documents_do_not_see_each_other():
    model, ids = make(), tokens(batch=1, length=40)
    segments = jnp.where(jnp.arange(40) < 15, 1, 2)[None]
    positions = jnp.where(jnp.arange(40) < 15, jnp.arange(40), jnp.arange(40) - 15)[None]
    logits = run(model, ids, positions=positions, segment_ids=segments)
    np.testing.assert_allclose(logits[:, 15:], run(model, ids[:, 15:]), atol=3e-5)


def test_logits_stay_inside_the_final_soft_cap():
    config = dataclasses.replace(TINY, final_logit_soft_cap=0.5)
    logits = run(make(config), tokens())
    assert float(jnp.abs(logits).max()) <= 0.5
    free = run(make(dataclasses.replace(TINY, final_logit_soft_cap=None)), tokens())
    np.testing.assert_allclose(logits, 0.5 * jnp.tanh(free / 0.5), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        dict(sliding_window=9),
        dict(sliding_window=7),
        dict(layer_types=("global", "local")),
        dict(query_pre_attn_scalar=16),
        dict(attn_logit_soft_cap=None),
        dict(rope_theta=1000.0),
    ],
    ids=str,
)
def test_each_classical_mistake_moves_the_logits(change):
    """Past the window, so that a parity test at this length would notice; historical bugs of other implementations."""
    graphdef, state = nnx.split(make(SHORT))
    wrong, _ = nnx.split(make(dataclasses.replace(SHORT, **change)))
    right = _run(graphdef, state, tokens(), {})
    assert float(jnp.abs(_run(wrong, state, tokens(), {}) - right).max()) > (
        1e-5 if "attn_logit_soft_cap" in change else 1e-2
    )


def test_media_is_refused():
    with pytest.raises(ValueError, match="text only"):
        make()(tokens(), media=jnp.ones(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(embed_dim=-4), "embed_dim"),
        (dict(num_kv_heads=3), "multiple"),
        (dict(head_dim=15), "even"),
        (dict(layer_types=("local", "sparse")), "layer_types"),
        (dict(final_logit_soft_cap=0.0), "final_logit_soft_cap"),
    ],
)
def test_sizes_without_meaning_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize("name", sorted(presets()))
def test_configs_survive_their_dictionary(name):
    assert config_from_dict(config_to_dict(preset(name))) == preset(name)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'gemma2-9b'"):
        preset("gemma-9b")
    with pytest.raises(UserError, match="did you mean 'num_heads'"):
        config_from_dict({**config_to_dict(TINY), "num_head": 3})
