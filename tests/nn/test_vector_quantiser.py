"""The quantiser takes the nearest codes, passes gradients straight through, and moves codes that nobody uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.nn import Execution
from zoo.nn.vector_quantiser import VectorQuantiser, perplexity

K, C = 7, 3


@pytest.fixture(scope="module")
def quantiser() -> VectorQuantiser:
    return VectorQuantiser(K, C, execution=Execution(), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def quantise(quantiser):
    return jax.jit(quantiser)


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, 4, C)).astype(np.float32)


WEIGHTS = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.float32)


def numpy_version(codebook, features, weights):
    """(codes, codebook loss, revival loss, counts) by distance instead of by cosine."""
    table = codebook / np.linalg.norm(codebook, axis=-1, keepdims=True)
    z = (features / np.linalg.norm(features, axis=-1, keepdims=True)).reshape(-1, C)
    flat_weights = weights.reshape(-1)
    distance = ((z[:, None] - table[None]) ** 2).sum(-1)
    codes = distance.argmin(1)
    loss = sum(w * distance[i, code] for i, (code, w) in enumerate(zip(codes, flat_weights, strict=True)))
    counts = np.bincount(codes, flat_weights, minlength=K)
    own = distance.min(1)
    badly_served = distance[(flat_weights > 0) & (own >= (flat_weights * own).sum() / flat_weights.sum())]
    revival = sum(badly_served[:, k].min() for k in range(K) if counts[k] == 0) / K * flat_weights.sum()
    return codes.reshape(weights.shape), loss, revival, counts


def test_codes_and_losses_are_those_of_the_formulas(quantiser, quantise, features):
    found = quantise(features, WEIGHTS)
    codes, loss, revival, counts = numpy_version(np.asarray(quantiser.codebook[...]), features, WEIGHTS)
    assert revival > 0 and 2 <= len(set(codes.flat)) < K
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_allclose(found.codebook_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(found.commitment_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(found.revival_loss, revival, rtol=1e-5)
    np.testing.assert_array_equal(found.counts, counts)
    again, vectors = jax.jit(lambda: (quantiser.codes(features), quantiser.vectors(codes)))()
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_allclose(found.vectors, vectors, atol=1e-6)


def test_gradients_go_straight_through_and_each_loss_trains_its_own_side(quantiser, features):
    z = features / np.linalg.norm(features, axis=-1, keepdims=True)
    towards = np.random.default_rng(2).normal(size=z.shape).astype(np.float32)
    graphdef, state = nnx.split(quantiser)
    losses = ("codebook_loss", "commitment_loss", "revival_loss")

    @jax.jit
    def gradients(state, z):
        def outputs(state, z):
            found = nnx.merge(graphdef, state)(z, WEIGHTS)
            return jnp.stack([jnp.sum(towards * found.vectors), *(getattr(found, name) for name in losses)])

        return jax.jacrev(outputs, argnums=(0, 1))(state, z)

    of_codebook, of_features = gradients(state, z)
    # As if it were the features on the sphere themselves: what points along the radius is lost.
    expected = towards - (towards * z).sum(-1, keepdims=True) * z
    np.testing.assert_allclose(of_features[0], expected, atol=1e-5)
    (of_codebook,) = jax.tree.leaves(of_codebook)
    assert [np.abs(g).max() > 1e-4 for g in np.asarray(of_codebook)] == [False, True, False, True]
    assert [np.abs(g).max() > 1e-4 for g in np.asarray(of_features)] == [True, False, True, False]


def test_descent_on_the_losses_brings_every_code_to_use():
    """All features lie around one point, where at first two codes at most are nearest to anything."""
    quantiser = VectorQuantiser(16, C, execution=Execution(), rngs=nnx.Rngs(0))
    features = np.random.default_rng(3).normal((3.0, 0.0, 0.0), 0.5, (1, 200, C)).astype(np.float32)
    weights = np.ones((1, 200), np.float32)
    graphdef, state = nnx.split(quantiser)

    def loss(state):
        found = nnx.merge(graphdef, state)(features, weights)
        return (found.codebook_loss + found.revival_loss) / 200, perplexity(found.counts)

    @jax.jit
    def descend(state):
        def step(state, _):
            gradients, used = jax.grad(loss, has_aux=True)(state)
            return jax.tree.map(lambda p, g: p - 0.02 * jnp.sign(g), state, gradients), used

        return jax.lax.scan(step, state, length=100)[1]

    used = descend(state)
    assert used[0] < 8 and used[-1] > 10


def test_perplexity_counts_codes_that_are_used_alike():
    counts = jnp.asarray([[2.0, 2.0, 0.0, 2.0], [5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(jax.jit(jax.vmap(perplexity))(counts), [3, 1, 1], rtol=1e-6)
