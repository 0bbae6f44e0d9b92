"""The six variants differ in how tokens speak, and in nothing else; a workspace is divided like everything else."""

import functools
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.marks import all_but, slow
from zoo.errors import UserError
from zoo.models import build, config_from_dict, config_to_dict, preset
from zoo.models.workspace_transformer import (
    PRESETS,
    VARIANTS,
    WorkspaceTransformer,
    WorkspaceTransformerConfig,
    variant,
)
from zoo.nn import Execution, gathered_outside_layers, stack_layers
from zoo.nn.workspace import PUBLIC_CODE
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh, spmd, state_axes

TINY = WorkspaceTransformerConfig(
    input_dim=5,
    num_classes=3,
    question_dim=4,
    positions=False,
    embed_dim=16,
    num_layers=2,
    num_heads=2,
    hidden_dim=24,
    workspace=replace(PUBLIC_CODE, num_slots=3, num_heads=2, key_dim=4),
)
MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def tiny(name: str) -> WorkspaceTransformerConfig:
    return variant(TINY, name, top_k=2)


@functools.cache
def make(config, **execution):
    return build(config, execution=Execution(**execution), rngs=nnx.Rngs(0))


def scenes(batch: int = 2):
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, 6, 5)).astype(np.float32), rng.normal(size=(batch, 4)).astype(np.float32)


def squares(graphdef, state, elements, question):
    """(sum of squares of the logits, logits)."""
    logits = nnx.merge(graphdef, state)(elements, question)
    return jnp.sum(jnp.square(logits)), logits


@functools.cache
def squares_and_gradients(graphdef):
    return jax.jit(jax.value_and_grad(functools.partial(squares, graphdef), has_aux=True))


def parameter_count(config) -> int:
    state = nnx.state(nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0))))
    return sum(leaf.size for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", all_but(["TR+HSW"], list(VARIANTS)))
def test_the_order_of_elements_is_of_no_account_and_every_parameter_learns(name):
    graphdef, state = nnx.split(make(tiny(name)))
    run = squares_and_gradients(graphdef)
    elements, question = scenes()
    (_, logits), gradients = run(state, elements, question)
    assert logits.shape == (2, 3) and logits.dtype == jnp.float32
    for path, gradient in nnx.to_flat_state(gradients):
        # What is added to all of its scores, softmax does not see.
        assert "key_bias" in path or np.abs(gradient[...]).max() > 1e-7, path
    (_, permuted), _ = run(state, elements[:, [4, 0, 2, 5, 1, 3]], question)
    np.testing.assert_allclose(permuted, logits, atol=1e-5)
    (_, other), _ = run(state, elements, -question)
    assert np.abs(other - logits).max() > 1e-4


def test_the_variants_differ_in_what_they_share_and_how_they_speak():
    kinds = {name: tiny(name) for name in VARIANTS}
    layers = {name: len(make(config).layers) for name, config in kinds.items()}
    assert layers == {"TR": 1, "TR+HC": 2, "STR": 1, "ISAB": 2, "TR+SSW": 1, "TR+HSW": 1}
    assert kinds["TR"].num_parameters() == kinds["STR"].num_parameters() < kinds["TR+HC"].num_parameters()
    assert kinds["TR+SSW"].num_parameters() == kinds["TR+HSW"].num_parameters()
    assert kinds["TR+HSW"].workspace.top_k == kinds["STR"].attention_top_k == 2
    assert kinds["TR+SSW"].workspace.top_k is None and kinds["TR"].attention_top_k is None
    with pytest.raises(UserError, match="unknown variant 'TR\\+XX'"):
        variant(TINY, "TR+XX", top_k=2)


def test_who_writes_is_told_layer_by_layer_and_the_memory_is_passed_on():
    model, (elements, question) = make(tiny("TR+HSW")), scenes()
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state):
        """(as the model tells, layer by layer by hand, the second layer with an empty memory)."""
        model = nnx.merge(graphdef, state)
        layer, x = model.layers[0], model.embed(elements, question)
        empty = layer.workspace.initial_memory(2)
        x, memory, first = layer(x, empty)
        return model.who_writes(elements, question), (first, layer(x, memory)[2]), layer(x, empty)[2]

    weights, by_hand, forgetful = run(state)
    np.testing.assert_allclose(weights, by_hand, atol=1e-6)
    assert np.abs(weights[1] - forgetful).max() > 1e-3
    assert weights.shape == (2, 2, 2, 3, 8)
    assert ((weights > 0).sum(-1) == 2).all()
    assert (weights.sum(-1) < 1).all()
    with pytest.raises(ValueError, match="nobody writes"):
        make(tiny("TR")).who_writes(elements, question)


@pytest.mark.parametrize("first", [False, True])
def test_an_induced_layer_has_its_norms_after_its_sums_or_first(first):
    (layer, *_), x = (
        make(replace(tiny("ISAB"), norms_first=first)).layers,
        np.float32(scenes()[0][..., :1] + np.eye(6, 16)),
    )

    def block(block, x, y):
        norm, mlp_norm = block.attention_norm, block.mlp_norm
        if first:
            h = x + block.attention(norm(x), keys=norm(y))
            return h + block.mlp(mlp_norm(h))
        h = norm(x + block.attention(x, keys=y))
        return mlp_norm(h + block.mlp(h))

    points = jnp.broadcast_to(layer.inducing[...], (2, 3, 16))
    expected = block(layer.out, x, block(layer.into, points, x))
    np.testing.assert_allclose(layer(x, None)[0], expected, atol=1e-5)


def test_positions_are_sines_and_cosines_added_to_every_token():
    elements, question = scenes()
    with_positions, without = (make(replace(tiny("TR"), positions=p)).embed(elements, question) for p in (True, False))
    angles = np.arange(8)[:, None] / 10_000 ** (np.arange(8) / 8)
    added = np.asarray(with_positions - without)
    np.testing.assert_allclose(added[:, :, 0::2], np.sin(angles)[None].repeat(2, 0), atol=1e-5)
    np.testing.assert_allclose(added[:, :, 1::2], np.cos(angles)[None].repeat(2, 0), atol=1e-5)


@pytest.mark.parametrize("config", [*map(tiny, VARIANTS), *PRESETS.values()])
def test_parameters_are_counted_to_the_last_one_and_a_config_survives_json(config):
    assert parameter_count(config) == config.num_parameters()
    assert config_from_dict(config_to_dict(config)) == config


def test_presets_are_found_by_name():
    assert preset("workspace-sort-of-clevr") == PRESETS["workspace-sort-of-clevr"]


@pytest.mark.parametrize("layers", [1, *slow(2)])
def test_divided_over_devices_logits_and_gradients_are_those_of_one(layers):
    elements, question = scenes(batch=4)
    graphdef, state = nnx.split(make(replace(tiny("TR+HSW"), num_layers=layers)))
    (_, logits), expected = squares_and_gradients(graphdef)(state, elements, question)

    def part(state, *arrays):
        model = gathered_outside_layers(nnx.merge(graphdef, state), Execution())
        return model(*arrays)

    in_axes = (state_axes(state), ("batch", None, None), ("batch", None))

    @jax.jit
    def divided(state, *arrays):
        def loss(state):
            logits = spmd(part, in_axes, ("batch", None), {"batch": 4})(state, *arrays)
            return jnp.sum(jnp.square(logits)), logits

        return jax.value_and_grad(loss, has_aux=True)(state)

    with activation_sharding(make_mesh(MESH), ShardingRules()):
        (_, found), gradients = divided(state, elements, question)
    np.testing.assert_allclose(found, logits, atol=1e-5)
    chex.assert_trees_all_close(jax.device_get(gradients), jax.device_get(expected), atol=1e-4)


@pytest.mark.slow
def test_scanned_layers_compute_the_same():
    model, (elements, question) = make(tiny("TR+HC")), scenes()
    graphdef, _ = nnx.split(
        WorkspaceTransformer(tiny("TR+HC"), execution=Execution(scan_layers=True), rngs=nnx.Rngs(0))
    )
    scanned = nnx.merge(graphdef, stack_layers(nnx.state(model), 1))
    expected = squares_and_gradients(nnx.graphdef(model))(nnx.state(model), elements, question)[0][1]
    np.testing.assert_allclose(jax.jit(scanned.__call__)(elements, question), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_heads=3), "not a multiple of num_heads=3"),
        (dict(communication="loud"), "'attention', 'induced' or 'workspace'"),
        (dict(attention_top_k=2), "of 'attention' alone"),
        (dict(norms_first=True), "of 'induced' alone"),
        (dict(embed_dim=3, num_heads=1), "must be even"),
        (dict(question_dim=-1), "question_dim must not be negative"),
        (dict(num_classes=0), "num_classes must be at least 1"),
        (dict(workspace=replace(TINY.workspace, num_slots=17)), "num_slots=17 must not exceed"),
    ],
)
def test_an_impossible_config_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        replace(TINY, **change)


def test_a_question_is_given_if_and_only_if_the_model_has_one():
    elements, question = scenes()
    with pytest.raises(ValueError, match="question_dim is 4"):
        make(tiny("TR"))(elements)
    with pytest.raises(ValueError, match="question_dim is 0"):
        make(replace(tiny("TR"), question_dim=0))(elements, question)
