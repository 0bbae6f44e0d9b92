"""A sparse layer on any mesh computes what one device does: outputs, router sums, and the gradients of everything."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.ahead_of_time import tpu
from zoo.nn import expert_exchange, experts, run_layers
from zoo.nn.execution import Execution
from zoo.nn.expert_dispatch import Dispatch
from zoo.nn.experts import ExpertsConfig, SparseFeedForward
from zoo.nn.router import load_balancing_loss, router_z_loss
from zoo.parallel import (
    MeshConfig,
    ShardingRules,
    activation_sharding,
    batch_sharding,
    divided,
    make_mesh,
    spmd,
    state_axes,
    state_shardings,
    sum_over,
)

B, T, D, E = 8, 16, 16, 8
ALIKE = 1e-5
"""Largest deviation, as a part of the largest number of an array."""

LENGTHS = jnp.array([16, 16, 13, 2, 16, 0, 16, 9])
CONFIG = ExpertsConfig(
    E,
    2,
    24,
    routing="softmax_topk",
    activation="clipped_swiglu",
    router_bias=True,
    expert_bias=True,
    shared_hidden_dim=8,
    capacity_factor=0.8,
    jitter=0.1,
)
BIASES = {
    "spread": [0.0] * E,
    "two experts get all": [-90.0, -90.0, -90.0, 4.0, -90.0, 3.5, -90.0, -90.0],
    "the last device gets all": [-90.0] * 6 + [4.0, 4.0],
}


def layer_state(execution: Execution, dispatch: str, loads: str, factor: float | None = None) -> tuple[Any, nnx.State]:
    config = ExpertsConfig(**(vars(CONFIG) | {"dispatch": dispatch, "exchange_capacity_factor": factor}))
    layers = nnx.List([SparseFeedForward(D, config, execution=execution, rngs=nnx.Rngs(0))])
    graphdef, state = nnx.split(layers)
    state = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), state)
    state[0]["router"]["bias"] = state[0]["router"]["bias"].replace(jnp.array(BIASES[loads]))
    return graphdef, state


def results(sizes: dict[str, int], dispatch: str, loads: str, remat: str = "none", factor: float | None = None) -> Any:
    """((loss, (outputs, statistics)), gradients of parameters and inputs) of a layer on a mesh, in training."""
    devices = int(np.prod([*sizes.values(), 1]))
    mesh, rules = make_mesh(MeshConfig(**({"fsdp": 1} | sizes)), jax.devices()[:devices]), ShardingRules()
    execution = Execution(remat_policy=remat)
    graphdef, state = layer_state(execution, dispatch, loads, factor)
    mask = jnp.arange(T) < LENGTHS[:, None]

    def run(state, x, mask, rng):
        def apply(layer, x, cache, index):
            y, statistics = layer(x, mask, rng)
            return y, None, statistics

        x, _, statistics = run_layers(nnx.merge(graphdef, state), x, apply, None, execution)
        return x, jax.tree.map(lambda a: sum_over(a, divided("batch") + divided("length")), statistics)

    def loss(state, x):
        row = ("batch", "residual_length", None)
        axes = (state_axes(state), row, ("batch", "length"), ())
        sized = {"batch": B, "length": T, "residual_length": T}
        y, statistics = spmd(run, axes, (row, ()), sized)(state, x, mask, jax.random.key(3))
        routing = jnp.sum(load_balancing_loss(statistics)) + 1e-3 * jnp.sum(router_z_loss(statistics))
        return jnp.mean(jnp.sin(y) * jnp.arange(1, D + 1)) + routing, (y, statistics)

    x = jax.random.normal(jax.random.key(1), (B, T, D))
    with activation_sharding(mesh, rules):
        placed = jax.device_put(state, state_shardings(state, mesh, rules))
        return jax.device_get(jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(placed, x))


@functools.cache
def expected(dispatch: str, loads: str) -> Any:
    return results({}, dispatch, loads)


def assert_alike(found, dispatch, loads):
    wanted = expected(dispatch, loads)
    leaves = zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(found), strict=True)
    for (path, one), other in leaves:
        scale = max(np.abs(one).max(), 1e-3)
        assert np.abs(one - other).max() <= ALIKE * scale, (
            jax.tree_util.keystr(path),
            np.abs(one - other).max(),
            scale,
        )


NORMAL = [
    ({"expert": 2, "context": 2, "tensor": 2}, "dropless", "spread"),
    ({"fsdp": 2, "context": 2, "expert": 2}, "capacity", "spread"),
]
MESHES = [
    {"data": 2, "expert": 4},
    {"expert": 8},
    {"expert": 4, "tensor": 2},
    {"expert": 2, "fsdp": 2, "tensor": 2},
    {"data": 2, "context": 2, "expert": 2},
    {"replica": 2, "expert": 4},
    {"context": 2, "tensor": 4},
    {"fsdp": 8},
]


@pytest.mark.parametrize(("sizes", "dispatch", "loads"), NORMAL)
def test_a_mesh_gives_outputs_sums_and_gradients_of_one_device(sizes, dispatch, loads):
    assert_alike(results(sizes, dispatch, loads), dispatch, loads)


@pytest.mark.slow
@pytest.mark.parametrize("loads", BIASES)
@pytest.mark.parametrize("dispatch", ["dropless", "capacity"])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_mesh_gives_outputs_sums_and_gradients_of_one_device(sizes, dispatch, loads):
    remat = {"expert": "norms", "fsdp": "full", "data": "dots"}.get(next(iter(sizes)), "none")
    assert_alike(results(sizes, dispatch, loads, remat), dispatch, loads)


def test_the_cases_have_dropped_choices_experts_without_tokens_and_padding():
    _, statistics = expected("capacity", "spread")[0][1]
    assert 0 < statistics.dropped[0] < 0.5 * statistics.assigned.sum()
    assert statistics.tokens[0] == LENGTHS.sum()
    _, statistics = expected("dropless", "two experts get all")[0][1]
    assert np.count_nonzero(statistics.assigned) == 2 and statistics.dropped[0] == 0


def ragged_by_hand(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    """What `jax.lax.ragged_all_to_all` is said to do, from whole copies of everything: XLA:CPU has none."""
    devices = jax.lax.axis_size(axis_name)
    parts = len(send_sizes) // devices
    mine = jax.lax.axis_index(axis_name) * parts + jnp.arange(parts)
    every = [jax.lax.all_gather(x, axis_name) for x in (operand, input_offsets, send_sizes, output_offsets)]
    row = jnp.arange(len(output))[:, None]
    for source in range(devices):
        sent, begin, size, to = (x[source] for x in every)
        here = (row >= to[mine]) & (row < (to + size)[mine])
        index = jnp.sum(jnp.where(here, begin[mine] + row - to[mine], 0), axis=1)
        output = jnp.where(here.any(1).reshape(-1, *[1] * (output.ndim - 1)), sent[index], output)
        # A receiver has to know what it is sent.
        known = recv_sizes[source * parts : (source + 1) * parts] == size[mine]
        output = jnp.where(known.all(), output, jnp.nan)
    return output


def test_parts_of_unequal_size_arrive_where_padded_ones_do(monkeypatch):
    """The exchange of accelerators, its collective written out."""
    case = ({"data": 2, "expert": 4}, "dropless", "spread")
    calls = []
    monkeypatch.setattr(expert_exchange, "target_platform", lambda: "tpu")
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", lambda *a, **k: calls.append(1) or ragged_by_hand(*a, **k))
    assert_alike(results(*case), *case[1:])
    assert len(calls) >= 6  # tokens and weights there, rows back; forward and backward


def test_a_bounded_exchange_that_nothing_overflows_is_the_one_of_one_device():
    """Room for 1.5 times the balanced load, where the bound is 4 times without."""
    case = ({"data": 2, "expert": 4}, "dropless", "spread")
    found = results(*case, factor=1.5)
    assert_alike(found, *case[1:])
    assert found[0][1][1].dropped[0] == 0


def test_the_exchange_is_bounded_in_training_only(monkeypatch):
    bounds = []
    plan = expert_exchange.plan_exchange
    monkeypatch.setattr(experts, "plan_exchange", lambda *arguments: bounds.append(arguments[2]) or plan(*arguments))
    mesh, execution = make_mesh(MeshConfig(fsdp=1, expert=8)), Execution()
    graphdef, state = layer_state(execution, "dropless", "spread", 1.5)
    row, sized = ("batch", "residual_length", None), {"batch": B, "length": T, "residual_length": T}

    def run(state, x, rng):
        def apply(layer, x, cache, index):
            return layer(x, None, rng)[0], None, None

        return run_layers(nnx.merge(graphdef, state), x, apply, None, execution)[0]

    for rng in (None, jax.random.key(0)):
        with activation_sharding(mesh, ShardingRules()):
            call = spmd(run, (state_axes(state), row, None if rng is None else ()), row, sized)
            jax.eval_shape(call, state, jnp.zeros((B, T, D)), rng)
    assert bounds[0] is None and bounds[-1] == 1.5


def exchanged(counts: np.ndarray, width: int) -> Any:
    """(numbers of the rows behind the exchange, the same sent back, the gradients of both for given weights, sizes,
    dropped rows) of every device; the elements of a row are its number, from 1 on. The bound is the balanced load."""
    devices, experts = counts.shape
    length = int(counts.sum(1).max()) + 3  # the last rows belong to no expert, as those of padding
    mesh = make_mesh(MeshConfig(fsdp=1, expert=devices), jax.devices()[:devices])

    def run(rows, sizes, weights):
        place = jnp.zeros((length, 1), jnp.int32)
        dispatch = Dispatch(place[:, 0], place, sizes[0], jnp.zeros(()), experts, True)
        exchange = expert_exchange.plan_exchange(dispatch, ("expert",), 1.0)
        there, pull = jax.vjp(lambda rows: expert_exchange.send(rows, exchange), rows[0])
        back, pull_back = jax.vjp(lambda rows: expert_exchange.send_back(rows, exchange, length), there)
        gradients = pull(weights[0, : len(there)])[0], pull_back(rows[0])[0]
        return jax.tree.map(lambda a: a[None], (there, back, *gradients, exchange.own_sizes, exchange.dropped[None]))

    spec = jax.sharding.PartitionSpec("expert")
    rows = jnp.arange(1.0, devices * length + 1).reshape(devices, length, 1).repeat(width, 2)
    call = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False))
    found = [np.asarray(a) for a in call(rows, counts, weights_of_rows(devices, length).repeat(width, 2))]
    assert all((a == a[..., :1]).all() for a in found if a.ndim == 3)
    return [a[..., 0] if a.ndim == 3 else a for a in found]


def weights_of_rows(devices: int, length: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (devices, devices * length, 1))


@pytest.mark.parametrize(
    ("devices", "width", "platform"),
    [(8, 1, "tpu"), (2, 1024, "tpu"), (8, 1, "cpu")],
    ids=["ragged", "ragged, wide rows", "padded"],
)
def test_an_exchange_drops_the_last_rows_for_a_device_without_room_and_counts_them(
    devices, width, platform, monkeypatch
):
    monkeypatch.setattr(expert_exchange, "target_platform", lambda: platform)
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", ragged_by_hand)
    counts = np.array(jax.random.randint(jax.random.key(5), (devices, 2 * devices), 0, 5), np.int32)
    counts[:, -2:] += 9  # those of the last device
    counts[1, -2] = 0
    there, back, pulled, pulled_back, sizes, dropped = exchanged(counts, width)
    length, room = back.shape[1], there.shape[1]
    own = counts.reshape(devices, devices, 2).sum(0)
    fits = own.sum(1) <= room
    assert room == -(-length // 16) * 16 < own[-1].sum()
    np.testing.assert_array_equal(sizes[fits], own[fits])
    assert fits.sum() == devices - 1 and room - 2 * devices <= sizes[-1].sum() <= room
    assert dropped.sum() == counts.sum() - sizes.sum() > 0

    starts = np.cumsum(counts, 1) - counts
    expected = np.zeros_like(back)
    for expert in range(2 * devices):
        begin = sizes[expert // 2, : expert % 2].sum()
        arrived = there[expert // 2, begin : begin + sizes[expert // 2, expert % 2]]
        assert (np.diff(arrived) > 0).all()
        for device in range(devices):
            first = device * length + starts[device, expert] + 1
            taken = arrived[(arrived > device * length) & (arrived <= (device + 1) * length)]
            # The first of them, in their order.
            np.testing.assert_array_equal(taken, np.arange(first, first + len(taken)))
            assert len(taken) <= counts[device, expert]
            expected[device, starts[device, expert] :][: len(taken)] = taken
    np.testing.assert_array_equal(back, expected)
    np.testing.assert_array_equal(dropped[:, 0], counts.sum(1) - np.count_nonzero(back, 1))
    # The gradient of a row is that of its place behind the exchange, and the other way round.
    weights = np.asarray(weights_of_rows(devices, length))[:, :room, 0]
    by_number = dict(zip(there[there > 0], weights[there > 0]))
    np.testing.assert_array_equal(pulled[back > 0], [by_number[number] for number in back[back > 0]])
    assert not pulled[back == 0].any()
    np.testing.assert_array_equal(pulled_back, there)


def test_experts_lie_on_their_devices_and_no_other_parameter_is_divided_twice():
    mesh = make_mesh(MeshConfig(fsdp=2, expert=2, tensor=2))
    _, state = layer_state(Execution(), "dropless", "spread")
    shardings = state_shardings(state, mesh, ShardingRules())[0]
    local = {name: shardings[name].shard_shape(state[0][name].shape) for name in ("gate", "up", "down")}
    assert local == {"gate": (4, 8, 12), "up": (4, 8, 12), "down": (4, 6, 16)}
    assert shardings["router"]["kernel"].is_fully_replicated


@pytest.mark.slow
@pytest.mark.skipif(not tpu.has_libtpu(), reason="libtpu, which compiles for TPUs, is not installed")
@pytest.mark.parametrize("target", [tpu.V4, tpu.V5P], ids=lambda target: target.name)
def test_tpus_exchange_tokens_in_parts_of_unequal_size(target):
    devices = tpu.tpu_devices(target)
    mesh, rules = make_mesh(MeshConfig(fsdp=1, expert=len(devices)), devices), ShardingRules()
    execution = Execution(compute_dtype="bfloat16")
    layers = nnx.eval_shape(
        lambda: nnx.List([SparseFeedForward(256, ExpertsConfig(8, 2, 256), execution=execution, rngs=nnx.Rngs(0))])
    )
    graphdef, state = nnx.split(layers)
    shardings = state_shardings(state, mesh, rules)
    state = jax.tree.map(lambda a, to: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=to), state, shardings)
    x = jax.ShapeDtypeStruct((8, 256, 256), jnp.bfloat16, sharding=batch_sharding(mesh, rules))

    def run(state, x):
        def apply(layer, x, cache, index):
            y, statistics = layer(x)
            return y, None, statistics

        return run_layers(nnx.merge(graphdef, state), x, apply, None, execution)[0]

    def loss(state, x):
        row = ("batch", "residual_length", None)
        sized = {"batch": 8, "length": 256, "residual_length": 256}
        with activation_sharding(mesh, rules):
            return jnp.sum(spmd(run, (state_axes(state), row), row, sized)(state, x).astype(jnp.float32) ** 2)

    text = tpu.compile_for_tpu(jax.grad(loss, argnums=(0, 1)), state, x, target=target, mesh=mesh).as_text()
    assert len(re.findall(r"= \S+ ragged-all-to-all(?:-start)?\(", text)) >= 4
