"""The heads of relation extraction against loops in float64."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.relation_extraction.bag_heads import (
    AtLeastOneHead,
    AttentionHead,
    AverageHead,
    MultilingualHead,
    SentenceVector,
)
from experiments.relation_extraction.heads import PassageHead, binary_loss, log_odds, relation_attention, softmax_loss
from experiments.relation_extraction.pcnn import Pcnn, PcnnConfig

B, T, D, R, S, L = 3, 7, 4, 5, 3, 2
rng = np.random.default_rng(0)
HIDDEN = rng.normal(size=(B, T, D)).astype(np.float32)
VISIBLE = np.arange(T) < np.array([7, 4, 1])[:, None]
BAG = rng.normal(size=(B, S, D)).astype(np.float32)
PRESENT = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0]], bool)
RELATION = np.array([2, 0, 4])
SPEECH = rng.normal(size=(B, L, S, D)).astype(np.float32)
SPOKEN = np.array([[[1, 1, 0], [1, 0, 0]], [[0, 0, 0], [1, 1, 1]], [[1, 0, 0], [0, 0, 0]]], bool)


def softmax(values) -> np.ndarray:
    values = np.exp(np.asarray(values, float) - np.max(values))
    return values / values.sum()


def attended(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """sum_j softmax_j(x_j . q) x_j."""
    weights = softmax([vector @ query for vector in vectors])
    return sum(weight * vector for weight, vector in zip(weights, vectors))


def weights_of(head, *names: str) -> list[np.ndarray]:
    return [np.asarray(getattr(head, name)[...], float) for name in names]


def run(function, *arrays) -> np.ndarray:
    """The result of one compiled program: a program for each operation would take most of the time."""
    return np.asarray(jax.jit(function)(*arrays))


def close(found, wanted) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=2e-5, atol=2e-6)


def randomised(head):
    """The head with biases that are not 0, so that they count."""
    noise = np.random.default_rng(1)
    for _, variable in nnx.iter_graph(head):
        if isinstance(variable, nnx.Param):
            variable[...] = jnp.asarray(noise.normal(size=variable.shape), jnp.float32)
    return head


@cache
def passage_head(na: int | None = None) -> PassageHead:
    return randomised(PassageHead(R, D, na=na, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("na", [None, 1])
def test_pare_attends_over_the_visible_tokens_and_shares_its_scorer(na: int | None) -> None:
    head = passage_head(na)
    queries, scorer, bias = weights_of(head, "queries", "scorer", "scorer_bias")
    found = run(lambda hidden, visible: head(hidden, visible), HIDDEN, VISIBLE)
    for b in range(B):
        for r in range(R):
            z = attended(HIDDEN[b, VISIBLE[b]].astype(float), queries[r])
            which = 1 if r == na else 0
            close(found[b, r], z @ scorer[which] + bias[which])


def test_without_a_mask_padding_takes_part_as_in_the_authors_code() -> None:
    queries = weights_of(passage_head(), "queries")[0]
    single = queries.astype(np.float32)
    found = run(relation_attention, HIDDEN, single)
    close(found[2, 1], attended(HIDDEN[2].astype(float), queries[1]))
    masked = run(relation_attention, HIDDEN, single, VISIBLE)
    assert np.abs(found[2] - masked[2]).max() > 0.1
    close(masked[2], np.tile(HIDDEN[2, 0], (R, 1)))


def test_padding_changes_nothing_and_a_row_without_tokens_has_a_finite_gradient() -> None:
    head = passage_head()
    other = np.where(VISIBLE[..., None], HIDDEN, 99.0).astype(np.float32)
    call = jax.jit(lambda hidden, visible: head(hidden, visible))
    close(call(other, VISIBLE), call(HIDDEN, VISIBLE))
    gradient = run(jax.grad(lambda hidden: head(hidden, np.zeros((B, T), bool)).sum()), HIDDEN)
    assert np.isfinite(gradient).all()


def test_the_scorer_begins_at_the_odds_of_the_relations_shares() -> None:
    shares = np.array([0.5, 0.1, 0.3, 0.0, 0.1])
    bias = weights_of(PassageHead(R, D, shares=shares, rngs=nnx.Rngs(0)), "scorer_bias")[0]
    close(bias, [np.log(0.2 / 0.8)])
    bias = weights_of(PassageHead(R, D, na=0, shares=shares, rngs=nnx.Rngs(0)), "scorer_bias")[0]
    close(bias, [np.log(0.125 / 0.875), 0])
    close(weights_of(PassageHead(R, D, rngs=nnx.Rngs(0)), "scorer_bias")[0], [0])
    assert np.isfinite(log_odds(np.zeros(2))).all() and np.isfinite(log_odds(np.ones(2))).all()


def test_the_losses_are_sums_of_cross_entropies_over_the_weighted_bags() -> None:
    logits = rng.normal(size=(B, R)).astype(np.float32) * 3
    labels, weights = rng.random((B, R)) < 0.4, np.array([1, 0, 1], np.float32)
    binary = softened = 0.0
    for b in (0, 2):
        for r in range(R):
            p = 1 / (1 + np.exp(-float(logits[b, r])))
            binary -= np.log(p if labels[b, r] else 1 - p)
        softened -= np.log(softmax(logits[b])[RELATION[b]])
    close(run(binary_loss, logits, labels, weights), binary)
    close(run(softmax_loss, logits, RELATION, weights), softened)
    assert np.isfinite(run(binary_loss, np.full((B, R), 200, np.float32), labels, weights))


def test_sentence_vectors_are_made_of_the_two_markers() -> None:
    layer = randomised(SentenceVector(D, rngs=nnx.Rngs(0)))
    kernel, bias = weights_of(layer, "kernel", "bias")
    markers = np.array([[1, 5], [3, 0], [0, 6]])
    found = run(lambda hidden, markers: layer(hidden, markers), HIDDEN, markers)
    for b, (head, tail) in enumerate(markers):
        close(found[b], np.concatenate([HIDDEN[b, head], HIDDEN[b, tail]]).astype(float) @ kernel + bias)


def sentences(b: int) -> np.ndarray:
    return BAG[b, PRESENT[b]].astype(float)


def test_selective_attention_queries_with_the_gold_relation_in_training_and_with_each_in_testing() -> None:
    head = randomised(AttentionHead(R, D, rngs=nnx.Rngs(0)))
    kernel, bias = weights_of(head, "kernel", "bias")
    logits, scores = run(head.training_logits, BAG, PRESENT, RELATION), run(head.scores, BAG, PRESENT)
    for b in range(B):
        close(logits[b], kernel @ attended(sentences(b), kernel[RELATION[b]]) + bias)
        for r in range(R):
            close(scores[b, r], softmax(kernel @ attended(sentences(b), kernel[r]) + bias)[r])


def test_a_detached_query_gets_no_gradient() -> None:
    def gradient(detached: bool) -> np.ndarray:
        head = randomised(AttentionHead(R, D, detached=detached, rngs=nnx.Rngs(0)))

        # Of the sum of all logits of a bag whose relation is 2, row 0 has the gradient s; the query is row 2.
        def loss(head):
            return head.training_logits(BAG[:1], PRESENT[:1], RELATION[:1]).sum()

        return np.asarray(nnx.jit(nnx.grad(loss))(head).kernel[...])

    free, detached = gradient(False), gradient(True)
    close(detached[2], detached[0])
    assert np.abs(free[2] - free[0]).max() > 1e-3


def test_average_and_at_least_one() -> None:
    average, one = (randomised(kind(R, D, rngs=nnx.Rngs(0))) for kind in (AverageHead, AtLeastOneHead))
    kernel, bias = weights_of(average, "kernel", "bias")
    mean, surest = (run(head.training_logits, BAG, PRESENT, RELATION) for head in (average, one))
    mean_scores, surest_scores = run(average.scores, BAG, PRESENT), run(one.scores, BAG, PRESENT)
    for b in range(B):
        logits = [kernel @ x + bias for x in sentences(b)]
        close(mean[b], kernel @ sentences(b).mean(0) + bias)
        close(mean_scores[b], softmax(kernel @ sentences(b).mean(0) + bias))
        close(surest[b], max(logits, key=lambda values: softmax(values)[RELATION[b]]))
        close(surest_scores[b], np.max([softmax(values) for values in logits], axis=0))


def test_dropout_takes_part_in_training_only_when_there_is_a_key() -> None:
    head = randomised(AverageHead(R, D, dropout=0.5, rngs=nnx.Rngs(0)))
    call = jax.jit(head.training_logits)
    quiet, noisy = (call(BAG, PRESENT, RELATION, key) for key in (None, jax.random.key(0)))
    assert np.abs(np.asarray(noisy) - np.asarray(quiet)).max() > 0.1
    close(noisy, call(BAG, PRESENT, RELATION, jax.random.key(0)))


def test_mnre_sums_over_present_languages_and_all_query_languages() -> None:
    head = randomised(MultilingualHead(R, D, L, rngs=nnx.Rngs(0)))
    kernel, bias, queries = weights_of(head, "kernel", "bias", "queries")

    def summed(b: int, r: int) -> np.ndarray:
        total = np.zeros(R)
        for language in range(L):
            spoken = SPEECH[b, language, SPOKEN[b, language]].astype(float)
            for k in range(L):
                if len(spoken):
                    s = attended(spoken, queries[r, k])
                    total += kernel @ s + bias + queries[:, k] @ s
        return total

    logits, scores = run(head.training_logits, SPEECH, SPOKEN, RELATION), run(head.scores, SPEECH, SPOKEN)
    for b in range(B):
        close(logits[b], summed(b, RELATION[b]))
        for r in range(R):
            close(scores[b, r], softmax(summed(b, r))[r])


def test_pcnn_pools_three_pieces_around_the_mentions() -> None:
    config = PcnnConfig(vocab_size=6, word_dim=3, position_dim=2, filters=4, window=3, max_distance=2)
    model = randomised(Pcnn(config, rngs=nnx.Rngs(0)))
    word, position, kernel, bias = weights_of(model, "word", "position", "kernel", "bias")
    tokens, places = rng.integers(0, 6, (B, T)), np.array([[1, 4], [3, 0], [0, 0]])
    found = run(lambda tokens, places, visible: model(tokens, places, visible), tokens, places, VISIBLE)
    assert found.shape == (B, model.width)
    for b in range(B):
        length = VISIBLE[b].sum()
        inputs = [
            np.concatenate([word[tokens[b, t]], *(position[i, np.clip(t - places[b, i], -2, 2) + 2] for i in (0, 1))])
            for t in range(length)
        ]
        padded = [np.zeros(7), *inputs, np.zeros(7)]
        states = [sum(padded[t + i] @ kernel[i] for i in range(3)) + bias for t in range(length)]
        first, second = sorted(places[b])
        pieces = [states[: first + 1], states[first + 1 : second + 1], states[second + 1 :]]
        pooled = [np.max(piece, axis=0) if len(piece) else np.zeros(4) for piece in pieces]
        close(found[b], np.tanh(np.concatenate(pooled)))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="na=5"):
        PassageHead(R, D, na=5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="odd"):
        PcnnConfig(vocab_size=3, window=2)
