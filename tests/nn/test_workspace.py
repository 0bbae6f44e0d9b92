"""The workspace is its equations; hard competition is decided once, and losers learn nothing from it."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.nn.workspace_reference import directional_derivatives, exchange, parameters_of
from zoo.errors import UserError
from zoo.nn import Execution
from zoo.nn.competition import competition
from zoo.nn.workspace import PAPER, PUBLIC_CODE, Workspace, WorkspaceConfig

B, N, D, M = 2, 5, 6, 3
SMALL = dict(num_slots=M, num_heads=2, key_dim=3)
CONFIGS = {
    "paper_soft": replace(PAPER, **SMALL),
    "public_code": replace(PUBLIC_CODE, **SMALL, top_k=2),
    "hard_renormalised": WorkspaceConfig(
        **SMALL, memory_dim=8, top_k=2, scaled=False, bias=True, gates="per_slot", mlp_layers=2
    ),
    "hard_losers_held": WorkspaceConfig(
        **SMALL, top_k=2, renormalised=False, tied=True, input_projection=True, mlp_layers=1, mlp_shared=True
    ),
}
WRITERS = np.array([[True, False, True, True, True], [False, False, True, False, False]])


def make(config: WorkspaceConfig) -> Workspace:
    """One whose parameters are all away from zero, biases too."""
    workspace = Workspace(D, config, execution=Execution(), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(workspace)
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(0)
    leaves = [leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))


def inputs(width: int):
    rng = np.random.default_rng(1)
    shapes = {"x": (B, N, D), "memory": (B, M, width), "of_read": (B, N, D), "of_memory": (B, M, width)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_and_gradient_are_those_of_the_equations(name):
    config = CONFIGS[name]
    workspace = make(config)
    graphdef, state = nnx.split(workspace)
    given = inputs(workspace.width)
    writers = WRITERS if name == "hard_renormalised" else None

    @jax.jit
    def run(state, x, memory):
        def loss(state, x, memory):
            found = nnx.merge(graphdef, state)(x, memory, writers=writers)
            total = jnp.sum(found.read * given["of_read"]) + jnp.sum(found.memory * given["of_memory"])
            return total, found

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(state, x, memory)

    (of_state, of_x, of_memory), found = run(state, given["x"], given["memory"])
    scores_at = [{} for _ in range(B)]

    def rows(arguments):
        may = [None] * B if writers is None else writers
        x, memory = arguments["x"], arguments["memory"]
        return [exchange(arguments, config, x[b], memory[b], may[b], scores_at[b]) for b in range(B)]

    def total(arguments):
        read, memory, _ = map(np.stack, zip(*rows(arguments)))
        return (read * given["of_read"]).sum() + (memory * given["of_memory"]).sum()

    arguments = parameters_of(workspace) | {n: given[n].astype(np.float64) for n in ("x", "memory")}
    for got, expected in zip(found, zip(*rows(arguments))):
        np.testing.assert_allclose(got, np.stack(expected), atol=1e-5)
    gradients = parameters_of(nnx.merge(graphdef, of_state)) | {"x": of_x, "memory": of_memory}
    derivatives = directional_derivatives(total, arguments, np.random.default_rng(2))
    assert derivatives.keys() == gradients.keys()
    for place, (direction, derivative) in derivatives.items():
        along = float((np.asarray(gradients[place], np.float64) * direction).sum())
        assert along == pytest.approx(derivative, abs=1e-5, rel=1e-5), place
        # What is added to all of its scores, softmax does not see.
        assert "key_bias" in place or np.abs(gradients[place]).max() > 1e-4, place


def test_of_equal_scores_the_first_ones_win():
    scores = jnp.array([[1.0, 2.0, 2.0, 2.0, 0.0], [3.0, 3.0, 3.0, 3.0, 3.0], [2.0, 0.0, 1.0, 3.0, 2.0]])
    for renormalised in (True, False):
        weights = jax.jit(competition, static_argnums=(2, 3))(scores, None, 2, renormalised)
        np.testing.assert_array_equal(weights > 0, [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 1, 0]])
    np.testing.assert_allclose(
        weights.sum(1), jax.nn.softmax(scores)[np.arange(3)[:, None], [[1, 2], [0, 1], [0, 3]]].sum(1)
    )


def test_those_who_may_not_write_win_nothing_and_where_nobody_may_all_weights_are_zero():
    scores = jnp.array([[5.0, 1.0, 2.0], [5.0, 1.0, 2.0], [5.0, 1.0, 2.0]])
    visible = jnp.array([[False, True, True], [False, True, False], [False, False, False]])

    @jax.jit
    def weights_and_gradient(scores):
        weights, back = jax.vjp(lambda scores: competition(scores, visible, 2), scores)
        return weights, back(scores)[0]

    weights, gradient = weights_and_gradient(scores)
    first, second = np.exp([1, 2]) / np.exp([1, 2]).sum()
    np.testing.assert_allclose(weights, [[0, first, second], [0, 1, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0, -first * second, first * second], [0, 0, 0], [0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize(("renormalised", "losers_gradient"), [(True, False), (False, False), (False, True)])
def test_hard_competition_lets_no_gradient_through_to_losers_but_where_it_is_asked_to(renormalised, losers_gradient):
    config = WorkspaceConfig(
        num_slots=1, num_heads=1, key_dim=4, top_k=2, renormalised=renormalised, losers_gradient=losers_gradient
    )
    workspace = make(config)
    x = jnp.asarray(inputs(D)["x"])

    @jax.jit
    def written(x):
        (attended, weights), back = jax.vjp(lambda x: workspace.attend(x, workspace.initial_memory(B), None), x)
        return weights[:, 0, 0], back((jnp.cos(jnp.arange(D)) + attended * 0, weights * 0))[0]

    weights, gradient = written(x)
    winners = np.asarray(weights > 0)
    assert (winners.sum(1) == 2).all()
    sizes = np.abs(gradient).max(axis=-1)
    assert (sizes[winners] > 1e-3).all()
    assert (sizes[~winners] > 1e-6).all() if losers_gradient else (sizes[~winners] == 0).all()


def array_sizes(function, *arguments) -> list[int]:
    """Numbers in every array of the compiled program."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    shapes = re.findall(r"\b(?:f32|bf16|s32|pred)\[([\d,]+)\]", text)
    return [int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes]


def test_no_specialist_is_compared_with_another_one():
    n = 509
    workspace = make(CONFIGS["public_code"])
    memory = workspace.initial_memory(1)

    def loss(x):
        found = workspace(x, memory)
        return jnp.sum(found.read) + jnp.sum(found.memory)

    x = jax.ShapeDtypeStruct((1, n, D), jnp.float32)
    most = max(array_sizes(jax.value_and_grad(loss), x))
    assert n * D <= most <= 2 * n * D
    assert max(array_sizes(lambda x: jnp.einsum("bid,bjd->bij", x, x), x)) == n * n


def test_specialists_read_the_same_in_any_order():
    workspace, given, order = make(CONFIGS["public_code"]), inputs(D), np.array([3, 0, 4, 1, 2])
    run = jax.jit(lambda x, memory: workspace(x, memory))
    found, permuted = run(given["x"], given["memory"]), run(given["x"][:, order], given["memory"])
    np.testing.assert_allclose(permuted.read, found.read[:, order], atol=1e-6)
    np.testing.assert_allclose(permuted.memory, found.memory, atol=1e-6)
    np.testing.assert_allclose(permuted.weights, found.weights[..., order], atol=1e-6)


@pytest.mark.slow
def test_in_bfloat16_results_are_close_and_the_memory_is_float32():
    config, given = CONFIGS["hard_losers_held"], inputs(D)
    exact = make(config)
    graphdef, _ = nnx.split(Workspace(D, config, execution=Execution(compute_dtype="bfloat16"), rngs=nnx.Rngs(0)))
    rough = nnx.merge(graphdef, nnx.state(exact))
    expected, found = (jax.jit(w.__call__)(given["x"], given["memory"]) for w in (exact, rough))
    assert found.read.dtype == jnp.bfloat16 and found.memory.dtype == jnp.float32
    np.testing.assert_allclose(found.memory, expected.memory, atol=0.1)
    np.testing.assert_allclose(found.read.astype(np.float32), expected.read, atol=0.2)


@pytest.mark.parametrize("config", [*CONFIGS.values(), PAPER, PUBLIC_CODE], ids=[*CONFIGS, "paper", "code"])
def test_parameters_are_counted_to_the_last_one(config):
    width = 24 if config.num_heads == 4 else D
    state = nnx.state(nnx.eval_shape(lambda: Workspace(width, config, execution=Execution(), rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters(width)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_heads=4), "does not divide embed_dim=6"),
        (dict(memory_dim=7), "does not divide memory_dim=7"),
        (dict(memory_dim=8, tied=True), "tied needs memory_dim=8"),
        (dict(num_slots=7), "rows of the identity"),
        (dict(top_k=0), "top_k must be at least 1"),
        (dict(gates="unit"), "'shared' or 'per_slot'"),
        (dict(losers_gradient=True), "needs top_k and renormalised=false"),
        (dict(mlp_layers=-1), "mlp_layers must not be negative"),
        (dict(key_dim=0), "key_dim must be at least 1"),
    ],
)
def test_a_workspace_that_cannot_be_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        replace(CONFIGS["paper_soft"], **change).width(D)
