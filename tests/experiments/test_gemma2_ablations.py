"""The arms of the Gemma 2 ablations are of equal size, and a model without gates is what its formula says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.gemma2_ablations.arms import BASE, CHANGES, FULL, body_parameters, model_of
from zoo.errors import UserError
from zoo.models.gemini import GeminiConfig, GeminiLayer
from zoo.nn import Execution, ExpertsConfig, PlainFeedForward

SMALL = dict(vocab_size=32, embed_dim=8, num_layers=2, num_heads=2, head_dim=4, hidden_dim=12)


@pytest.mark.parametrize("arm", CHANGES)
def test_arms_have_equal_parameters(arm):
    body, base = body_parameters(model_of(arm, FULL)), body_parameters(model_of(BASE, FULL))
    assert abs(body - base) < 0.005 * base


def test_plain_feed_forward_is_down_of_gelu_of_up():
    layer = PlainFeedForward(8, 12, execution=Execution(), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    up = x @ np.asarray(layer.up[...], np.float64)
    gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    expected = gelu @ np.asarray(layer.down[...], np.float64)
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)), expected, atol=1e-5)


def test_a_model_without_gates_counts_its_parameters_and_operations():
    plain, gated = GeminiConfig(**SMALL, gated=False), GeminiConfig(**SMALL)
    layer = nnx.eval_shape(lambda: GeminiLayer(plain, 0, execution=Execution(), rngs=nnx.Rngs(0)))
    own = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(layer, nnx.Param)))
    assert plain.num_parameters() == 2 * own + 8 + 32 * 8
    assert gated.flops_per_token(16) - plain.flops_per_token(16) == 2 * 2 * 8 * 12


def test_experts_without_gates_are_refused():
    with pytest.raises(UserError, match=r"model\.gated must be true"):
        GeminiConfig(**SMALL, gated=False, experts=ExpertsConfig(num_experts=2, experts_per_token=1, hidden_dim=8))
