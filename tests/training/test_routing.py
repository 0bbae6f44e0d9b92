"""What the training step does with routers: their losses, what it reports of them, and balancing by a bias."""

import functools
import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matplotlib.figure import Figure

from zoo.data import Batch
from zoo.models import GeminiConfig, build
from zoo.nn import Execution, ExpertsConfig
from zoo.nn.router import RouterStatistics, load_balancing_loss, router_z_loss
from zoo.training.loop import _plain
from zoo.training.losses import next_token_loss
from zoo.training.metrics import JsonLines, TensorBoard, last_step, read_metrics
from zoo.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from zoo.training.parameters import flatten_with_names
from zoo.training.pictures import router_picture
from zoo.training.progress import step_line
from zoo.training.routing import balanced_biases, router_losses, router_metrics, selection_biases
from zoo.training.state import create_state
from zoo.training.step import jit_train_step, make_train_step

E, K, LAYERS, B, T = 4, 2, 2, 4, 16
MODEL = GeminiConfig(
    vocab_size=32,
    embed_dim=16,
    num_layers=LAYERS,
    num_heads=2,
    head_dim=8,
    hidden_dim=24,
    sliding_window=8,
    experts=ExpertsConfig(E, K, 12, jitter=0.05, balancing_bias_rate=0.01),
    max_position_embeddings=T,
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, weight_decay=0.3)


@functools.cache
def batch():
    tokens = np.random.default_rng(0).integers(1, 32, (B, T + 1)).astype(np.int32)
    segments = (np.arange(T) < np.array([[16], [16], [11], [5]])).astype(np.int32)
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    return Batch(tokens[:, :-1], tokens[:, 1:], positions, segments, segments.astype(np.float32))


def model_of(config=MODEL, *, scan=False):
    return nnx.split(build(config, execution=Execution(scan_layers=scan), rngs=nnx.Rngs(0)), nnx.Param)


def trained(config=MODEL, *, scan=False, loss=next_token_loss, freeze=(), **options):
    """(parameters before a step, state after it, its metrics)."""
    graphdef, params = model_of(config, scan=scan)
    before = {name: np.array(leaf) for name, leaf in flatten_with_names(params).items()}
    optimizer = make_optimizer(OPTIMIZER, 10, params, (*freeze, *selection_biases(before)))
    step = make_train_step(
        graphdef,
        loss,
        optimizer,
        schedule=make_schedule(OPTIMIZER, 10),
        stochastic=True,
        frozen_patterns=freeze,
        balancing_bias_rate=0.0 if config.experts is None else config.experts.balancing_bias_rate,
        **options,
    )
    state = create_state(params, optimizer)
    state, metrics = jit_train_step(step, state)(state, jax.device_put(batch()))
    return before, state, metrics


@functools.cache
def one_step():
    return trained()


def statistics(assigned, tokens=8.0, z=0.0, dropped=0.0, entropy=0.0):
    assigned = jnp.asarray(assigned, jnp.float32)
    layers = jnp.ones(assigned.shape[:-1])
    return RouterStatistics(assigned, assigned / K, z * layers, entropy * layers, dropped * layers, tokens * layers)


def test_router_losses_are_means_over_the_layers_times_coefficient_and_weight():
    counted = statistics([[4, 4, 4, 4], [16, 0, 0, 0]], z=24.0)
    config = SimpleNamespace(load_balancing_coefficient=0.5, router_z_coefficient=0.25)
    found = router_losses(counted, config, jnp.float32(10))
    np.testing.assert_allclose(load_balancing_loss(counted), [K, E * K])
    np.testing.assert_allclose(found["load_balancing_loss"], 10 * 0.5 * (K + E * K) / 2)
    np.testing.assert_allclose(found["router_z_loss"], 10 * 0.25 * 24 / 8)


def test_router_metrics_are_shares_of_choices_and_means_over_tokens():
    found = router_metrics(statistics([[4, 4, 4, 4], [10, 2, 2, 2]], dropped=3.0, entropy=8.0))
    np.testing.assert_allclose(found["router_load"], [[0.25] * 4, [0.625, 0.125, 0.125, 0.125]])
    np.testing.assert_allclose(found["router_largest_load"], 2.5)
    np.testing.assert_allclose((found["router_dropped"], found["router_entropy"]), (6 / 32, 1.0))


@pytest.mark.slow
def test_the_loss_of_a_sparse_model_carries_its_routers_losses_and_their_gradient():
    graphdef, params = model_of()

    @jax.jit
    def sums_of(params):
        return next_token_loss(nnx.merge(graphdef, params), batch(), rng=jax.random.key(0))

    sums = sums_of(params)
    assert sums.routing.assigned.shape == (LAYERS, E)
    np.testing.assert_array_equal(sums.routing.tokens, [batch().segment_ids.sum()] * LAYERS)
    expected = 0.01 * load_balancing_loss(sums.routing).mean(), 0.001 * router_z_loss(sums.routing).mean()
    found = sums.auxiliary["load_balancing_loss"], sums.auxiliary["router_z_loss"]
    np.testing.assert_allclose(np.array(found) / sums.weight, expected, rtol=1e-6)
    gradients = jax.jit(jax.grad(lambda params: sum(sums_of(params).auxiliary.values())))(params)
    named = flatten_with_names(gradients)
    assert all(np.any(named[f"layers/{layer}/mlp/router/kernel"]) for layer in range(LAYERS))
    assert not np.any(named["layers/1/mlp/gate"])


def test_a_step_reports_the_routers_and_keeps_their_losses_out_of_the_loss():
    _, _, metrics = one_step()
    np.testing.assert_allclose(metrics["router_load"].sum(-1), np.ones(LAYERS), rtol=1e-6)
    assert 1 <= metrics["router_largest_load"] <= E / K
    assert 0 < metrics["router_entropy"] <= np.log(E) * 1.00001 and metrics["router_dropped"] == 0
    assert 0.01 * K * 0.9 < metrics["load_balancing_loss"] < 0.01 * E and metrics["router_z_loss"] > 0
    graphdef, params = model_of()
    plain = jax.jit(lambda params: next_token_loss(nnx.merge(graphdef, params), batch()))(params)
    np.testing.assert_allclose(metrics["loss"], plain.loss / plain.weight, atol=0.02)  # jitter in training


@pytest.mark.slow
def test_micro_batches_report_the_load_of_the_whole_batch_and_minimise_the_routers_losses():
    experts = replace(MODEL.experts, jitter=0.0, load_balancing_coefficient=0.0, router_z_coefficient=30.0)
    _, state, metrics = trained(replace(MODEL, experts=experts), accumulation_steps=2)
    graphdef, params = model_of(replace(MODEL, experts=experts))

    @jax.jit
    def whole(params):
        sums = next_token_loss(nnx.merge(graphdef, params), batch())
        return (sums.loss + sum(sums.auxiliary.values())) / sums.weight, sums

    gradients, sums = jax.jit(jax.grad(whole, has_aux=True))(params)
    for name in (n for n in flatten_with_names(params) if n.endswith("selection_bias")):
        assert not np.any(flatten_with_names(gradients)[name])
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradients)))
    # Micro-batches of unequal weight: the z-loss of each counts by its weight.
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=2e-2)
    assert metrics["grad_norm"] > 1.5 * one_step()[2]["grad_norm"]
    np.testing.assert_allclose(metrics["loss"], sums.loss / sums.weight, rtol=1e-5)
    for name in ("router_load", "router_entropy"):
        np.testing.assert_allclose(metrics[name], router_metrics(sums.routing)[name], rtol=1e-5)


def test_training_and_evaluation_have_the_room_that_is_theirs():
    config = replace(
        MODEL, experts=ExpertsConfig(E, K, 12, dispatch="capacity", capacity_factor=0.5, eval_capacity_factor=float(E))
    )
    graphdef, params = model_of(config)

    @jax.jit
    def dropped(params, rng):
        return next_token_loss(nnx.merge(graphdef, params), batch(), rng=rng).routing.dropped

    assert np.all(dropped(params, jax.random.key(0)) > 0)
    assert not np.any(dropped(params, None))


def test_each_update_moves_the_biases_towards_a_balanced_load_and_no_optimizer_does():
    before, state, metrics = one_step()
    after = flatten_with_names(state.params)
    for layer in range(LAYERS):
        name, load = f"layers/{layer}/mlp/router/selection_bias", metrics["router_load"][layer]
        np.testing.assert_allclose(after[name] - before[name], 0.01 * np.sign(load.mean() - load), atol=1e-7)
        assert np.any(after[name] != before[name])
    assert not any("selection_bias" in name for name in flatten_with_names(state.opt_state))
    assert any("router/kernel" in name for name in flatten_with_names(state.opt_state))


@pytest.mark.slow
def test_scanned_layers_move_the_bias_of_their_own_layer():
    config = replace(MODEL, num_layers=4, experts=replace(MODEL.experts, jitter=0.0))
    _, state, metrics = trained(config, scan=True)
    graphdef, params = model_of(config)
    unrolled = jax.jit(lambda params: next_token_loss(nnx.merge(graphdef, params), batch()).routing.assigned)(params)
    after = flatten_with_names(state.params)
    for layer, load in enumerate(unrolled):
        np.testing.assert_allclose(metrics["router_load"][layer], load / load.sum(), atol=1e-6)
        unit, position = divmod(layer, MODEL.pattern_length)
        bias = after[f"layers/{position}/mlp/router/selection_bias"][unit]
        np.testing.assert_allclose(bias, 0.01 * np.sign(load.mean() - load), atol=1e-7)


def test_a_step_that_is_not_applied_moves_no_bias():
    def not_finite(model, batch, rng):
        sums = next_token_loss(model, batch, rng=rng)
        return sums._replace(loss=sums.loss * jnp.nan)

    before, state, metrics = trained(loss=not_finite)
    assert not metrics["finite"]
    for name, leaf in flatten_with_names(state.params).items():
        np.testing.assert_array_equal(leaf, before[name])


@pytest.mark.slow
def test_a_frozen_bias_stays():
    before, state, _ = trained(freeze=("layers/1/*",))
    after = flatten_with_names(state.params)
    moved = {n for n in selection_biases(before) if np.any(after[n] != before[n])}
    assert moved == {"layers/0/mlp/router/selection_bias"}


def test_a_bias_of_scanned_layers_takes_the_load_of_its_units_layers():
    """Layers in the order unit 0 position 0, unit 0 position 1, unit 1 position 0, ..."""
    assigned = jnp.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0], [3.0, 1.0]])
    stacked = balanced_biases({"layers/0/b": jnp.zeros((2, 2)), "layers/1/b": jnp.zeros((2, 2))}, assigned, 1.0)
    np.testing.assert_array_equal(stacked["layers/0/b"], [[-1, 1], [0, 0]])
    np.testing.assert_array_equal(stacked["layers/1/b"], [[1, -1], [-1, 1]])
    single = balanced_biases({str(i): jnp.zeros(2) for i in range(4)}, assigned, 1.0)
    np.testing.assert_array_equal(np.stack(list(single.values())), [[-1, 1], [1, -1], [0, 0], [-1, 1]])


def test_biases_are_found_in_the_order_of_their_layers_under_any_prefix():
    names = [f"teacher/layers/{i}/mlp/router/selection_bias" for i in (10, 9, 0)] + ["layers/0/router/bias"]
    assert selection_biases(names) == names[2::-1]


def test_a_bias_balances_a_router_that_prefers_some_experts():
    scores = jax.nn.sigmoid(jax.random.normal(jax.random.key(0), (256, E)) + jnp.array([2.0, 1.0, 0.0, 0.0]))
    bias = {"router/selection_bias": jnp.zeros(E)}

    def load(bias):
        chosen = jax.lax.top_k(scores + bias, K)[1]
        return jnp.sum(chosen[..., None] == jnp.arange(E), axis=(0, 1)).astype(jnp.float32)

    first = load(bias["router/selection_bias"])
    for _ in range(150):
        bias = balanced_biases(bias, load(bias["router/selection_bias"])[None], 0.005)
    last = load(bias["router/selection_bias"])
    assert first.max() / first.mean() > 1.4 and last.max() / last.mean() < 1.06


def sparse_numbers(step, dropped=0.0):
    load = np.random.default_rng(step).dirichlet(np.ones(E) * 20, LAYERS)
    return {
        "step": step,
        "loss": 3.0,
        "learning_rate": 1e-3,
        "grad_norm": 1.0,
        "memory_bytes": 1e9,
        "tokens": 100 * step,
        "seconds": 1.0,
        "router_load": _plain(load.astype(np.float32)),
        "router_entropy": 1.2,
        "router_largest_load": float(E * load.max()),
        "router_dropped": dropped,
    }


def test_loads_are_lists_in_the_file_and_only_scalars_go_to_tensorboard(tmp_path):
    file, board = JsonLines(tmp_path / "metrics.jsonl", last_step=0), TensorBoard(tmp_path / "board", last_step=0)
    for sink in (file, board):
        sink.write(sparse_numbers(1))
        sink.close()
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    np.testing.assert_allclose(np.sum(row["router_load"], -1), np.ones(LAYERS), atol=1e-3)
    (events,) = (tmp_path / "board").glob("events.out.tfevents.*")
    assert b"train/router_entropy" in events.read_bytes() and b"train/router_load" not in events.read_bytes()


def test_the_last_step_is_found_behind_lines_of_any_length(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "router_load": [0.125] * 30_000}) + "\n" for step in (1, 2, 3)))
    assert last_step(path) == 3


def test_a_step_line_names_the_busiest_expert_and_what_was_dropped():
    line = functools.partial(step_line, steps=9, seconds_per_step=1.0, memory_label="rss", peak_label="")
    assert "dropped" not in line(sparse_numbers(1)) and "load 1." in line(sparse_numbers(1))
    assert "dropped 2.5%" in line(sparse_numbers(1, dropped=0.025))
    dense = {name: value for name, value in sparse_numbers(1).items() if not name.startswith("router")}
    assert "load" not in line(dense)


@pytest.mark.parametrize("dropped", [0.0, 0.1])
def test_the_picture_has_an_axis_for_dropped_choices_where_there_are_any(tmp_path, monkeypatch, dropped):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append([a.get_ylabel() for a in figure.axes]))
    rows = [sparse_numbers(step, dropped) for step in range(1, 9)]
    (tmp_path / "sparse.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    router_picture(tmp_path / "sparse.jsonl", tmp_path / "sparse.png")
    assert ("dropped (%)" in drawn[0]) == (dropped > 0) and "largest load" in drawn[0]


def test_the_picture_is_drawn_for_sparse_runs_only(tmp_path):
    for name, rows in (("sparse", [sparse_numbers(step, 0.1) for step in range(1, 30)]), ("dense", [{"step": 1}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert router_picture(tmp_path / f"{name}.jsonl", tmp_path / f"{name}.png") == (name == "sparse")
        assert (tmp_path / f"{name}.png").exists() == (name == "sparse")
