"""Losses on pairs of answers against a written-out reference in float64, and what they hold in memory."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from zoo.data import Batch
from zoo.errors import UserError
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh
from zoo.training.preference import PreferenceConfig, last_of_pair, pair_totals, preference_loss, reward_model_loss

SEGMENTS = np.array(
    [[1, 1, 1, 2, 2, 3, 3, 4, 4, 4, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2], [0] * 12, [1] * 5 + [2] * 7], np.int32
)
WEIGHTS = np.array(
    [[0, 1, 1, 0, 1, 0, 1, 0, 1, 1, 0, 0], [1, *[0] * 5, *[1] * 6], [0] * 12, [0, 0, 1, 1, 1] + [0] * 3 + [1] * 4],
    np.float32,
)
PAIRS = [(0, 1, 2), (0, 3, 4), (1, 1, 2), (3, 1, 2)]
"""Row, segment of the chosen answer, of the rejected one."""
B, T, V = *SEGMENTS.shape, 10


class Logits(nnx.Module):
    """A model whose logits are its parameters, one row for each token of the batch."""

    def __init__(self, logits):
        self.config = SimpleNamespace(final_logit_soft_cap=None)
        self.table = nnx.Param(jnp.asarray(logits, jnp.float32))

    def hidden_states(self, tokens, **_):
        return self.table[...]

    def output_embedding(self):
        return jnp.eye(V)


def problem(seed=0):
    rng = np.random.default_rng(seed)
    policy, reference = rng.standard_normal((2, B, T, V))
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    batch = Batch(targets, targets, np.zeros((B, T), np.int32), SEGMENTS, WEIGHTS)
    return policy, reference, batch


def expected_loss(policy, reference, batch, config):
    """(sum of the losses, their gradient by the policy's logits, beta m of each pair), pair by pair in float64."""

    def log_p(logits):
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    loss, gradient, margins = 0.0, np.zeros_like(policy), []
    own, fixed = log_p(policy), log_p(reference)
    for row, chosen, rejected in PAIRS:
        answers = []
        for segment in (chosen, rejected):
            places = np.flatnonzero((SEGMENTS[row] == segment) & (WEIGHTS[row] > 0))
            targets = batch.targets[row, places]
            share = 1 / len(places) if config.length_normalised else 1.0
            by_logits = share * (np.eye(V)[targets] - np.exp(own[row, places]))
            ratio = share * (own[row, places, targets] - fixed[row, places, targets]).sum()
            nll = -own[row, places, targets].mean()
            answers.append((ratio, places, by_logits, nll))
        (r_c, places_c, by_c, nll), (r_r, places_r, by_r, _) = answers
        m, beta, e = r_c - r_r, config.beta, config.label_smoothing
        margins.append(beta * m)
        if config.kind == "ipo":
            loss, by_m = loss + (m - 1 / (2 * beta)) ** 2, 2 * (m - 1 / (2 * beta))
        else:
            sigmoid = 1 / (1 + np.exp(-beta * m))
            loss += -(1 - e) * np.log(sigmoid) - e * np.log(1 - sigmoid)
            by_m = beta * (-(1 - e) * (1 - sigmoid) + e * sigmoid)
        gradient[row, places_c] += by_m * by_c
        gradient[row, places_r] -= by_m * by_r
        if config.chosen_weight:
            loss += config.chosen_weight * nll
            share = 1 if config.length_normalised else 1 / len(places_c)
            gradient[row, places_c] -= config.chosen_weight * share * by_c
    return loss, gradient, np.array(margins)


def computed(policy, reference, batch, config, **options):
    graphdef, params = nnx.split(Logits(policy))
    fixed_graphdef, fixed = nnx.split(Logits(reference))

    def objective(params, fixed):
        sums = preference_loss(
            nnx.merge(graphdef, params), batch, teacher=fixed, teacher_graphdef=fixed_graphdef, config=config, **options
        )
        return sum(sums.auxiliary.values(), sums.loss), sums

    gradients, sums = jax.jit(jax.grad(objective, (0, 1), has_aux=True))(params, fixed)
    return (sums, *(np.asarray(gradient["table"].get_value()) for gradient in gradients))


CONFIGS = {
    "dpo": PreferenceConfig(beta=0.7),
    "conservative": PreferenceConfig(beta=0.7, label_smoothing=0.2, chosen_weight=0.5),
    "normalised": PreferenceConfig(beta=2.0, length_normalised=True, chosen_weight=0.5),
    "ipo": PreferenceConfig(kind="ipo", beta=0.4),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradient_are_those_of_pairs_written_out_in_float64(name):
    policy, reference, batch = problem()
    loss, gradient, margins = expected_loss(policy, reference, batch, CONFIGS[name])
    sums, found, of_reference = computed(policy, reference, batch, CONFIGS[name], chunk_tokens=5 * B)
    np.testing.assert_allclose(sum(sums.auxiliary.values(), sums.loss), loss, rtol=1e-5)
    np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=2e-6)
    assert not of_reference.any() and float(sums.weight) == len(PAIRS)
    np.testing.assert_allclose(sums.metrics["margin"], margins.sum(), rtol=1e-5)
    assert float(sums.metrics["preference_accuracy"]) == (margins > 0).sum()


def test_a_policy_that_is_its_reference_has_log_2_a_pair_and_pulls_answers_apart():
    policy, _, batch = problem()
    sums, gradient, _ = computed(policy, policy, batch, PreferenceConfig(beta=0.3))
    assert float(sums.loss / sums.weight) == pytest.approx(np.log(2), abs=1e-6)
    assert float(sums.metrics["margin"]) == pytest.approx(0, abs=1e-5) and np.abs(gradient).max() > 0.01
    sums, _, _ = computed(policy, policy, batch, PreferenceConfig(kind="ipo", beta=0.5))
    assert float(sums.loss / sums.weight) == pytest.approx(1.0, abs=1e-4)


def test_devices_that_share_rows_and_places_of_a_row_give_the_same():
    policy, reference, batch = problem(2)
    expected, gradient, _ = expected_loss(policy, reference, batch, CONFIGS["normalised"])
    mesh = make_mesh(MeshConfig(fsdp=4, context=2))
    rows = NamedSharding(mesh, PartitionSpec("fsdp", "context"))
    with activation_sharding(mesh, ShardingRules(vocab=None, embed=None)):
        sums, found, _ = computed(policy, reference, jax.device_put(batch, rows), CONFIGS["normalised"])
    np.testing.assert_allclose(sum(sums.auxiliary.values(), sums.loss), expected, rtol=1e-5)
    np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=2e-6)


def test_running_sums_begin_anew_with_each_pair():
    values = np.random.default_rng(3).standard_normal((B, T)).astype(np.float32)
    totals, ends = jax.jit(pair_totals)(values, SEGMENTS), np.asarray(last_of_pair(SEGMENTS))
    assert [tuple(place) for place in np.argwhere(ends)] == [(0, 4), (0, 9), (1, 11), (3, 11)]
    for (row, place), (_, chosen, rejected) in zip(np.argwhere(ends), PAIRS, strict=True):
        expected = [values[row, SEGMENTS[row] == segment].sum() for segment in (chosen, rejected)]
        np.testing.assert_allclose(totals[row, place], expected, rtol=1e-5, atol=1e-6)


def test_the_compiled_gradient_holds_no_logits_of_a_whole_batch():
    rows, length, words, width = 2, 64, 509, 16
    batch = Batch(*[np.ones((rows, length), np.int32)] * 3, np.repeat([[1, 2]], 32, 1).repeat(rows, 0).astype(np.int32),
                  np.ones((rows, length), np.float32))  # fmt: skip

    class Table(nnx.Module):
        def __init__(self):
            self.config = SimpleNamespace(final_logit_soft_cap=30.0)
            self.table = nnx.Param(jnp.ones((words, width)))

        def hidden_states(self, tokens, **_):
            return self.table[...][tokens]

        def output_embedding(self):
            return self.table[...]

    graphdef, params = nnx.split(Table())

    def objective(params, fixed):
        options = {"teacher": fixed, "teacher_graphdef": graphdef, "config": PreferenceConfig(), "chunk_tokens": 16}
        return preference_loss(nnx.merge(graphdef, params), batch, **options).loss

    text = jax.jit(jax.grad(objective)).lower(params, params).compile().as_text()
    sizes = {
        np.prod([int(n) for n in shape.split(",")]) for shape in re.findall(r"f32\[([\d,]+)\]", text) if "509" in shape
    }
    assert 16 * words in sizes and max(sizes) == 16 * words


class Rewards(nnx.Module):
    """A reward model whose rewards are its parameters."""

    def __init__(self, values):
        self.values = nnx.Param(jnp.asarray(values, jnp.float32))

    def __call__(self, tokens, **_):
        return self.values[...]


def test_a_reward_model_is_read_at_the_last_token_of_each_answer():
    _, _, batch = problem()
    values = np.random.default_rng(5).standard_normal((B, T))
    graphdef, params = nnx.split(Rewards(values))

    def objective(params):
        sums = reward_model_loss(nnx.merge(graphdef, params), batch, config=PreferenceConfig(centering=0.1))
        return sum(sums.auxiliary.values(), sums.loss), sums

    gradient, sums = jax.jit(jax.grad(objective, has_aux=True))(params)
    loss, expected, right = 0.0, np.zeros((B, T)), 0
    for row, chosen, rejected in PAIRS:
        places = [np.flatnonzero(SEGMENTS[row] == segment)[-1] for segment in (chosen, rejected)]
        r_c, r_r = values[row, places]
        sigmoid = 1 / (1 + np.exp(r_r - r_c))
        loss, right = loss - np.log(sigmoid) + 0.1 * (r_c + r_r) ** 2, right + (r_c > r_r)
        expected[row, places] = np.array([sigmoid - 1, 1 - sigmoid]) + 0.2 * (r_c + r_r)
    np.testing.assert_allclose(sum(sums.auxiliary.values(), sums.loss), loss, rtol=1e-5)
    np.testing.assert_allclose(gradient["values"].get_value(), expected, rtol=1e-5, atol=1e-6)
    assert float(sums.metrics["preference_accuracy"]) == right


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"kind": "dp"}, "preference.kind 'dp' is unknown; did you mean 'dpo'"),
        ({"beta": 0.0}, "preference.beta must lie above 0"),
        ({"label_smoothing": 0.5}, "preference.label_smoothing must be at least 0 and below 0.5"),
        ({"kind": "ipo", "label_smoothing": 0.1}, "has no meaning for preference.kind=ipo"),
        ({"centering": -1.0}, "preference.centering must lie in 0 .. 100"),
    ],
)
def test_senseless_options_are_refused(fields, problem):
    with pytest.raises(UserError, match=problem):
        PreferenceConfig(**fields)
