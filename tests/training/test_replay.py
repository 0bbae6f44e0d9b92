"""The replay check: one wrong bit on one device is found, named, and nothing of its step is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.training import test_loop as loop
from zoo.training.replay import ReplayMismatch, check_replay, copy_state
from zoo.training.run_directory import saved_steps
from zoo.training.state import TrainState

MESH = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
PLACES = {"divided": P("data", "tensor"), "whole": P()}


def result(**changes):
    """A step's result on eight devices: one array divided, one the same on all."""
    params = {"divided": jnp.arange(32.0).reshape(8, 4), "whole": jnp.array([0.0, jnp.nan, 2.0])} | changes
    place = lambda name, leaf: jax.device_put(leaf, NamedSharding(MESH, PLACES.get(name, P())))  # noqa: E731
    state = TrainState(
        step=place("", jnp.int32(5)),
        tokens=place("", jnp.zeros(2, jnp.uint32)),
        params={name: place(name, leaf) for name, leaf in params.items()},
        opt_state={"count": place("", jnp.int32(5))},
        rng=place("", jax.random.key(0)),
    )
    return state, {"loss": place("", jnp.float32(2.5))}


def flip(leaf: jax.Array, device: int, element: int, bit: int = 0) -> jax.Array:
    """The array with one bit of one device's copy of (its part of) it turned over."""
    shards = [np.array(shard.data) for shard in leaf.addressable_shards]
    shards[device].view(np.uint32).reshape(-1)[element] ^= 1 << bit
    placed = [jax.device_put(data, shard.device) for data, shard in zip(shards, leaf.addressable_shards)]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, placed)


def with_params(state: TrainState, **changes) -> TrainState:
    return dataclasses.replace(state, params=state.params | changes)


def test_equal_results_pass_and_a_nan_equals_itself():
    check_replay(result(), result(), 5)


def test_a_single_bit_is_found_and_named_with_its_step_array_size_and_device():
    first, (state, metrics) = result(), result()
    wrong = flip(state.params["divided"], device=3, element=1)
    with pytest.raises(ReplayMismatch) as caught:
        check_replay(first, (with_params(state, divided=wrong), metrics), 120)
    message = str(caught.value)
    assert message.startswith(
        "step 120, computed twice from the same state and batch, gave two results: params/divided"
    )
    assert "(8, 4) differs in 1 of 32 elements, by up to 9.54e-07, on " in message
    assert message.endswith(f"{jax.devices()[3]} of process 0")


def test_a_copy_that_is_wrong_on_one_device_only_is_found():
    first, (state, metrics) = result(), result()
    wrong = flip(state.params["whole"], device=6, element=2, bit=3)
    with pytest.raises(ReplayMismatch, match=rf"params/whole .*{jax.devices()[6]} of process 0"):
        check_replay(first, (with_params(state, whole=wrong), metrics), 1)


def test_zero_and_minus_zero_are_two_results():
    other = result(whole=jnp.array([-0.0, jnp.nan, 2.0]))
    with pytest.raises(
        ReplayMismatch, match=r"params/whole \(3,\) differs in 8 of 24 elements \(8 copies\), by up to 0, "
    ):
        check_replay(result(), other, 1)


def test_parameters_are_named_before_counters_and_the_rest_is_counted():
    state, _ = result(divided=jnp.zeros((8, 4)))
    other = dataclasses.replace(state, step=state.step + 1), {"loss": jnp.float32(2.5)}
    with pytest.raises(ReplayMismatch, match=r"results: params/divided .*; 1 other arrays differ too"):
        check_replay(result(), other, 1)


def test_a_metric_counts_too():
    state, metrics = result()
    with pytest.raises(ReplayMismatch, match=r"metrics/loss \(\) differs"):
        check_replay(result(), (state, {"loss": metrics["loss"] * 2}), 1)


def test_the_copy_has_the_bits_and_places_of_the_state_and_memory_of_its_own():
    state, _ = result()
    copied = copy_state(state)
    check_replay((state, {}), (copied, {}), 1)
    for one, two in zip(jax.tree.leaves(state.params), jax.tree.leaves(copied.params)):
        assert one.sharding == two.sharding
        pointers = [[part.data.unsafe_buffer_pointer() for part in leaf.addressable_shards] for leaf in (one, two)]
        assert not set(pointers[0]) & set(pointers[1])


# ---- in the loop


@pytest.fixture
def broken_step(monkeypatch):
    """Turns one bit over in one computation of a step; `numbers` lists the steps that were computed."""
    original, numbers = loop.train_step, []

    def start(at: int):
        def step(state, batch):
            numbers.append(int(state.step) + 1)
            state, metrics = original(state, batch)
            if len(numbers) == at:
                state = with_params(state, w=flip(state.params["w"], device=1, element=2))
            return state, metrics

        monkeypatch.setattr(loop, "train_step", step)
        return numbers

    return start


def test_a_checked_run_has_the_numbers_of_an_unchecked_one(tmp_path):
    _, expected = loop.train(tmp_path / "unchecked")
    outcome, records = loop.train(tmp_path / "checked", replay_check=3)
    assert outcome.step == 12
    assert loop.losses(records) == loop.losses(expected)


def test_every_nth_step_is_computed_twice_from_the_same_state(tmp_path, broken_step):
    numbers = broken_step(at=-1)
    loop.train(tmp_path, replay_check=5)
    assert numbers == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 11, 12]


@pytest.mark.parametrize("at", [6, 7])  # the first and the second computation of step 6
def test_a_mismatch_stops_the_run_names_step_and_parameter_and_keeps_nothing_of_the_step(tmp_path, broken_step, at):
    broken_step(at)
    records = []
    with pytest.raises(ReplayMismatch, match=r"step 6, .*params/w .*nothing of this step is kept; .* step 4, is kept"):
        loop.train(tmp_path, replay_check=6, records=records)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    assert saved_steps(tmp_path / "checkpoints") == (4,)


def test_without_the_option_no_step_is_computed_twice(tmp_path, broken_step):
    numbers = broken_step(at=-1)
    loop.train(tmp_path)
    assert numbers == list(range(1, 13))
