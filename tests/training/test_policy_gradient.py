"""Policy gradient: estimators of the KL, advantages against a slow reference, and an unbiased gradient."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.data import Batch
from zoo.errors import UserError
from zoo.training.policy_gradient import PolicyGradientConfig, kl_estimates, policy_gradient_loss, token_advantages


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_two_estimators_have_the_kl_as_their_mean_and_the_third_its_gradient():
    rng = np.random.default_rng(0)
    logits, fixed = rng.standard_normal((2, 7))
    log_p, log_q = log_softmax(logits), log_softmax(fixed)
    p, d = np.exp(log_p), log_p - log_q
    kl = (p * d).sum()
    found = kl_estimates(jnp.asarray(d))
    assert (p * found.k1).sum() == pytest.approx(kl, rel=1e-6) and (p * found.k3).sum() == pytest.approx(kl, rel=1e-5)
    assert (np.asarray(found.k3) >= 0).all() and (np.asarray(found.k1) < 0).any()
    # d/dlogits of KL is p * (d - KL); that of k2, averaged over p, is sum_v p_v d_v (onehot_v - p).
    by_k2 = sum(p[v] * d[v] * (np.eye(7)[v] - p) for v in range(7))
    np.testing.assert_allclose(by_k2, p * (d - kl), atol=1e-12)


def slow_advantages(rewards, log_ratios, mask, samples, beta, penalty):
    """Token by token, as the formulas say."""
    count, length = mask.shape
    found = np.zeros((count, length))
    for n in range(count):
        first = n // samples * samples
        others = [m for m in range(first, first + samples) if m != n]

        def total(m):
            paid = sum(beta * log_ratios[m, t] for t in range(length) if mask[m, t])
            return rewards[m] - (paid if penalty == "reward" else 0.0)

        baseline = sum(total(m) for m in others) / len(others)
        for t in range(length):
            if not mask[n, t]:
                continue
            value = rewards[n] - baseline
            if penalty == "reward":
                value -= beta * sum(log_ratios[n, s] for s in range(t, length) if mask[n, s])
            elif penalty == "k2":
                value -= beta * log_ratios[n, t]
            else:
                value -= beta * (1 - np.exp(-log_ratios[n, t]))
            found[n, t] = value
    return found


@pytest.mark.parametrize("penalty", ["reward", "k2", "k3"])
def test_advantages_are_those_of_a_slow_reference(penalty):
    rng = np.random.default_rng(1)
    mask = np.zeros((6, 5))
    for row, (start, stop) in enumerate([(0, 2), (1, 5), (2, 3), (1, 4), (0, 5), (3, 5)]):
        mask[row, start:stop] = 1
    rewards, log_ratios = rng.standard_normal(6), rng.standard_normal((6, 5)) * mask
    found = token_advantages(
        jnp.asarray(rewards, jnp.float32),
        jnp.asarray(log_ratios, jnp.float32),
        jnp.asarray(mask, jnp.float32),
        samples_per_prompt=3,
        kl_coefficient=0.3,
        kl_penalty=penalty,
    )
    np.testing.assert_allclose(found, slow_advantages(rewards, log_ratios, mask, 3, 0.3, penalty), rtol=1e-5, atol=1e-6)


WORDS, LENGTH, BETA = 3, 2, 0.4


class Policy(nnx.Module):
    """The logits of a token depend on the token before it only."""

    def __init__(self, table):
        self.config = SimpleNamespace(final_logit_soft_cap=None)
        self.table = nnx.Param(jnp.asarray(table, jnp.float32))

    def hidden_states(self, tokens, **_):
        return self.table[...][tokens]

    def output_embedding(self):
        return jnp.eye(WORDS)


def test_the_mean_update_is_the_gradient_of_the_mean_reward_less_the_kl():
    """Over all pairs of samples, each as often as the policy draws it: REINFORCE with its baseline has no bias."""
    rng = np.random.default_rng(2)
    table, fixed = rng.standard_normal((2, WORDS, WORDS))
    sequences = np.array(list(itertools.product(range(WORDS), repeat=LENGTH)))
    worth = rng.standard_normal(len(sequences))
    read = np.concatenate([np.zeros((len(sequences), 1), int), sequences[:, :-1]], axis=1)

    def objective(table):
        log_p, log_q = (jax.nn.log_softmax(t)[read, sequences].sum(1) for t in (table, fixed))
        return jnp.sum(jnp.exp(log_p) * (worth - BETA * (log_p - log_q)))

    with jax.enable_x64(True):
        exact = np.asarray(jax.grad(objective)(jnp.asarray(table, jnp.float64)))
    token_log_p, token_log_q = (log_softmax(t)[read, sequences] for t in (table, fixed))
    probability = np.exp(token_log_p.sum(1))
    pairs = np.array(list(itertools.product(range(len(sequences)), repeat=2)))  # K = 2 samples of one prompt
    rows, log_ratios = pairs.reshape(-1), token_log_p - token_log_q
    advantages = token_advantages(
        jnp.asarray(worth[rows]), jnp.asarray(log_ratios[rows]), jnp.ones((len(rows), LENGTH)),
        samples_per_prompt=2, kl_coefficient=BETA,
    )  # fmt: skip
    often = np.repeat(probability[pairs].prod(1), 2)[:, None] * len(rows) / 2
    ones = np.ones((len(rows), LENGTH), np.int32)
    batch = Batch(read[rows], sequences[rows], ones, ones, (often * np.asarray(advantages)).astype(np.float32))
    graphdef, params = nnx.split(Policy(table))

    def loss(params):
        sums = policy_gradient_loss(nnx.merge(graphdef, params), batch)
        return sums.loss / sums.weight

    found = jax.jit(jax.grad(loss))(params)["table"].get_value()
    np.testing.assert_allclose(-found, exact, rtol=1e-3, atol=1e-5)


def test_the_weight_of_a_loss_is_the_number_of_sequences():
    ids = np.zeros((4, LENGTH), np.int32)
    segments = np.array([[1, 1], [1, 0], [0, 0], [1, 1]], np.int32)
    batch = Batch(ids, ids, ids, segments, np.zeros((4, LENGTH), np.float32))
    assert float(policy_gradient_loss(Policy(np.zeros((WORDS, WORDS))), batch).weight) == 3


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"reward": "exakt"}, "policy.reward 'exakt' is unknown; did you mean 'exact'"),
        ({"reward": "model"}, "policy.reward=model and policy.reward_model=RUN belong together"),
        ({"reward_model": "runs/x"}, "policy.reward=model and policy.reward_model=RUN belong together"),
        ({"unfinished_reward": 0.0}, "policy.unfinished_reward=0.0 is for policy.reward=model: with 'exact' an answer"),
        (
            {"reward": "model", "reward_model": "runs/x", "unfinished_reward": float("nan")},
            "policy.unfinished_reward must be a finite number, got nan",
        ),
        ({"samples_per_prompt": 1}, "policy.samples_per_prompt must lie in 2 .. 4096, got 1"),
        ({"kl_penalty": "k1"}, "policy.kl_penalty 'k1' is unknown"),
        ({"kl_coefficient": 0.0, "reference": "x"}, "policy.reference has no meaning with policy.kl_coefficient=0"),
    ],
)
def test_senseless_options_are_refused(fields, problem):
    with pytest.raises(UserError, match=problem):
        PolicyGradientConfig(**fields)
