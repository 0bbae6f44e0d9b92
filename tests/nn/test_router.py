"""Routing conventions are those of the public implementations, and fail here when one of them changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.nn.execution import Execution
from zoo.nn.router import Router, RouterStatistics, choose, count, jittered, load_balancing_loss, router_z_loss

LOGITS = np.array([[1.0, 3.0, 2.0, 0.0], [0.5, 0.5, -1.0, 0.5], [-1.0, -2.0, 4.0, 3.9]], np.float32)
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
SIGMOID = 1 / (1 + np.exp(-LOGITS))
CHOSEN = [[1, 2], [0, 1], [2, 3]]
CONVENTIONS = ("softmax_topk", "softmax_topk_renormalised", "topk_softmax", "sigmoid_topk")


def of_chosen(values):
    return np.take_along_axis(values, np.array(CHOSEN), -1)


def shares(values):
    return values / values.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("convention", "weights"),
    [
        ("softmax_topk", of_chosen(SOFTMAX)),
        ("softmax_topk_renormalised", shares(of_chosen(SOFTMAX))),
        ("topk_softmax", shares(np.exp(of_chosen(LOGITS)))),
        ("sigmoid_topk", shares(of_chosen(SIGMOID))),
    ],
)
def test_weights_follow_the_convention(convention, weights):
    routing = choose(jnp.asarray(LOGITS), 2, convention)
    np.testing.assert_array_equal(routing.chosen, CHOSEN)
    np.testing.assert_allclose(routing.weights, weights, rtol=2e-6)
    scaled = choose(jnp.asarray(LOGITS), 2, convention, scale=2.5)
    np.testing.assert_allclose(scaled.weights, 2.5 * weights, rtol=2e-6)
    probabilities = shares(SIGMOID) if convention == "sigmoid_topk" else SOFTMAX
    np.testing.assert_allclose(routing.probabilities, probabilities, rtol=2e-6)


def test_weights_are_not_renormalised_unless_the_convention_says_so():
    sums = choose(jnp.asarray(LOGITS), 2, "softmax_topk").weights.sum(-1)
    assert sums[0] < 0.9


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_of_equal_scores_the_lowest_expert_is_chosen_first(convention):
    routing = choose(jnp.zeros((2, 6)), 4, convention)
    np.testing.assert_array_equal(routing.chosen, [[0, 1, 2, 3]] * 2)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_selection_bias_decides_who_is_chosen_and_not_with_which_weight(convention):
    bias = jnp.array([10.0, -10.0, 0.0, 5.0])
    routing = choose(jnp.asarray(LOGITS), 2, convention, selection_bias=bias)
    np.testing.assert_array_equal(routing.chosen, [[0, 3]] * 3)
    scores = {"topk_softmax": np.exp(LOGITS), "sigmoid_topk": SIGMOID}.get(convention, SOFTMAX)[:, [0, 3]]
    expected = scores if convention == "softmax_topk" else shares(scores)
    np.testing.assert_allclose(routing.weights, expected, rtol=2e-6)
    gradient = jax.grad(lambda b: choose(jnp.asarray(LOGITS), 2, convention, selection_bias=b).weights.sum())(bias)
    assert not np.any(gradient)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_gradient_of_the_weights_is_that_of_a_gather(convention):
    target = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32)

    def plain(logits):
        softmax, sigmoid = jax.nn.softmax(logits), jax.nn.sigmoid(logits)
        scores = {"topk_softmax": jnp.exp(logits), "sigmoid_topk": sigmoid}.get(convention, softmax)
        picked = jnp.take_along_axis(scores, jnp.array(CHOSEN), -1)
        return picked if convention == "softmax_topk" else picked / picked.sum(-1, keepdims=True)

    ours = jax.grad(lambda logits: jnp.sum(target * choose(logits, 2, convention).weights))(jnp.asarray(LOGITS))
    np.testing.assert_allclose(ours, jax.grad(lambda x: jnp.sum(target * plain(x)))(jnp.asarray(LOGITS)), atol=1e-6)


@pytest.mark.parametrize(
    ("folder", "convention"),
    [
        ("mixtral-tiny", "softmax_topk_renormalised"),
        ("mixtral-tiny-sw", "softmax_topk_renormalised"),
        ("qwen3moe-tiny-norm", "softmax_topk_renormalised"),
        ("qwen3moe-tiny-nonorm", "softmax_topk"),
        ("gptoss-tiny", "topk_softmax"),
    ],
)
def test_choices_are_those_of_the_public_implementation(shared_dir, folder, convention):
    path = shared_dir / "fixtures" / folder / "expected.npz"
    if not path.is_file():
        pytest.skip(f"optional test data: no {path}")
    expected = np.load(path)
    layers = [name for name in expected if name.startswith("router_logits_")]
    assert len(layers) > 1
    for name in layers:
        choices = expected[name.replace("logits", "topk")]
        routing = choose(jnp.asarray(expected[name]), choices.shape[1], convention)
        np.testing.assert_array_equal(routing.chosen, choices)


@jax.jit
def statistics_of(logits):
    return count(choose(jnp.asarray(logits, jnp.float32), 2, "softmax_topk"), None)


def test_statistics_are_sums_over_the_tokens_that_are_no_padding():
    mask = jnp.array([True, False, True])
    counted = count(choose(jnp.asarray(LOGITS), 2, "softmax_topk"), mask, jnp.float32(3))
    kept = [0, 2]
    np.testing.assert_array_equal(counted.assigned, [0, 1, 2, 1])
    np.testing.assert_allclose(counted.probability, SOFTMAX[kept].sum(0), rtol=2e-6)
    np.testing.assert_allclose(counted.z, np.sum(np.log(np.exp(LOGITS[kept]).sum(-1)) ** 2), rtol=2e-6)
    np.testing.assert_allclose(counted.entropy, -np.sum(SOFTMAX[kept] * np.log(SOFTMAX[kept])), rtol=2e-6)
    assert (counted.tokens, counted.dropped) == (2, 3)


def test_statistics_of_parts_of_a_batch_can_be_added():
    logits = np.random.default_rng(1).normal(size=(12, 8))
    parts = [statistics_of(logits[:5]), statistics_of(logits[5:])]
    jax.tree.map(
        lambda whole, *part: np.testing.assert_allclose(whole, sum(part), rtol=1e-5), statistics_of(logits), *parts
    )


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_balancing_loss_is_k_when_balanced_and_k_times_e_over_k_when_k_experts_get_all(k):
    """With Mixtral's and flaxformer's normalisation; it would be 1 and E / k with the counts divided by k."""
    experts, tokens = 8, 16
    uniform = jnp.full(experts, tokens / experts)
    balanced = RouterStatistics(k * uniform, uniform, *[jnp.zeros(())] * 3, jnp.float32(tokens))
    np.testing.assert_allclose(load_balancing_loss(balanced), k)
    some = jnp.where(jnp.arange(experts) < k, 1.0, 0.0)
    collapsed = RouterStatistics(tokens * some, tokens / k * some, *[jnp.zeros(())] * 3, jnp.float32(tokens))
    np.testing.assert_allclose(load_balancing_loss(collapsed), experts)


def test_the_balancing_loss_of_one_layer_is_that_of_transformers():
    """E * sum over slots and experts of (part of the tokens) * (mean probability), as `load_balancing_loss_func`."""
    logits = np.random.default_rng(2).normal(size=(40, 8)).astype(np.float32)
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    slots = np.argsort(-softmax, axis=-1)[:, :2]
    per_slot = np.stack([np.bincount(slots[:, j], minlength=8) / 40 for j in range(2)])
    expected = 8 * np.sum(per_slot * softmax.mean(0))
    np.testing.assert_allclose(load_balancing_loss(statistics_of(logits)), expected, rtol=1e-5)


def test_the_gradient_of_the_balancing_loss_flows_through_the_probabilities_alone():
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(10, 4)), jnp.float32)
    assigned = statistics_of(logits).assigned
    expected = jax.grad(lambda x: 4 * jnp.sum(assigned / 10 * jax.nn.softmax(x).mean(0)))(logits)
    np.testing.assert_allclose(jax.grad(lambda x: load_balancing_loss(statistics_of(x)))(logits), expected, atol=1e-7)


def test_the_z_loss_is_the_mean_of_the_squared_logsumexp():
    np.testing.assert_allclose(
        router_z_loss(statistics_of(LOGITS)), np.mean(np.log(np.exp(LOGITS).sum(-1)) ** 2), rtol=2e-6
    )
    assert router_z_loss(statistics_of(LOGITS + 100)) > 1e4


def test_losses_of_stacked_layers_are_those_of_each_layer():
    layers = [statistics_of(np.random.default_rng(i).normal(size=(6, 4))) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    for loss in (load_balancing_loss, router_z_loss):
        np.testing.assert_allclose(loss(stacked), [loss(layer) for layer in layers], rtol=1e-6)


def test_scores_are_computed_in_float32_whatever_the_activations_are():
    router = Router(64, 8, 2, "softmax_topk", execution=Execution(), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 32, 64)).astype(jnp.bfloat16)
    expected = np.asarray(x, np.float64) @ np.asarray(router.kernel[...], np.float64)
    logits = router.logits(x)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_jitter_multiplies_the_input_within_its_bounds_in_training_only():
    x = jnp.ones((3, 5, 7))
    noise = jittered(x, 0.1, jax.random.key(0))
    assert 0.9 <= noise.min() < 0.93 and 1.07 < noise.max() <= 1.1
    assert len(np.unique(noise)) == x.size
    router = Router(7, 4, 1, "softmax_topk", jitter=0.1, execution=Execution(), rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(router(x).logits[0, 0], router(x).logits[2, 4])
    assert np.any(router(x, jax.random.key(0)).logits != router(x).logits)
    other = router(x, jax.random.key(1)).logits
    assert np.any(router(x, jax.random.key(0)).logits != other)


def test_a_tokens_noise_does_not_depend_on_what_else_is_in_the_batch():
    x = jnp.ones((2, 4, 3))
    both = jittered(x, 0.5, jax.random.key(0))
    np.testing.assert_array_equal(both[:1, :3], jittered(x[:1, :3], 0.5, jax.random.key(0)))
