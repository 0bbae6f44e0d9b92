"""Loss spikes are left out: what counts as one, that nothing else changes, and that a run goes on bit for bit."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.training import test_step as tiny
from zoo.errors import UserError
from zoo.recipes.recipe import first_difference
from zoo.training.checkpoints import Checkpoints
from zoo.training.optimizer import SPIKES, OptimizerConfig, make_optimizer, make_schedule
from zoo.training.spikes import SpikeRule, judge, new_statistics
from zoo.training.state import abstract_state, create_state
from zoo.training.step import jit_train_step, make_train_step

RULE = SpikeRule(deviations=4.0, window=8)
CONFIG = dataclasses.replace(tiny.CONFIG, skip_spikes=4.0, spike_window=8)


def judged(values, rule=RULE):
    """For a list of (loss, grad_norm): which are spikes, and the statistics at the end."""
    statistics, spikes = new_statistics(), []
    for loss, norm in values:
        found = {"loss": jnp.float32(loss), "grad_norm": jnp.float32(norm)}
        spike, statistics, _ = jitted(rule, statistics, found, jnp.isfinite(found["loss"]))
        spikes.append(bool(spike))
    return spikes, statistics


jitted = jax.jit(judge, static_argnums=0)


def noise(count, mean=2.0, seed=0):
    return [(value, 1.0) for value in np.random.default_rng(seed).normal(mean, 0.1, count)]


def test_the_mean_and_variance_of_the_first_steps_are_those_of_a_sample():
    values = noise(8)
    _, statistics = judged(values)
    losses = np.array([loss for loss, _ in values])
    assert float(statistics["loss_mean"]) == pytest.approx(losses.mean(), rel=1e-5)
    assert float(statistics["loss_variance"]) == pytest.approx(losses.var(), rel=1e-4)


def test_later_the_last_steps_count_most():
    _, statistics = judged(noise(60, mean=2.0) + noise(60, mean=1.0))
    assert float(statistics["loss_mean"]) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("spike", [(2.0 + 0.1 * 8, 1.0), (2.0, 1.5)])
def test_a_loss_or_a_gradient_norm_far_above_the_mean_is_a_spike(spike):
    assert judged([*noise(30), spike])[0] == [False] * 30 + [True]


def test_a_loss_that_falls_is_none():
    assert not any(judged([*noise(30), (0.5, 0.1)])[0])


def test_nothing_is_a_spike_before_the_window_is_full():
    assert judged([*noise(7), (50.0, 50.0)])[0] == [False] * 8
    assert judged([*noise(8), (50.0, 50.0)])[0] == [False] * 8 + [True]


def test_a_spike_does_not_count_for_the_statistics_and_the_next_step_is_compared_as_before():
    values = noise(30)
    _, without = judged(values)
    spikes, statistics = judged([*values, (9.0, 1.0), (9.0, 1.0)])
    assert spikes[-2:] == [True, True]
    assert (int(statistics["skipped"]), int(statistics["skipped_in_a_row"])) == (2, 2)
    for name in ("loss_mean", "loss_variance", "grad_norm_mean", "grad_norm_variance", "count"):
        assert statistics[name] == without[name]
    _, later = judged([*values, (9.0, 1.0), values[-1]])
    assert (int(later["skipped"]), int(later["skipped_in_a_row"])) == (1, 0)


def test_a_loss_that_is_not_finite_is_no_spike_and_leaves_the_statistics_alone():
    values = noise(30)
    spikes, statistics = judged([*values, (np.nan, 1.0)])
    assert not any(spikes)
    chex.assert_trees_all_equal(statistics, judged(values)[1])


# ---- in the training step


@functools.cache
def make_step(config):
    graphdef, params = nnx.split(tiny.TinyModel(nnx.Rngs(0)), nnx.Param)
    optimizer = make_optimizer(config, tiny.STEPS, params)
    step = make_train_step(
        graphdef,
        tiny.squared_error,
        optimizer,
        schedule=make_schedule(config, tiny.STEPS),
        spike_rule=config.spike_rule,
    )
    return optimizer, jit_train_step(step, create_state(params, optimizer))


def begin(config=CONFIG):
    optimizer, step = make_step(config)
    return create_state(nnx.split(tiny.TinyModel(nnx.Rngs(0)), nnx.Param)[1], optimizer, seed=3), step


def batch(number):
    """Batch 13 is a hundred times as far from the model as the others."""
    made = tiny.make_batch(number % 3)
    return dataclasses.replace(made, targets=made.targets * 100) if number == 13 else made


def test_a_spike_changes_neither_parameters_nor_moments_and_counts_as_a_step():
    state, step = begin()
    for number in range(13):
        state, metrics = step(state, batch(number))
        assert int(metrics["skipped"]) == 0
    before, rate = tiny.host(state), float(metrics["learning_rate"])
    state, metrics = step(state, batch(13))
    after = tiny.host(state)
    assert int(metrics["skipped"]) == int(metrics["skipped_in_a_row"]) == 1
    assert float(metrics["loss"]) > float(metrics["loss_limit"])
    changed = {name for name in after if (after[name] != before[name]).any()}
    last = f"opt_state/{len(state.opt_state) - 1}/{SPIKES}"
    assert changed == {"step", "tokens", f"{last}/skipped", f"{last}/skipped_in_a_row"}
    _, metrics = step(state, batch(14))
    schedule = make_schedule(CONFIG, tiny.STEPS)
    assert rate == pytest.approx(float(schedule(12))) != pytest.approx(float(schedule(13)))
    assert float(metrics["learning_rate"]) == pytest.approx(float(schedule(13)))  # that of the update left out
    assert int(metrics["skipped_in_a_row"]) == 0


def test_until_a_spike_the_numbers_are_those_of_a_run_that_looks_for_none():
    (watched, step), (plain, plain_step) = begin(), begin(tiny.CONFIG)
    for number in range(6):
        watched, metrics = step(watched, batch(number))
        plain, expected = plain_step(plain, batch(number))
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    # Two programs: XLA may round in another order.
    chex.assert_trees_all_close(tiny.host(watched.params), tiny.host(plain.params), rtol=1e-4, atol=1e-7)


def test_without_the_option_the_state_and_the_metrics_hold_nothing_of_it():
    state, step = begin(tiny.CONFIG)
    assert not any(SPIKES in name for name in tiny.host(state))
    _, metrics = step(state, batch(0))
    assert not any("skipped" in name or "limit" in name for name in metrics)


# ---- in checkpoints


def save(run, state):
    with Checkpoints(run) as checkpoints:
        checkpoints.save(int(state.step), state, data_state={}, meta={"run": {}})


def restore(run, config):
    optimizer, step = make_step(config)
    params = nnx.split(tiny.TinyModel(nnx.Rngs(0)), nnx.Param)[1]
    with Checkpoints(run) as checkpoints:
        return checkpoints.restore_newest(abstract_state(params, optimizer)).state, step


def test_a_run_that_is_stopped_beside_a_spike_goes_on_bit_for_bit(tmp_path):
    state, step = begin()
    for number in range(14):
        state, _ = step(state, batch(number))
    save(tmp_path, state)
    resumed, step = restore(tmp_path, CONFIG)
    for number in range(14, 17):
        state, expected = step(state, batch(number))
        resumed, metrics = step(resumed, batch(number))
        chex.assert_trees_all_equal(jax.device_get(metrics), jax.device_get(expected))
    chex.assert_trees_all_equal(tiny.host(resumed), tiny.host(state))


def test_an_older_run_can_begin_to_look_for_spikes_and_stop_again(tmp_path):
    state, step = begin(tiny.CONFIG)
    for number in range(3):
        state, _ = step(state, batch(number))
    expected = tiny.host(state)
    save(tmp_path / "plain", state)
    watched, step = restore(tmp_path / "plain", CONFIG)
    found = tiny.host(watched)
    assert {name for name in found if name not in expected} == {name for name in found if f"/{SPIKES}/" in name}
    assert all(not found[name].any() for name in found if f"/{SPIKES}/" in name)
    chex.assert_trees_all_equal({name: found[name] for name in expected}, expected)
    watched, _ = step(watched, batch(3))
    save(tmp_path / "watched", watched)
    plain, _ = restore(tmp_path / "watched", tiny.CONFIG)
    assert tiny.host(plain).keys() == expected.keys()


def test_a_saved_recipe_that_knows_no_spikes_can_be_resumed_with_and_without():
    plain, watched = ({"optimizer": dataclasses.asdict(config)} for config in (tiny.CONFIG, CONFIG))
    older = {"optimizer": {name: value for name, value in plain["optimizer"].items() if "spike" not in name}}
    assert first_difference(older, watched) is first_difference(plain, watched) is None


@pytest.mark.parametrize(
    "wrong", [{"skip_spikes": 0.0}, {"skip_spikes": -3.0}, {"spike_window": 1}, {"spike_limit": 0}]
)
def test_odd_values_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)
