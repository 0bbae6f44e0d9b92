"""A reward model: its size, and that what it says of a segment depends on that segment alone, up to each token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.models import build, preset
from zoo.models.reward_model import RewardModelConfig

CONFIG = RewardModelConfig(
    dataclasses.replace(preset("gemma2-pico"), embed_dim=16, head_dim=8, hidden_dim=32, num_layers=2)
)


def test_a_new_model_gives_zero_and_counts_one_vector_more_than_its_decoder():
    model = build(CONFIG, rngs=nnx.Rngs(0))
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    assert sum(sizes) == CONFIG.num_parameters() == CONFIG.decoder.num_parameters() + 16
    assert not np.asarray(model(jnp.ones((1, 4), jnp.int32))).any()


def test_a_reward_is_that_of_its_segment_up_to_the_token():
    model = build(CONFIG, rngs=nnx.Rngs(1))
    model.head[...] = jnp.asarray(np.random.default_rng(0).standard_normal(16), jnp.float32)
    first, second = np.random.default_rng(1).integers(0, 320, (2, 6)).astype(np.int32)
    both = model(
        np.concatenate([first, second])[None],
        positions=np.tile(np.arange(6), 2)[None],
        segment_ids=np.repeat([1, 2], 6)[None],
    )
    alone = model(np.stack([first, second]))
    np.testing.assert_allclose(both[0], np.asarray(alone).reshape(-1), rtol=1e-4, atol=1e-5)
    assert np.abs(alone).max() > 0.1
    expected = model.decoder.hidden_states(second[None, :4])[0, -1] @ model.head[...]
    np.testing.assert_allclose(alone[1, 3], expected, rtol=1e-4, atol=1e-5)
