"""The loss of classifiers against float64, and a training step of a network with batch normalisation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from zoo.data import Batch, Media
from zoo.errors import UserError
from zoo.models import build, preset
from zoo.training.classification_loss import ClassificationConfig, classification_loss, kept_statistics
from zoo.training.optimizer import OptimizerConfig, make_optimizer
from zoo.training.parameters import flatten_with_names
from zoo.training.state import create_state
from zoo.training.step import make_train_step

SMALL = dataclasses.replace(preset("resnet-tiny"), depths=(1, 1), widths=(8, 12), stem_width=8, num_classes=3)
KEY = jax.random.key(0)


def batch_of(labels, pixels, weights=None):
    count = len(labels)
    ones = np.ones((count, 1), np.int32)
    weights = np.ones(count) if weights is None else np.asarray(weights)
    return Batch(ones, np.asarray(labels, np.int32)[:, None], 0 * ones, ones, weights[:, None].astype(np.float32),
                 Media(pixel_values=pixels))  # fmt: skip


class Given:
    """A model whose pixels are its logits."""

    def __call__(self, pixel_values, training):
        return pixel_values


@pytest.mark.parametrize("how", [{}, {"label_smoothing": 0.2}, {"focal_gamma": 1.5}, {"class_weights": (1, 0.5, 3)}])
def test_the_loss_is_the_formulas_in_float64(how, monkeypatch):
    monkeypatch.setattr("zoo.training.classification_loss.nnx.state", lambda *_: {})
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 3)) * 2, np.array([0, 1, 2, 2, 1, 0])
    weights = np.array([1, 1, 1, 1, 1, 0])
    config = ClassificationConfig(**how)
    found = classification_loss(Given(), batch_of(labels, logits.astype(np.float32), weights), config=config, rng=KEY)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    own = log_p[np.arange(6), labels]
    smooth = how.get("label_smoothing", 0)
    losses = -((1 - smooth) * own + smooth * log_p.mean(1)) * (1 - np.exp(own)) ** how.get("focal_gamma", 0)
    losses = losses * np.array(how.get("class_weights", (1, 1, 1)))[labels]
    assert float(found.loss) == pytest.approx((losses * weights).sum(), rel=1e-5)
    assert float(found.weight) == 5
    assert float(found.metrics["accuracy"]) == ((logits.argmax(1) == labels) * weights).sum()
    validation = classification_loss(Given(), batch_of(labels, logits.astype(np.float32), weights), config=config)
    assert float(validation.loss) == pytest.approx(-(own * weights).sum(), rel=1e-5)
    assert validation.statistics == {}


@pytest.fixture(scope="module")
def network():
    """A small ResNet, eight images and the state before the first step, with plain gradient descent."""
    model = build(SMALL, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    rng = np.random.default_rng(1)
    pixels = rng.normal(size=(8, 1, 16, 16)).astype(np.float32) + 1
    return graphdef, params, batch_of(rng.integers(0, 3, 8), pixels)


def step_of(graphdef, params, batch, *, accumulation=1, freeze=()):
    statistics = kept_statistics(flatten_with_names(params))
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, schedule="constant", weight_decay=0.5, decay_all=True)
    optimizer = make_optimizer(config, 10, params, (*freeze, *statistics))
    step = make_train_step(
        graphdef,
        lambda model, batch, rng: classification_loss(model, batch, config=ClassificationConfig(), rng=rng),
        optimizer,
        schedule=optax.constant_schedule(0.1),
        accumulation_steps=accumulation,
        frozen_patterns=freeze,
        kept_of_inputs=statistics,
        stochastic=True,
    )
    state, metrics = jax.jit(step)(create_state(jax.tree.map(jnp.copy, params), optimizer), batch)
    return flatten_with_names(state.params), flatten_with_names(state.opt_state), metrics


def moved_by_hand(graphdef, params, pixels):
    model = nnx.merge(graphdef, jax.tree.map(jnp.copy, params))
    model(pixels, training=True)
    return flatten_with_names(nnx.state(model, nnx.Param))


def test_a_step_moves_the_statistics_as_the_network_does_and_the_rest_by_the_optimizer(network):
    graphdef, params, batch = network
    before = flatten_with_names(params)
    statistics = kept_statistics(before)
    assert len(statistics) == 2 * (1 + 2 * 2 + 1)  # a mean and a variance of the stem, four convolutions, one shortcut
    after, optimizer_state, metrics = step_of(graphdef, params, batch)
    expected = moved_by_hand(graphdef, params, batch.media.pixel_values)
    for name in statistics:
        np.testing.assert_allclose(after[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
        assert not np.array_equal(after[name], before[name])
    assert not any(name.endswith(("/mean", "/variance")) for name in optimizer_state)
    assert all(not np.array_equal(after[name], before[name]) for name in before if name not in statistics)
    assert float(metrics["loss"]) > 0 and 0 <= float(metrics["accuracy"]) <= 1


def test_micro_batches_give_the_mean_of_their_statistics(network):
    graphdef, params, batch = network
    after, _, _ = step_of(graphdef, params, batch, accumulation=2)
    # Micro-batch i has the rows i, i + 2, ...
    halves = [moved_by_hand(graphdef, params, batch.media.pixel_values[i::2]) for i in range(2)]
    for name in kept_statistics(after):
        np.testing.assert_allclose(after[name], (halves[0][name] + halves[1][name]) / 2, rtol=1e-5, atol=1e-6)


def test_statistics_of_frozen_layers_stay(network):
    graphdef, params, batch = network
    before = flatten_with_names(params)
    after, _, _ = step_of(graphdef, params, batch, freeze=("stem",))
    stem = [name for name in before if name.startswith("stem/")]
    assert len(stem) == 5 and all(np.array_equal(after[name], before[name]) for name in stem)
    assert not np.array_equal(after["stages/0/0/convolutions/0/norm/mean"],
                              before["stages/0/0/convolutions/0/norm/mean"])  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"class_weights": (1, -1)}, "class_weights"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"focal_gamma": -1.0}, "focal_gamma=-1.0"),
        ({"focal_gamma": 1.0, "label_smoothing": 0.1}, "cannot be used together"),
    ],
)
def test_wrong_settings_are_refused(fields, problem):
    with pytest.raises(UserError, match=problem):
        ClassificationConfig(**fields)
