"""Masked tokens are drawn in BERT's shares, and the loss is that of the equations on any mesh."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import logsumexp

from tests.models.bert_reference import TINY, hidden_states, logits, parameters, randomised
from zoo.data import Batch
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh
from zoo.training.masked_loss import mask_tokens, masked_token_loss

# Words and widths that the mesh divides.
CONFIG = replace(TINY, vocab_size=24, num_layers=1, dropout=0.2)
ROWS, LENGTH = 4, 10


def drawn(tokens, weights, seed=0, vocab_size=1000):
    key = jax.random.key(seed)
    found = mask_tokens(jnp.asarray(tokens), jnp.asarray(weights), vocab_size=vocab_size, mask_token_id=7, rng=key)
    return tuple(map(np.asarray, found))


@pytest.fixture(scope="module")
def many():
    """Rows of 400 tokens, of which the first, and in the second row most, may not be masked; the third has none."""
    tokens = np.random.default_rng(0).integers(10, 1000, (60, 400), np.int32)
    weights = np.ones(tokens.shape, np.float32)
    weights[:, 0], weights[1, 3:], weights[2] = 0, 0, 0
    return tokens, weights, drawn(tokens, weights)


def test_fifteen_percent_of_the_tokens_that_may_be_masked_are_in_each_row(many):
    tokens, weights, (read, places, chosen) = many
    assert places.shape == (60, 60)
    counts = chosen.sum(axis=1)
    assert counts[1] == 1 and counts[2] == 0 and set(np.delete(counts, [1, 2])) == {60}
    for row in range(60):
        own = places[row][chosen[row] > 0]
        assert len(set(own)) == len(own) and (weights[row, own] > 0).all()
        others = np.setdiff1d(np.arange(400), own)
        np.testing.assert_array_equal(read[row, others], tokens[row, others])


def test_of_these_eight_in_ten_are_masked_one_is_any_token_and_one_stays(many):
    tokens, _, (read, places, chosen) = many
    before, after = (np.take_along_axis(a, places, axis=1)[chosen > 0] for a in (tokens, read))
    masked, same = after == 7, before == after
    assert np.mean(masked) == pytest.approx(0.8, abs=0.02)
    assert np.mean(same) == pytest.approx(0.1, abs=0.02)
    replaced = after[~masked & ~same]
    assert len(replaced) > 250 and replaced.min() < 60 and replaced.max() > 940


def test_every_place_is_as_likely_as_any_other(many):
    _, _, (_, places, chosen) = many
    used = np.bincount(places[3:][chosen[3:] > 0], minlength=400)
    assert used[0] == 0 and used[1:200].sum() == pytest.approx(used[200:].sum(), rel=0.1)


def test_the_same_key_gives_the_same_draw_and_another_one_another(many):
    tokens, weights, first = many
    for one, other in zip(first, drawn(tokens, weights), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(first[0], drawn(tokens, weights, seed=1)[0])


def batch(seed=0):
    """Rows of two texts and padding; the first token of each is never masked."""
    ids = np.random.default_rng(seed).integers(8, CONFIG.vocab_size, (ROWS, LENGTH), np.int32)
    segments = np.tile(np.array([1, 1, 1, 1, 1, 2, 2, 2, 2, 0], np.int32), (ROWS, 1))
    positions = np.tile(np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 0], np.int32), (ROWS, 1))
    return Batch(ids, ids, positions, segments, ((positions > 0) & (segments > 0)).astype(np.float32))


@pytest.fixture(scope="module")
def model():
    return nnx.split(randomised(CONFIG))


@functools.partial(jax.jit, static_argnames=("graphdef", "z_loss", "chunk_tokens"))
def evaluated(graphdef, state, given, **options):
    """Compiled once for each set of options."""
    return masked_token_loss(nnx.merge(graphdef, state), given, **options)


def test_the_loss_and_the_accuracy_are_those_of_the_equations(model):
    given, found = batch(), parameters(nnx.merge(*model))
    sums = evaluated(*model, given)
    # As the loss draws them without a key.
    key = jax.random.fold_in(jax.random.key(0), int(given.tokens.sum()))
    masked = mask_tokens(
        jnp.asarray(given.tokens), jnp.asarray(given.loss_weights), vocab_size=24, mask_token_id=4, rng=key
    )
    read, places, chosen = map(np.asarray, masked)
    sees = given.segment_ids[:, :, None] == given.segment_ids[:, None]
    types = np.zeros_like(read)
    hidden = hidden_states(found, CONFIG, read, types, given.positions, sees)[-1]
    rows = np.arange(ROWS)[:, None]
    scores, targets = logits(found, CONFIG, hidden)[rows, places], given.tokens[rows, places]
    losses = logsumexp(scores, axis=-1) - np.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    assert float(sums.weight) == chosen.sum() == ROWS
    assert float(sums.loss) == pytest.approx((losses * chosen).sum(), rel=1e-5)
    assert float(sums.metrics["masked_accuracy"]) == ((scores.argmax(-1) == targets) * chosen).sum()
    other = evaluated(*model, batch(seed=1))
    assert float(other.loss) != float(sums.loss)


def test_a_validation_gives_the_same_numbers_every_time_and_z_loss_is_added(model):
    first, again = evaluated(*model, batch()), evaluated(*model, batch(), z_loss=0.5, chunk_tokens=4)
    assert float(first.loss) == pytest.approx(float(again.loss), rel=1e-6)
    assert float(first.z_loss) == 0 and float(again.z_loss) > 0.5


def test_on_a_mesh_loss_and_gradients_are_those_of_one_device_dropout_included_and_reach_every_parameter(model):
    graphdef, state = model
    given, key = batch(), jax.random.key(3)

    def loss(state):
        sums = masked_token_loss(nnx.merge(graphdef, state), given, rng=key)
        return sums.loss, sums.weight

    (alone, weight), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    with activation_sharding(make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4]), ShardingRules()):
        (divided, other_weight), others = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    assert float(divided) == pytest.approx(float(alone), rel=1e-5) and float(weight) == float(other_weight) == ROWS
    for (path, one), (_, other) in zip(nnx.to_flat_state(gradients), nnx.to_flat_state(others), strict=True):
        np.testing.assert_allclose(other[...], one[...], atol=2e-4, err_msg=str(path))
        # softmax does not see what is added to all scores of a query.
        assert "key_bias" in path or np.abs(one[...]).max() > 1e-4, path
    # d loss / d bias = probabilities - one-hot targets: they sum to 0 over the vocabulary.
    bias = dict(nnx.to_flat_state(gradients))[("head", "bias")][...]
    assert float(jnp.sum(bias)) == pytest.approx(0, abs=1e-5) and float(jnp.abs(bias).max()) > 0.1
