import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.errors import UserError
from zoo.models import config_from_dict, config_to_dict, preset
from zoo.models.gemini import PRESETS, Gemini, GeminiConfig
from zoo.nn import Execution, ExpertsConfig, stack_layers
from zoo.nn.rope import LinearScaling, Llama3Scaling, YarnScaling

DENSE = GeminiConfig(
    vocab_size=96,
    embed_dim=32,
    num_layers=4,
    num_heads=4,
    head_dim=16,
    hidden_dim=48,
    sliding_window=8,
    final_logit_soft_cap=None,
)
SPARSE = dataclasses.replace(
    DENSE,
    experts=ExpertsConfig(num_experts=4, experts_per_token=2, hidden_dim=24, shared_hidden_dim=16),
    experts_every=2,
    global_rope=False,
)
PARALLEL = dataclasses.replace(DENSE, block="parallel", post_norms=False, num_kv_heads=2)
KINDS = {"dense": DENSE, "sparse": SPARSE, "parallel": PARALLEL}


@functools.cache
def make(config, **execution):
    return Gemini(config, execution=Execution(**execution), rngs=nnx.Rngs(0))


def run(model, tokens, method="__call__", **arguments):
    return _run(*nnx.split(model), tokens, arguments, method)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _run(graphdef, state, tokens, arguments, method):
    return getattr(nnx.merge(graphdef, state), method)(tokens, **arguments)


def tokens(batch=2, length=24):
    return jax.random.randint(jax.random.key(1), (batch, length), 3, DENSE.vocab_size)


# Gemini 1.0 report, table 1: Nano-1 has 1.8B parameters, Nano-2 3.25B.
@pytest.mark.parametrize(("name", "billions"), [("gemini-nano-1", "1.80"), ("gemini-nano-2", "3.25")])
def test_nano_has_the_published_number_of_parameters(name, billions):
    assert f"{preset(name).num_parameters() / 1e9:.2f}" == billions
    assert preset(name).num_kv_heads == 1


@pytest.mark.parametrize("name", PRESETS)
def test_the_parameters_of_every_preset_are_counted_to_the_last_one(name):
    config = preset(name)
    abstract = nnx.eval_shape(lambda: Gemini(config, execution=Execution(scan_layers=True), rngs=nnx.Rngs(0)))
    sizes = [int(np.prod(x.shape)) for x in jax.tree.leaves(nnx.state(abstract))]
    assert sum(sizes) == config.num_parameters()
    assert config.num_active_parameters() <= config.num_parameters()


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_prefill_and_single_tokens_equal_the_full_forward_pass(config):
    model, ids = make(dataclasses.replace(config, num_layers=2)), tokens()
    cache, parts = model.init_cache(2, 24), []
    for start, stop in [(0, 13), (13, 18), *((i, i + 1) for i in range(18, 24))]:
        logits, cache = run(model, ids[:, start:stop], cache=cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), run(model, ids), atol=3e-5)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_scanned_layers_compute_the_same_and_give_the_same_statistics(config):
    model, scanned = make(config), make(config, scan_layers=True)
    graphdef, _ = nnx.split(scanned)
    scanned = nnx.merge(graphdef, stack_layers(nnx.state(model), config.pattern_length))
    (hidden, routing), (same_hidden, same_routing) = (run(m, tokens(), "hidden_and_routing") for m in (model, scanned))
    np.testing.assert_allclose(same_hidden, hidden, atol=3e-5)
    if config.experts is None:
        assert routing is None and same_routing is None
    else:
        assert routing.assigned.shape == (config.num_sparse_layers, config.experts.num_experts) == (2, 4)
        np.testing.assert_allclose(routing.assigned.sum(1), 2 * tokens().size)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), routing, same_routing)


def test_padding_is_neither_routed_nor_counted():
    ids = tokens()
    segments = jnp.where(jnp.arange(24) < 20, 1, 0)[None].repeat(2, 0)
    _, routing = run(make(SPARSE), ids, "hidden_and_routing", segment_ids=segments)
    np.testing.assert_allclose(routing.tokens, 40)
    np.testing.assert_allclose(routing.assigned.sum(1), 80)


def test_a_parallel_layer_adds_both_sublayers_of_one_norm():
    layer = make(PARALLEL).layers[0]
    x = jax.random.normal(jax.random.key(2), (1, 6, 32))
    model = make(PARALLEL)
    positions = jnp.arange(6)[None]

    @jax.jit
    def both(x):
        context = _context(model, positions)
        normed = layer.pre_attention_norm(x)
        attended, _ = layer.attention(normed, context.angles[0], positions, None)
        return layer(x, context, None)[0], x + attended + layer.mlp(normed)

    out, expected = both(x)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert not hasattr(layer, "pre_ffw_norm")


def test_global_layers_without_rope_do_not_know_where_a_token_stands():
    def last_of(order, config):
        only_global = dataclasses.replace(config, layer_types=("global",), num_layers=1, experts=None)
        return run(make(only_global), jnp.array([order]))[0, -1]

    without = dataclasses.replace(DENSE, global_rope=False)
    np.testing.assert_allclose(last_of([5, 6, 7, 8], without), last_of([7, 5, 6, 8], without), atol=1e-5)
    assert np.abs(last_of([5, 6, 7, 8], DENSE) - last_of([7, 5, 6, 8], DENSE)).max() > 1e-2


TWO = dataclasses.replace(DENSE, num_layers=2, sliding_window=64)  # no text here is as long as the window


def test_global_layers_have_a_base_of_their_own_and_local_ones_keep_theirs():
    # With a window that covers all, a layer's kind says nothing but which base it has.
    one = dataclasses.replace(TWO, rope_theta=50.0, global_rope_theta=1e5)
    swapped = dataclasses.replace(TWO, layer_types=("global", "local"), rope_theta=1e5, global_rope_theta=50.0)
    logits = run(make(one), tokens(1))
    np.testing.assert_allclose(logits, run(make(swapped), tokens(1)), atol=3e-5)
    for other in (dataclasses.replace(one, global_rope_theta=None), dataclasses.replace(one, rope_theta=1e5)):
        assert np.abs(logits - run(make(other), tokens(1))).max() > 1e-3


def test_scaling_stretches_the_positions_of_global_layers_only():
    only = {kind: dataclasses.replace(TWO, layer_types=(kind,), num_layers=1) for kind in ("local", "global")}
    scaled = dataclasses.replace(only["global"], global_rope_scaling=LinearScaling(4.0))
    places = jnp.arange(24)[None]
    near = run(make(only["global"]), tokens(1), positions=places)
    np.testing.assert_allclose(run(make(scaled), tokens(1), positions=4 * places), near, atol=1e-5)
    assert np.abs(run(make(scaled), tokens(1), positions=places) - near).max() > 1e-3
    both = dataclasses.replace(TWO, global_rope_scaling=YarnScaling(4.0, 16))
    np.testing.assert_array_equal(make(both).rotary(places)[0], make(TWO).rotary(places)[0])
    assert np.abs(make(both).rotary(places)[1][0] - make(TWO).rotary(places)[1][0]).max() > 1e-2


def test_a_base_that_is_the_same_for_all_layers_is_computed_once():
    local, wide = make(dataclasses.replace(TWO, global_rope_theta=TWO.rope_theta)).rotary(jnp.arange(3)[None])
    assert wide is local
    assert make(dataclasses.replace(TWO, global_rope=False)).rotary(jnp.arange(3)[None])[1] is None


def test_a_run_from_before_there_were_bases_of_global_layers_is_read():
    saved = config_to_dict(DENSE)
    assert saved.pop("global_rope_theta") is None and saved.pop("global_rope_scaling") is None
    assert config_from_dict(saved) == DENSE


@pytest.mark.parametrize("scaling", [LinearScaling(2.0), YarnScaling(4.0, 64), Llama3Scaling(8.0, 8192)], ids=str)
def test_every_kind_of_scaling_survives_json(scaling):
    config = dataclasses.replace(DENSE, global_rope_scaling=scaling, global_rope_theta=1e6)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_a_config_survives_json():
    for config in (*KINDS.values(), *PRESETS.values()):
        assert config_from_dict(config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_kv_heads": 3}, "multiple of num_kv_heads"),
        ({"block": "parallel"}, "post_norms must be false"),
        ({"block": "crossed"}, "'serial' or 'parallel'"),
        ({"experts_every": 0}, "experts_every must be at least 1"),
        ({"global_rope_theta": 0.0}, "global_rope_theta must be positive"),
        ({"global_rope_theta": 1e6, "global_rope": False}, "global_rope_theta is of global layers that rotate"),
        ({"global_rope_scaling": LinearScaling(2.0), "layer_types": ("local",)}, "global_rope_scaling is of global"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(DENSE, **wrong)


def _context(model, positions):
    from zoo.models.decoder import LayerContext

    return LayerContext(model.rotary(positions), positions, None, None, None)
