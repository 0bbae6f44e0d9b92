"""A sparse layer equals the plain sum over its experts, forward and backward; what has no room goes through as zero."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.errors import UserError
from zoo.nn.execution import Execution
from zoo.nn.expert_dispatch import collect, expert_capacity, sort_all, sort_with_capacity, spread
from zoo.nn.experts import ExpertsConfig, SparseFeedForward

B, T, D, F, E, K = 3, 20, 16, 24, 8, 2
CONFIG = ExpertsConfig(E, K, F)
EXECUTION = Execution()
MASK = jnp.arange(T)[None] < jnp.array([20, 13, 0])[:, None]
X = jax.random.normal(jax.random.key(1), (B, T, D))


def layer_of(config, execution=EXECUTION):
    layer = SparseFeedForward(D, config, execution=execution, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    noisy = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape, a.dtype), state)
    return graphdef, noisy


@jax.jit
def outputs(layer, x, mask=None, rng=None):
    return layer(x, mask, rng)


@jax.jit
def plain(layer, x, mask=None):
    """Every expert on every token, weighted."""
    config, routing, y = layer.config, layer.router(x), jnp.zeros_like(x)
    for e in range(config.num_experts):
        gate, up = x @ layer.gate[...][e], x @ layer.up[...][e]
        if config.expert_bias:
            gate, up = gate + layer.gate_bias[...][e], up + layer.up_bias[...][e]
        if config.activation == "clipped_swiglu":
            gate, up = jnp.minimum(gate, 7.0), jnp.clip(up, -7.0, 7.0)
            hidden = (up + 1) * gate * jax.nn.sigmoid(1.702 * gate)
        else:
            hidden = (jax.nn.silu(gate) if config.activation == "silu" else jax.nn.gelu(gate, approximate=True)) * up
        out = hidden @ layer.down[...][e]
        out = out + layer.down_bias[...][e] if config.expert_bias else out
        y += jnp.sum(jnp.where(routing.chosen == e, routing.weights, 0.0), -1)[..., None] * out
    y = y if mask is None else jnp.where(mask[..., None], y, 0)
    return y + layer.shared(x) if config.shared_hidden_dim else y


def with_gradients(call, graphdef, state, x):
    def loss(state, x):
        y = call(nnx.merge(graphdef, state), x)
        return jnp.sum(jnp.sin(y) * jnp.arange(1, D + 1)), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(state, x)
    return y, gradients


@pytest.mark.parametrize(
    ("config", "mask"),
    [
        (
            replace(
                CONFIG,
                routing="topk_softmax",
                activation="clipped_swiglu",
                expert_bias=True,
                router_bias=True,
                shared_hidden_dim=8,
            ),
            None,
        ),
        (replace(CONFIG, routing="sigmoid_topk", activation="silu", dispatch="capacity", eval_capacity_factor=9), MASK),
    ],
    ids=["dropless", "capacity"],
)
def test_outputs_and_gradients_are_those_of_the_plain_sum_over_experts(config, mask):
    graphdef, state = layer_of(config)
    y, gradients = with_gradients(lambda layer, x: layer(x, mask)[0], graphdef, state, X)
    expected, expected_gradients = with_gradients(lambda layer, x: plain(layer, x, mask), graphdef, state, X)
    np.testing.assert_allclose(y, expected, atol=2e-6)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("dispatch", "favourites"), [("dropless", [3]), ("capacity", [2, 7])])
def test_experts_without_tokens_and_with_all_of_them_are_exact(dispatch, favourites):
    k = min(K, len(favourites))
    config = replace(CONFIG, experts_per_token=k, router_bias=True, dispatch=dispatch, eval_capacity_factor=E)
    graphdef, state = layer_of(config)
    state["router"]["bias"] = state["router"]["bias"].replace(jnp.full(E, -50.0).at[jnp.array(favourites)].set(0.0))
    layer = nnx.merge(graphdef, state)
    y, statistics = outputs(layer, X)
    assert set(np.flatnonzero(statistics.assigned)) <= set(favourites)
    np.testing.assert_allclose(y, plain(layer, X), atol=2e-6)


def test_bfloat16_activations_give_bfloat16_with_float32_routing():
    graphdef, state = layer_of(CONFIG, Execution(compute_dtype="bfloat16"))
    layer = nnx.merge(graphdef, state)
    y, statistics = outputs(layer, X.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and statistics.z.dtype == jnp.float32
    exact = plain(layer, X.astype(jnp.bfloat16).astype(jnp.float32))
    assert float(jnp.abs(y - exact).max()) < 0.03 * float(jnp.abs(exact).max())


def test_spread_and_collect_are_transposes_of_each_other():
    chosen = jax.random.randint(jax.random.key(0), (12, 3), 0, 5)
    dispatch = sort_all(chosen, jnp.arange(12) != 4, 5)
    arguments = (dispatch.source, dispatch.place, dispatch.complete)
    x, rows = jax.random.normal(jax.random.key(1), (12, 4)), jax.random.normal(jax.random.key(2), (36, 4))
    np.testing.assert_allclose(jnp.vdot(spread(x, *arguments), rows), jnp.vdot(x, collect(rows, *arguments)), rtol=1e-5)
    pulled = jax.vjp(lambda x: x[dispatch.source // 3], x)[1](rows)[0]
    np.testing.assert_allclose(jax.vjp(lambda x: spread(x, *arguments), x)[1](rows)[0], pulled, rtol=1e-5)


def test_rows_are_sorted_by_expert_and_padding_belongs_to_none():
    chosen = jnp.array([[1, 0], [2, 1], [0, 2]])
    dispatch = sort_all(chosen, jnp.array([True, False, True]), 3)
    np.testing.assert_array_equal(dispatch.group_sizes, [2, 1, 1])
    np.testing.assert_array_equal(dispatch.source, [1, 4, 0, 5, 2, 3])
    np.testing.assert_array_equal(dispatch.place, [[2, 0], [4, 5], [1, 3]])


def test_capacity_is_rounded_has_a_floor_and_no_more_than_there_are_tokens():
    assert expert_capacity(128, 8, 2, 1.25) == 40
    assert expert_capacity(100, 8, 1, 1.0) == 12  # 12.5: to even
    assert expert_capacity(64, 32, 1, 1.0) == 4
    assert expert_capacity(3, 8, 2, 1.25) == 3


def test_all_first_choices_have_priority_over_second_ones():
    """Six tokens, room for four per expert: of expert 0 the four first choices, though a second one comes earlier."""
    chosen = jnp.array([[[1, 0], [0, 1], [0, 1], [0, 2], [0, 2], [1, 2]]])
    dispatch = jax.jit(sort_with_capacity, static_argnums=(2, 3))(chosen, None, 3, 0.5)
    rows = dispatch.source.reshape(3, 4)
    np.testing.assert_array_equal(rows[0], [2, 4, 6, 8])
    np.testing.assert_array_equal(rows[1], [0, 10, 3, 5])
    np.testing.assert_array_equal(rows[2], [7, 9, 11, 12])  # 12: no choice
    assert dispatch.dropped == 1
    np.testing.assert_array_equal(dispatch.place[0], [4, 12])  # the second choice of token 0 has no row


def test_a_dropped_choice_counts_for_nothing_and_its_weight_goes_to_nobody():
    room = dict(dispatch="capacity", experts_per_token=1, eval_capacity_factor=0.2, capacity_factor=3.0)
    graphdef, state = layer_of(replace(CONFIG, router_bias=True, **room))
    state["router"]["bias"] = state["router"]["bias"].replace(jnp.zeros(E).at[2].set(50.0))
    layer = nnx.merge(graphdef, state)
    y, statistics = outputs(layer, X, MASK)
    # The expert takes four tokens of each of the two sequences.
    assert statistics.dropped == (20 + 13) - 2 * 4
    np.testing.assert_allclose(y[:, :4], plain(layer, X, MASK)[:, :4], atol=2e-6)
    assert not np.any(y[:, 4:])
    in_training = outputs(layer, X, MASK, jax.random.key(0))[1]
    assert in_training.dropped == (20 + 13) - 2 * 8


def test_a_sequence_is_not_crowded_out_by_another():
    config = replace(CONFIG, dispatch="capacity", eval_capacity_factor=0.5)
    graphdef, state = layer_of(config)
    layer = nnx.merge(graphdef, state)
    np.testing.assert_allclose(outputs(layer, X)[0][1:2], outputs(layer, X[1:2])[0], atol=2e-6)


def compiled(config, tokens=64):
    graphdef, state = layer_of(config)

    def loss(state, x):
        y, statistics = nnx.merge(graphdef, state)(x)
        return jnp.sum(jnp.sin(y)) + statistics.z

    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(state, jnp.zeros((1, tokens, D))).compile()


def test_no_array_has_tokens_experts_and_capacity_as_axes():
    tokens = 64
    text = compiled(CONFIG, tokens).as_text()
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in re.findall(r"(?:f32|s32|pred)\[([\d,]+)\]", text)]
    assert max(sizes) < tokens * E * (tokens * K // E)
    assert tokens * K * F in sizes  # the pattern does find gate and up


def test_weights_of_the_backward_pass_need_no_product_twice():
    """Kept for the backward pass are gate and up, and no k-fold token."""
    graphdef, state = layer_of(CONFIG)
    pull = jax.eval_shape(lambda *inputs: jax.vjp(lambda s, x: nnx.merge(graphdef, s)(x)[0], *inputs)[1], state, X)
    rows = B * T * K
    kept = [leaf for leaf in jax.tree.leaves(pull) if hasattr(leaf, "shape") and leaf.shape[:1] == (rows,)]
    assert sorted(leaf.shape for leaf in kept if leaf.shape[1:] > (1,)) == [(rows, F), (rows, F)]


def test_parameter_and_operation_counts_are_those_of_the_layer():
    config = replace(CONFIG, expert_bias=True, router_bias=True, balancing_bias_rate=1e-3, shared_hidden_dim=8)
    _, state = layer_of(config)
    assert config.num_parameters(D) == sum(leaf.size for leaf in jax.tree.leaves(state))
    assert config.num_active_parameters(D) == config.num_parameters(D) - (E - K) * (3 * D * F + 2 * F + D)
    assert CONFIG.flops_per_token(D) == K * 6 * D * F + 2 * D * E


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("experts_per_token", 9, "experts_per_token=9 is more than num_experts=8"),
        ("num_experts", 0, "num_experts must be at least 1"),
        ("routing", "softmax", "routing 'softmax' is unknown"),
        ("activation", "relu", "activation 'relu' is unknown"),
        ("dispatch", "random", "dispatch 'random' is unknown"),
        ("capacity_factor", float("nan"), "capacity_factor must be between"),
        ("jitter", 1.0, "jitter must be between 0 and 0.99"),
        ("exchange_capacity_factor", 0.5, "exchange_capacity_factor must be none or between 1 and 1e6, got 0.5"),
    ],
)
def test_wrong_fields_are_refused_by_name(field, value, words):
    with pytest.raises(UserError, match=words):
        replace(CONFIG, **{field: value})
