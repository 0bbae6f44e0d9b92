"""The training step: accumulation, frozen and sharded parameters, tokens, what is not finite, determinism."""

import functools
import re
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zoo.errors import UserError
from zoo.training.losses import LossSums
from zoo.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from zoo.training.parameters import flatten_with_names
from zoo.training.state import TrainState, abstract_state, add_tokens, create_state, tokens_seen
from zoo.training.step import jit_train_step, make_eval_step, make_train_step, split_microbatches

STEPS = 20
CONFIG = OptimizerConfig(learning_rate=1e-2, warmup_steps=2, clip_norm=1.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TinyBatch:
    inputs: jax.Array
    targets: jax.Array
    loss_weights: jax.Array
    segment_ids: jax.Array


class TinyModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.List([nnx.Linear(4, 16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)])
        self.output = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        for layer in self.hidden:
            x = jnp.tanh(layer(x))
        return self.output(x)[..., 0]


def squared_error(model, batch) -> LossSums:
    error = jnp.square(model(batch.inputs) - batch.targets)
    z = 1e-2 * jnp.sum(batch.loss_weights * jnp.square(model(batch.inputs)))
    return LossSums(jnp.sum(batch.loss_weights * error), z, jnp.sum(batch.loss_weights))


def make_batch(seed: int = 0, size: int = 8, length: int = 6) -> TinyBatch:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((size, length, 4)).astype(np.float32)
    weights = rng.uniform(size=(size, length)) * (rng.uniform(size=(size, 1)) > 0.4)
    return TinyBatch(
        inputs=jnp.asarray(inputs),
        targets=jnp.asarray(np.sin(inputs.sum(-1))),
        loss_weights=jnp.asarray(weights, jnp.float32),
        segment_ids=jnp.asarray(rng.uniform(size=(size, length)) < 0.9, jnp.int32),
    )


@functools.cache
def make_step(config, loss, frozen, accumulation_steps, stochastic):
    """(optimizer, compiled step); tests that ask for the same share it, since compiling is most of their time."""
    graphdef, params = nnx.split(TinyModel(nnx.Rngs(0)), nnx.Param)
    optimizer = make_optimizer(config, STEPS, params, frozen)
    train_step = make_train_step(
        graphdef,
        loss,
        optimizer,
        schedule=make_schedule(config, STEPS),
        frozen_patterns=frozen,
        accumulation_steps=accumulation_steps,
        stochastic=stochastic,
    )
    return optimizer, jit_train_step(train_step, create_state(params, optimizer))


def make_run(*, config=CONFIG, loss=squared_error, frozen=(), accumulation_steps=1, stochastic=False):
    """(state before the first step, compiled step)."""
    optimizer, step = make_step(config, loss, frozen, accumulation_steps, stochastic)
    return create_state(nnx.split(TinyModel(nnx.Rngs(0)), nnx.Param)[1], optimizer, seed=3), step


def host(tree):
    return {
        name: np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for name, leaf in flatten_with_names(tree).items()
    }


def test_training_reduces_the_loss():
    state, step = make_run()
    losses = []
    for number in range(STEPS):
        state, metrics = step(state, make_batch(number % 2))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == STEPS


def test_metrics_are_means_over_the_weights():
    state, step = make_run()
    batch = make_batch()
    model = TinyModel(nnx.Rngs(0))
    sums = squared_error(model, batch)

    def objective(model):
        sums = squared_error(model, batch)
        return (sums.loss + sums.z_loss) / sums.weight

    gradients = jax.tree.leaves(nnx.grad(objective)(model))
    _, metrics = step(state, batch)
    assert float(metrics["loss"]) == pytest.approx(float(sums.loss / sums.weight))
    assert float(metrics["z_loss"]) == pytest.approx(float(sums.z_loss / sums.weight))
    assert float(metrics["weight"]) == pytest.approx(float(sums.weight))
    assert float(metrics["grad_norm"]) == pytest.approx(np.sqrt(sum(np.sum(np.square(g)) for g in gradients)), rel=1e-5)
    assert float(metrics["learning_rate"]) == pytest.approx(0.5 * CONFIG.learning_rate)
    assert int(metrics["tokens"]) == int(jnp.sum(batch.segment_ids))
    assert bool(metrics["finite"])


@pytest.mark.parametrize("accumulation_steps", [2, 4, 8])
def test_accumulated_gradients_equal_those_of_the_whole_batch(accumulation_steps):
    # A plain mean of the micro-batches' means would be wrong: their weights differ, some have none at all.
    config = OptimizerConfig(learning_rate=1e-2, eps=1.0, clip_norm=None)
    whole, accumulated = (make_run(config=config, accumulation_steps=count) for count in (1, accumulation_steps))
    batch = make_batch()
    weights = split_microbatches(batch.loss_weights, accumulation_steps).sum(axis=(1, 2))
    assert weights.max() > weights.min() + 1
    (one, one_metrics), (many, many_metrics) = (step(state, batch) for state, step in (whole, accumulated))
    for name, value in one_metrics.items():
        np.testing.assert_allclose(many_metrics[name], value, rtol=1e-6, err_msg=name)
    chex.assert_trees_all_close(host(many), host(one), atol=1e-7, rtol=1e-6)


def test_microbatches_take_rows_in_turn_so_that_no_row_leaves_its_device():
    rows = jnp.arange(8)
    assert split_microbatches(rows, 2).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(make_batch().inputs, NamedSharding(mesh, PartitionSpec("data")))
    text = jax.jit(lambda x: split_microbatches(x, 2)).lower(sharded).compile().as_text()
    assert not any(word in text for word in ("all-to-all", "all-gather", "collective-permute", "all-reduce"))


def test_a_batch_that_does_not_divide_is_refused():
    state, step = make_run(accumulation_steps=3)
    with pytest.raises(UserError, match="8 sequences cannot be split in 3"):
        step(state, make_batch())


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(bad, accumulation_steps):
    def loss(model, batch):
        sums = squared_error(model, batch)
        # sqrt has the gradient inf at 0, where its value is finite.
        extra = jnp.sum(batch.targets[0]) if bad == "loss" else 0.0 * jnp.sqrt(0.0 * jnp.sum(model.output.bias[...]))
        return LossSums(sums.loss + extra, sums.z_loss, sums.weight)

    state, step = make_run(loss=loss, accumulation_steps=accumulation_steps)
    batch = make_batch()
    if bad == "loss":
        batch = TinyBatch(batch.inputs, batch.targets.at[0, 0].set(jnp.nan), batch.loss_weights, batch.segment_ids)
    before = host(state)
    state, metrics = step(state, batch)
    assert not bool(metrics["finite"])
    assert np.isfinite(metrics["loss"]) == (bad == "gradient")
    chex.assert_trees_all_equal(host(state), before)


def test_a_batch_without_weight_is_finite():
    state, step = make_run()
    batch = make_batch()
    batch = TinyBatch(batch.inputs, batch.targets, jnp.zeros_like(batch.loss_weights), batch.segment_ids)
    state, metrics = step(state, batch)
    assert bool(metrics["finite"]) and float(metrics["loss"]) == float(metrics["grad_norm"]) == 0.0


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_frozen_parameters_stay_bit_for_bit_and_do_not_count_for_the_gradient_norm(accumulation_steps):
    state, step = make_run(frozen=("hidden/0", "output.bias"), accumulation_steps=accumulation_steps)
    before = host(state.params)
    full_state, full_step = make_run()
    _, full_metrics = full_step(full_state, make_batch())
    state, metrics = step(state, make_batch())
    after = host(state.params)
    changed = {name for name in after if (after[name] != before[name]).any()}
    assert changed == {"hidden/1/kernel", "hidden/1/bias", "output/kernel"}
    assert float(metrics["grad_norm"]) < float(full_metrics["grad_norm"])


def test_no_gradient_is_computed_for_frozen_parameters():
    def flops(frozen):
        state, step = make_run(frozen=frozen)
        return step.lower(state, make_batch()).compile().cost_analysis()["flops"]

    assert flops(("hidden",)) < 0.6 * flops(())


def test_the_same_seed_gives_the_same_bits():
    runs = []
    for _ in range(2):
        make_step.cache_clear()  # compiles again, too
        state, step = make_run(accumulation_steps=2)
        for number in range(3):
            state, metrics = step(state, make_batch(number))
        runs.append((host(state), {name: np.asarray(value) for name, value in metrics.items()}))
    chex.assert_trees_all_equal(*runs)


def test_the_step_is_compiled_once():
    make_step.cache_clear()
    state, step = make_run()
    for number in range(3):
        state, _ = step(state, make_batch(number))
    assert step._cache_size() == 1


def test_the_update_is_in_place_and_copies_neither_parameters_nor_moments():
    state, step = make_run()
    compiled = step.lower(state, make_batch()).compile()
    kernel = r"f32\[16,16\]"  # hidden/1/kernel
    assert re.search(rf"= {kernel}.* fusion\(", compiled.as_text())
    assert not re.search(rf"= {kernel}.* copy\(", compiled.as_text())
    state_bytes = sum(
        leaf.nbytes for leaf in jax.tree.leaves(state) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
    assert compiled.memory_analysis().alias_size_in_bytes >= state_bytes


def test_a_stochastic_loss_gets_another_key_for_every_step_and_microbatch():
    def loss(model, batch, rng):
        draw = jax.random.uniform(rng)
        return LossSums(draw + 0.0 * jnp.sum(model.output.bias[...]), jnp.zeros(()), jnp.ones(()))

    state, step = make_run(loss=loss, stochastic=True)
    accumulating_state, accumulating = make_run(loss=loss, stochastic=True, accumulation_steps=2)
    draws = []
    for number in range(2):
        state, metrics = step(state, make_batch(number))
        draws.append(float(metrics["loss"]))
    _, metrics = accumulating(accumulating_state, make_batch())
    draws.append(float(metrics["loss"]))
    assert len(set(draws)) == 3
    again_state, again = make_run(loss=loss, stochastic=True)
    assert float(again(again_state, make_batch())[1]["loss"]) == draws[0]


def test_tokens_are_counted_exactly_beyond_32_bits():
    state, step = make_run()
    start = 2**33 - 5
    state = TrainState(
        step=state.step,
        tokens=jnp.array([start >> 32, start & 0xFFFFFFFF], jnp.uint32),
        params=state.params,
        opt_state=state.opt_state,
        rng=state.rng,
    )
    batch = make_batch()
    state, _ = step(state, batch)
    assert tokens_seen(state) == start + int(batch.segment_ids.sum())


@pytest.mark.parametrize("tokens", [0, 2**24 + 1, 2**32 - 1, 2**40 + 12345])
def test_two_words_hold_the_sum(tokens):
    pair = jnp.array([tokens >> 32, tokens & 0xFFFFFFFF], jnp.uint32)
    high, low = add_tokens(pair, jnp.int32(2**30 + 1)).tolist()
    assert high * 2**32 + low == tokens + 2**30 + 1


def test_evaluation_gives_sums():
    graphdef, params = nnx.split(TinyModel(nnx.Rngs(0)), nnx.Param)
    batch = make_batch()
    found = make_eval_step(graphdef, squared_error)(params, batch)
    chex.assert_trees_all_close(found, squared_error(TinyModel(nnx.Rngs(0)), batch), rtol=1e-6)


# ---- sharding


def sharded_params(mesh):
    graphdef, params = nnx.split(TinyModel(nnx.Rngs(0)), nnx.Param)

    def place(leaf):
        spec = PartitionSpec("fsdp") if leaf.ndim == 2 and leaf.shape[0] % 4 == 0 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return graphdef, jax.tree.map(place, params)


def test_optimizer_moments_lie_where_their_parameters_lie():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    _, params = sharded_params(mesh)
    optimizer = make_optimizer(CONFIG, STEPS, params)
    state = create_state(params, optimizer)
    shardings = {name: leaf.sharding for name, leaf in flatten_with_names(params).items()}
    assert PartitionSpec("fsdp") in {sharding.spec for sharding in shardings.values()}
    named = flatten_with_names(state.opt_state)
    for moment in ("mu", "nu"):
        found = {n.split(f"/{moment}/")[1]: x.sharding for n, x in named.items() if f"/{moment}/" in n}
        assert found == shardings
    counters = [leaf for leaf in named.values() if leaf.ndim == 0]
    for leaf in [*counters, state.step, state.tokens, state.rng]:
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec()), leaf.ndim)


def test_the_abstract_state_has_the_shapes_dtypes_and_shardings_of_the_real_one():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    _, params = sharded_params(mesh)
    optimizer = make_optimizer(CONFIG, STEPS, params)
    real, abstract = create_state(params, optimizer), abstract_state(params, optimizer)
    assert jax.tree.structure(real) == jax.tree.structure(abstract)
    for a, b in zip(jax.tree.leaves(real), jax.tree.leaves(abstract)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_sharded_step_computes_the_same_and_keeps_the_shardings(accumulation_steps):
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    graphdef, params = sharded_params(mesh)
    optimizer = make_optimizer(CONFIG, STEPS, params)
    state = create_state(params, optimizer, seed=3)
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    train_step = make_train_step(
        graphdef, squared_error, optimizer, schedule=make_schedule(CONFIG, STEPS), accumulation_steps=accumulation_steps
    )
    step = jit_train_step(train_step, state)
    single_state, single_step = make_run()
    rows = NamedSharding(mesh, PartitionSpec("data"))
    for number in range(2):
        state, metrics = step(state, jax.device_put(make_batch(number), rows))
        single_state, single_metrics = single_step(single_state, make_batch(number))
    assert step._cache_size() == 1
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(jax.tree.map(lambda leaf: leaf.sharding, state))):
        assert a == b
    np.testing.assert_allclose(metrics["loss"], single_metrics["loss"], rtol=1e-5)
    chex.assert_trees_all_close(host(state.params), host(single_state.params), atol=1e-5)
