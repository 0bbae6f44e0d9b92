"""Recurrent independent mechanisms: who is active, who writes, who hears."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.marks import all_but, slow
from zoo.errors import UserError
from zoo.models import build, config_from_dict, config_to_dict, preset
from zoo.models.rims import PRESETS, RimsConfig
from zoo.nn import Execution, gathered_outside_layers
from zoo.nn.workspace import WorkspaceConfig
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh, spmd, state_axes

TINY = RimsConfig(
    input_dim=3,
    output_dim=3,
    num_units=4,
    num_active=2,
    hidden_dim=8,
    num_heads=2,
    mlp_dim=10,
    workspace=WorkspaceConfig(num_slots=2, num_heads=2, key_dim=4),
)
KINDS = {kind: replace(TINY, communication=kind) for kind in ("none", "pairwise", "workspace")}
INPUTS = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
PRESENT = np.array([[True, True, True, False], [True, True, True, True]])


@functools.cache
def make(kind: str):
    return nnx.split(build(KINDS[kind], rngs=nnx.Rngs(0)))


@functools.cache
def steps_and_gradients(kind: str):
    graphdef, _ = make(kind)

    def loss(state, inputs):
        found = nnx.merge(graphdef, state)(inputs, PRESENT)
        return jnp.sum(jnp.square(found.outputs) * PRESENT[:, None, :, None]), found

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("kind", all_but(["workspace"], list(KINDS)))
def test_as_many_units_as_asked_for_are_active_and_every_parameter_learns(kind):
    _, state = make(kind)
    (_, found), gradients = steps_and_gradients(kind)(state, INPUTS)
    assert found.outputs.shape == INPUTS.shape
    assert (found.active.sum(-1) == 2).all()
    assert len(np.unique(found.active.reshape(-1, 4), axis=0)) > 1
    assert np.isfinite(found.outputs).all()
    for path, gradient in nnx.to_flat_state(gradients):
        assert np.abs(gradient[...]).max() > 1e-7, path


@pytest.mark.parametrize("kind", [*slow("pairwise"), "workspace"])
def test_outputs_go_with_their_elements_and_absent_ones_count_for_nothing(kind):
    _, state = make(kind)
    run = steps_and_gradients(kind)
    outputs = run(state, INPUTS)[0][1].outputs
    order = np.array([2, 0, 1, 3])
    np.testing.assert_allclose(run(state, INPUTS[:, :, order])[0][1].outputs, outputs[:, :, order], atol=1e-5)
    changed = INPUTS.copy()
    changed[0, :, 3] = 7
    np.testing.assert_array_equal(run(state, changed)[0][1].outputs[0, :, :3], outputs[0, :, :3])


@functools.cache
def one_step(kind: str):
    """(units before, state after, outputs, active, who wrote) of one step from the beginning."""
    graphdef, state = make(kind)

    @jax.jit
    def run(state):
        model = nnx.merge(graphdef, state)
        before = model.initial_state(2)
        return before.hidden, *model.step(before, INPUTS[:, 0], PRESENT)

    return run(state)


@pytest.mark.parametrize("kind", ["pairwise", "workspace"])
def test_only_the_workspace_reaches_units_that_are_not_active(kind):
    before, after, _, active, weights = one_step(kind)
    moved = np.abs(after.hidden - before).max(-1) > 1e-6
    np.testing.assert_array_equal(moved, np.ones_like(active) if kind == "workspace" else active)
    if kind == "workspace":
        written = weights.max(axis=(1, 2)) > 0
        np.testing.assert_array_equal(written, active)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


def softmax(scores):
    return np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()


def test_a_pairwise_step_is_that_of_the_equations():
    """In float64, one unit and element after the other."""
    before, after, outputs, active, _ = one_step("pairwise")
    p = {path[-1]: np.asarray(v[...], np.float64) for path, v in nnx.to_flat_state(make("pairwise")[1])}
    for row in range(2):
        hidden = np.asarray(before[row], np.float64)
        x = INPUTS[row, 0][PRESENT[row]].astype(np.float64)
        elements, width = np.concatenate([np.zeros((1, 3)), x]), hidden.shape[1]
        keys, values = elements @ p["input_key"], elements @ p["input_value"]
        looks = [softmax(keys @ (h @ w) / width**0.5) for h, w in zip(hidden, p["input_query"])]
        chosen = np.argsort([look[0] for look in looks])[:2]
        assert sorted(chosen) == np.flatnonzero(active[row]).tolist()
        new = hidden.copy()
        for k in chosen:
            given, held = (looks[k] @ values) @ p["cell_input"][k] + p["cell_bias"][k], hidden[k] @ p["cell_state"][k]
            reset, update = (1 / (1 + np.exp(-(given + held)[i * width : (i + 1) * width])) for i in range(2))
            candidate = np.tanh(given[2 * width :] + reset * held[2 * width :])
            new[k] = (1 - update) * candidate + update * hidden[k]
        spoken = new.copy()
        for k in chosen:
            heard = []
            for part in (slice(0, 4), slice(4, 8)):
                scores = [(new[k] @ p["query"][k])[part] @ (new[o] @ p["key"][o])[part] / 2 for o in range(4)]
                share = softmax(np.array(scores))
                heard.append(sum(share[o] * (new[o] @ p["value"][o])[part] for o in range(4)))
            spoken[k] = new[k] + np.concatenate(heard) @ p["output"][k]
        np.testing.assert_allclose(after.hidden[row], spoken, atol=1e-5)
        for e, element in enumerate(x):
            share = softmax(spoken @ p["head_key"] @ (element @ p["head_query"]) / width**0.5)
            known = np.concatenate([element, share @ (spoken @ p["head_value"])])
            inner = np.asarray(jax.nn.gelu(known @ p["mlp_in"] + p["mlp_bias"]))
            expected = element + inner @ p["mlp_out"] + p["mlp_out_bias"]
            np.testing.assert_allclose(outputs[row, e], expected, atol=1e-5)


def test_a_roll_out_feeds_the_model_its_own_outputs():
    graphdef, state = make("workspace")

    @jax.jit
    def run(state):
        model = nnx.merge(graphdef, state)
        rolled = model.roll_out(INPUTS, 3, PRESENT)
        again = model(jnp.concatenate([INPUTS, rolled[:, :2]], axis=1), PRESENT)
        return rolled, again.outputs[:, 4:]

    rolled, again = run(state)
    assert rolled.shape == (2, 3, 4, 3)
    np.testing.assert_allclose(rolled, again, atol=1e-5)
    with pytest.raises(ValueError, match="output_dim=2 is not input_dim=3"):
        build(replace(TINY, output_dim=2, residual=False), rngs=nnx.Rngs(0)).roll_out(INPUTS, 1)


@pytest.mark.slow
def test_divided_over_devices_outputs_are_those_of_one():
    graphdef, state = make("workspace")
    inputs = jnp.tile(INPUTS, (2, 1, 1, 1))

    def run(state, inputs):
        return gathered_outside_layers(nnx.merge(graphdef, state), Execution())(inputs).outputs

    alone = jax.jit(run)(state, inputs)
    wide = ("batch", None, None, None)
    with activation_sharding(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), ShardingRules()):
        divided = jax.jit(spmd(run, (state_axes(state), wide), wide, {"batch": 4}))(state, inputs)
    np.testing.assert_allclose(divided, alone, atol=1e-5)


@pytest.mark.parametrize("config", [*KINDS.values(), *PRESETS.values()])
def test_parameters_are_counted_to_the_last_one_and_a_config_survives_json(config):
    state = nnx.state(nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters()
    assert config_from_dict(config_to_dict(config)) == config
    assert preset("rims-bouncing-balls").num_units == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_active=5), "num_active=5 is more than num_units=4"),
        (dict(num_heads=3), "not a multiple of num_heads=3"),
        (dict(communication="loud"), "'none', 'pairwise' or 'workspace'"),
        (dict(output_dim=2), "residual needs output_dim=2"),
        (dict(mlp_dim=0), "mlp_dim must be at least 1"),
    ],
)
def test_an_impossible_config_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        replace(TINY, **change)
