"""A decoder with workspace layers: causal, by document, cached, divided over devices."""

import functools
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.errors import UserError
from zoo.inference import Sampling, generate
from zoo.models import build, config_from_dict, config_to_dict
from zoo.models.workspace_decoder import PRESETS, WorkspaceDecoderConfig
from zoo.nn import Execution
from zoo.nn.workspace import PUBLIC_CODE
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, init_sharded, make_mesh

DECODER = WorkspaceDecoderConfig(
    vocab_size=32,
    embed_dim=16,
    num_layers=2,
    hidden_dim=24,
    workspace=replace(PUBLIC_CODE, num_slots=3, num_heads=2, key_dim=4, top_k=2, mlp_layers=1),
    chunk_size=3,
    layer_types=("local", "workspace"),
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    sliding_window=2,
)
MESH = MeshConfig(data=2, fsdp=2, tensor=2)


@functools.cache
def make(config, **execution):
    return build(config, execution=Execution(**execution), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("config", [*PRESETS.values(), DECODER])
def test_parameters_are_counted_to_the_last_one_and_a_config_survives_json(config):
    state = nnx.state(nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters()
    assert config_from_dict(config_to_dict(config)) == config


TOKENS = np.random.default_rng(1).integers(3, 32, (4, 8))
SEGMENTS = np.array([[1, 1, 1, 1, 1, 2, 2, 2]] * 4)


def decoder_loss(graphdef, state):
    logits = nnx.merge(graphdef, state)(TOKENS, segment_ids=SEGMENTS)
    return jnp.sum(jnp.square(logits)), logits


def test_a_decoder_sees_no_later_token_and_no_other_document():
    graphdef, state = nnx.split(make(DECODER))
    run = jax.jit(lambda state, tokens: nnx.merge(graphdef, state)(tokens, segment_ids=SEGMENTS))
    logits = run(state, TOKENS)
    assert logits.shape == (4, 8, 32)
    for place, sees in ((3, [3, 4]), (6, [6, 7])):
        tokens = TOKENS.copy()
        tokens[:, place] = 1
        changed = np.abs(run(state, tokens) - logits).max((0, 2))
        assert np.flatnonzero(changed).tolist() == sees


@pytest.mark.slow
def test_prefill_and_single_tokens_equal_the_full_pass_of_a_padded_row():
    config = replace(DECODER, num_layers=2)
    graphdef, state = nnx.split(make(config))
    mask = np.array([[0, 0, 0, 1, 1, 1, 1, 1]] * 2 + [[1] * 8] * 2)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)

    @jax.jit
    def run(state, tokens, positions, mask, cache):
        return nnx.merge(graphdef, state)(tokens, positions=positions, segment_ids=mask, cache=cache)

    full = jax.jit(lambda s: nnx.merge(graphdef, s)(TOKENS, positions=positions, segment_ids=mask))(state)
    cache, parts = make(config).init_cache(4, 8), []
    for part in (slice(0, 6), slice(6, 7), slice(7, 8)):
        logits, cache = run(state, TOKENS[:, part], positions[:, part], mask[:, part], cache)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, 1)[mask > 0], full[mask > 0], atol=1e-5)


@pytest.mark.slow
def test_generation_is_greedy_whatever_is_padded_read_in_pieces_or_divided():
    model = make(DECODER, scan_layers=True)
    mask = np.array([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    prompts = np.where(mask, TOKENS[:2, :5], 0)
    options = dict(max_new_tokens=6, sampling=Sampling(temperature=0.0), stop_tokens=())
    found = generate(model, prompts, mask, **options)
    full = jax.jit(model.__call__)
    for row, start in ((0, 3), (1, 0)):
        ids, length = np.zeros((1, 11), int), 5 - start
        ids[0, : length + 6] = [*prompts[row, start:], *found[row]]
        # What comes later does not change what was likeliest.
        np.testing.assert_array_equal(full(ids)[0, length - 1 : length + 5].argmax(-1), found[row])
    np.testing.assert_array_equal(generate(model, prompts, mask, prefill_chunk=2, **options), found)
    mesh = make_mesh(MESH)
    np.testing.assert_array_equal(generate(model, prompts, mask, mesh=mesh, **options), found)


def divided_decoder(config):
    mesh, rules = make_mesh(MESH), ShardingRules()
    return *init_sharded(lambda: build(config, rngs=nnx.Rngs(0)), mesh, rules), activation_sharding(mesh, rules)


@pytest.mark.slow
def test_a_decoder_divided_over_devices_has_the_logits_of_one():
    config = replace(DECODER, layer_types=("workspace",), num_layers=1)
    graphdef, state = nnx.split(make(config))
    expected = jax.jit(lambda state: decoder_loss(graphdef, state))(state)[1]
    graphdef, state, context = divided_decoder(config)
    with context:
        found = jax.jit(lambda state: decoder_loss(graphdef, state))(state)[1]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_a_decoder_divided_over_devices_has_the_gradients_of_one():
    config = replace(DECODER, layer_types=("local", "workspace", "global"), num_layers=3)
    graphdef, state = nnx.split(make(config))
    expected = jax.jit(jax.value_and_grad(lambda s: decoder_loss(graphdef, s), has_aux=True))(state)
    graphdef, state, context = divided_decoder(config)
    with context:
        found = jax.jit(jax.value_and_grad(lambda s: decoder_loss(graphdef, s), has_aux=True))(state)
    chex.assert_trees_all_close(jax.device_get(found), jax.device_get(expected), atol=1e-4)


def test_a_decoder_of_unknown_layers_is_refused():
    with pytest.raises(UserError, match="layer_types must be a sequence of"):
        replace(DECODER, layer_types=("workspace", "sparse"))


def test_operations_of_a_workspace_decoder_do_not_grow_with_the_length():
    alone = replace(DECODER, layer_types=("workspace",))
    assert alone.flops_per_token(64) == alone.flops_per_token(4096)
    all_global = replace(DECODER, layer_types=("global",))
    assert all_global.flops_per_token(64) < all_global.flops_per_token(4096)
    # A slot's gates, MLP and reading are products with matrices of the layer: more than once for every position.
    assert alone.flops_per_token(64) > 2 * alone.num_parameters()
