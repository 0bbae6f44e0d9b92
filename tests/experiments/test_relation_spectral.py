"""Embeddings of the relation study's encoder out of counts of neighbours."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.sparse import csr_array

from experiments.relation_extraction import spectral
from zoo.data import Batch
from zoo.errors import UserError
from zoo.models import BertConfig, build
from zoo.models.bert import Bert


def batch_of(tokens: list[list[int]], segments: list[list[int]], weights: list[list[float]] | None = None) -> Batch:
    ids = np.array(tokens, np.int32)
    counted = np.ones(ids.shape, np.float32) if weights is None else np.array(weights, np.float32)
    return Batch(ids, ids, np.zeros_like(ids), np.array(segments, np.int32), counted)


def test_neighbours_count_by_distance_within_their_text_and_both_ways() -> None:
    batch = batch_of([[1, 2, 3, 4, 0]], [[1, 1, 1, 2, 0]], [[1, 1, 1, 1, 0]])
    found = spectral.cooccurrences([batch], 5).toarray()
    wanted = np.zeros((5, 5))
    wanted[1, 2] = wanted[2, 3] = 1.0
    wanted[1, 3] = 0.5
    np.testing.assert_allclose(found, wanted + wanted.T)


def test_tokens_that_are_never_masked_are_no_neighbours_and_keep_their_distance() -> None:
    batch = batch_of([[1, 2, 3]], [[1, 1, 1]], [[1, 0, 1]])
    found = spectral.cooccurrences([batch, batch], 4).toarray()
    assert found[1, 3] == 2 * 0.5
    assert found[2].sum() == 0


def test_information_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 9, (5, 5)).astype(float)
    counts += counts.T
    total, sums = counts.sum(), counts.sum(1)
    share = sums**0.75 / (sums**0.75).sum()
    wanted = np.maximum(0, np.log(counts / total / (sums[:, None] / total * share[None, :])))
    np.testing.assert_allclose(spectral.ppmi(csr_array(counts)).toarray(), wanted)


@pytest.fixture(scope="module")
def two_topics() -> list[Batch]:
    """Texts that have pieces 1 to 9 or 10 to 18; 19 never occurs."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 10, 16) + 9 * (row % 2) for row in range(200)]
    return [batch_of(np.array(rows).tolist(), np.ones((200, 16), int).tolist())]


def test_pieces_that_stand_beside_the_same_ones_are_alike(two_topics: list[Batch]) -> None:
    rows = spectral.spectral_embeddings(spectral.cooccurrences(two_topics, 20), 8)
    assert rows.shape == (20, 8) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows[1:19], axis=1), 1, rtol=1e-5)
    assert not rows[[0, 19]].any()
    alike = rows @ rows.T
    assert alike[1:10, 1:10].mean() > alike[1:10, 10:19].mean() + 0.2
    np.testing.assert_array_equal(rows, spectral.spectral_embeddings(spectral.cooccurrences(two_topics, 20), 8))


def test_a_vocabulary_no_larger_than_the_width_is_refused(two_topics: list[Batch]) -> None:
    with pytest.raises(UserError, match="20 pieces is too small for embeddings of width 20"):
        spectral.spectral_embeddings(spectral.cooccurrences(two_topics, 20), 20)


def test_a_model_begins_with_them_and_with_the_frequencies(two_topics: list[Batch]) -> None:
    def new() -> Bert:
        config = BertConfig(vocab_size=20, embed_dim=8, num_layers=1, num_heads=2, hidden_dim=16, num_positions=16)
        return build(config, rngs=nnx.Rngs(0))

    before, model = new(), new()
    spectral.begin_with(model, two_topics)
    table, old = model.embedder.embedding[...], before.embedder.embedding[...]
    assert table.dtype == old.dtype
    np.testing.assert_array_equal(table[jnp.array([0, 19])], old[jnp.array([0, 19])])
    np.testing.assert_allclose(jnp.linalg.norm(table[1:19], axis=1), 1, rtol=1e-5)
    counts = np.bincount(two_topics[0].tokens.ravel(), minlength=20)
    np.testing.assert_allclose(model.head.bias[...], np.log((counts + 1) / (3200 + 20)), rtol=1e-5)
