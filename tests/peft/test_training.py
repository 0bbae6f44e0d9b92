"""Training adapters: gradients on eight devices are those of one, and reach nothing but the adapter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.peft.small import BOTTLENECK, CONFIG, LORA, PREFIX, TOKENS, random_adapter, sparse_model
from zoo.models import build
from zoo.nn import Execution
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh, state_shardings
from zoo.peft import PeftConfig, adapted_model, first_parameters, put_together, trainable_report, with_adapters
from zoo.peft.sparse import top_k_changed
from zoo.training.optimizer import OptimizerConfig, is_decayed, make_optimizer

BATCH = np.tile(TOKENS, (4, 1))
WEIGHTS = np.random.default_rng(2).normal(size=16).astype(np.float32)
"""Of the hidden states in the loss: the mean of their squares is fixed by the last norm."""


def gradients(model, mesh=None):
    """Of a weighted mean of hidden states by all parameters of adapters, on one device or on a mesh."""
    names = ("_lora_a", "_lora_b", "_down", "_down_bias", "_up", "prefix_key", "prefix_value")

    def is_adapter(path, value):
        return isinstance(value, nnx.Param) and ("bottleneck" in path[-1] or path[-1].endswith(names))

    graphdef, params, rest = nnx.split(model, is_adapter, ...)
    if mesh is not None:
        params, rest = (jax.device_put(s, state_shardings(s, mesh, ShardingRules())) for s in (params, rest))

    @jax.jit
    def run(params, rest, tokens):
        def loss(params):
            return jnp.mean(WEIGHTS * nnx.merge(graphdef, params, rest).hidden_states(tokens))

        return jax.value_and_grad(loss)(params)

    if mesh is None:
        return run(params, rest, BATCH)
    with activation_sharding(mesh, ShardingRules()):
        return run(params, rest, BATCH)


@pytest.mark.parametrize(
    "scan", [pytest.param(False, id="unrolled", marks=pytest.mark.slow), pytest.param(True, id="scanned")]
)
def test_eight_devices_compute_the_gradients_of_one(scan):
    model = build(CONFIG, execution=Execution(scan_layers=scan), rngs=nnx.Rngs(0))
    lora = dataclasses.replace(LORA, target=("query", "value", "output", "gate", "down"))
    adapted = with_adapters(model, [random_adapter(model, config) for config in (lora, BOTTLENECK, PREFIX)])
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    (loss, found), (other_loss, other) = gradients(adapted), gradients(adapted, mesh)
    np.testing.assert_allclose(loss, other_loss, rtol=1e-5)
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(other), strict=True))
    assert len(pairs) == (2 if scan else 4) * (2 * 5 + 2 * 3 + 2)
    for one, two in pairs:
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(one, two, atol=2e-4 * np.abs(one).max())


def test_experts_on_eight_devices_compute_the_gradients_of_one():
    model = sparse_model("mixtral-8x7b")
    adapted = with_adapters(model, [random_adapter(model, PeftConfig("lora", rank=2, target=("gate", "down")))])
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, expert=2, tensor=2), jax.devices()[:8])
    (loss, found), (other_loss, other) = gradients(adapted), gradients(adapted, mesh)
    np.testing.assert_allclose(loss, other_loss, rtol=1e-5)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(other), strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(one, two, atol=2e-4 * np.abs(one).max())


def test_the_optimizer_keeps_nothing_of_the_base(base):
    adapted = adapted_model(nnx.merge(*nnx.split(base)), PeftConfig("lora", rank=4))
    params, _ = first_parameters(adapted, 0)
    state = make_optimizer(OptimizerConfig(), 10, params).init(params)
    trained = 4 * (16 * 4 + 4 * 4 * 8 + 16 * 4 + 4 * 2 * 8)
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 2 * trained
    report = trainable_report(params, nnx.state(base, nnx.Param), state)
    assert report.startswith(f"{trained:,} trained beside {CONFIG.num_parameters():,} that stay")
    assert is_decayed("layers/0/attention/query_lora_a") and is_decayed("layers/0/mlp/bottleneck0_up")
    assert not is_decayed("layers/0/norm/scale_delta") and not is_decayed("layers/0/mlp/bottleneck0_down_bias")


@pytest.mark.parametrize("method", ["bitfit", "sparse"])
def test_changes_reach_their_entries_and_no_others(method, base, scanned):
    other = build(CONFIG, execution=Execution(scan_layers=True), rngs=nnx.Rngs(1))
    config = PeftConfig("bitfit", norm_scales=True) if method == "bitfit" else PeftConfig("sparse", density=0.03)
    mask = top_k_changed(scanned, other, ("query", "mlp/down"), 0.03) if method == "sparse" else None
    adapted = adapted_model(nnx.merge(*nnx.split(scanned)), config, mask=mask)
    params, buffers = first_parameters(adapted, 0)
    state = nnx.state(scanned, nnx.Param)

    @jax.jit
    def step(params):
        def loss(params):
            return jnp.mean(jnp.square(put_together(adapted, params, state, buffers)(TOKENS)))

        return jax.tree.map(lambda p, g: p - 0.1 * jnp.sign(g), params, jax.grad(loss)(params))

    moved = nnx.state(put_together(adapted, step(params), state, buffers))
    changed = {path: np.asarray(leaf[...] != state_leaf(state, path)) for path, leaf in nnx.to_flat_state(moved)}
    if method == "bitfit":
        assert all(values.all() == (path[-1] == "scale") for path, values in changed.items())
        assert not any(values.any() for path, values in changed.items() if path[-1] != "scale")
        return
    total = sum(leaf_size(state, path) for path in changed if path[-1] in ("query", "down"))
    assert sum(values.sum() for values in changed.values()) == -(-3 * total // 100) == optax.tree.size(params)
    sizes = {p: np.abs(np.asarray(state_leaf(nnx.state(other), p) - state_leaf(state, p))) for p in changed}
    least = min(sizes[p][values].min() for p, values in changed.items() if values.any())
    others = [sizes[p][~v].max() for p, v in changed.items() if p[-1] in ("query", "down")]
    assert max(others) <= least


def state_leaf(state, path):
    for part in path:
        state = state[part]
    return state[...]


def leaf_size(state, path):
    return state_leaf(state, path).size
