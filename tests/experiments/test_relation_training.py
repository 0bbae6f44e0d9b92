"""Batches of bags, the networks of the arms and their training."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.relation_extraction import encoders
from experiments.relation_extraction.arms import SIZES, Size, arm_named
from experiments.relation_extraction.inputs import Bags, Batch, Layout, grouped, rounded, sentence_limit, slots_of
from experiments.relation_extraction.made_up import RELATIONS, made_up
from experiments.relation_extraction.metrics import area, curve_of
from experiments.relation_extraction.neural import encoded, layout_of, network_of, pcnn_of
from experiments.relation_extraction.passages import Marks, sentence_order
from experiments.relation_extraction.trainer import Training, is_of_the_head
from experiments.updates import scale_updates
from zoo.errors import UserError
from zoo.models import BertConfig
from zoo.models.bert import Bert

SIZE = replace(
    SIZES["quick"],
    embed_dim=16,
    hidden_dim=16,
    passage_tokens=40,
    sentence_tokens=20,
    most_sentences=3,
    batch_bags=16,
    length_step=20,
)
MARKS = Marks(cls=1, sep=2, pad=0, head=(3, 4), tail=(5, 6))
VOCABULARY = 100
CORPUS = made_up(pairs=120)
LANGUAGES = ("en", "eo")


class Words:
    """A word is a token; names, which are capitalised, are one and the same."""

    def encode(self, text: str) -> list[int]:
        return [7 if word[0].isupper() else 8 + sum(map(ord, word)) % (VOCABULARY - 8) for word in text.split()]


@cache
def bags(part: str = "train", size: Size = SIZE) -> Bags:
    return Bags(getattr(CORPUS, part), RELATIONS, Words(), MARKS, size, LANGUAGES)


def bert(seed: int = 0, dropout: float = 0.0) -> Bert:
    config = BertConfig(
        VOCABULARY, SIZE.embed_dim, 1, 2, SIZE.hidden_dim, num_positions=SIZE.passage_tokens, dropout=dropout
    )
    return Bert(config, rngs=nnx.Rngs(seed))


def some_batch(passages: bool, slots: int = 2) -> tuple[Batch, list[tuple[int, int]]]:
    """Three bags of that many sentences, filled up to four."""
    chosen = [(i, 1) for i in range(len(bags())) if len(bags().bags[i]) == slots][:20]
    layout = Layout(passages)
    lengths = [bags().length(i, Layout(True)) for i, _ in chosen]
    alike = [one for one, length in zip(chosen, lengths) if length == max(lengths, key=lengths.count)][:3]
    assert len(alike) == 3
    return bags().batch(alike, layout, 4, seed=0, epoch=None), alike


def test_slots_and_lengths_are_rounded_up_to_few_and_never_beyond_what_fits() -> None:
    assert [slots_of(n, 5) for n in (1, 2, 3, 4, 5, 9)] == [1, 2, 4, 4, 5, 5]
    assert [rounded(n, 40, 10) for n in (1, 10, 11, 39, 40)] == [10, 10, 20, 40, 40]
    assert [rounded(n, 10, 3) for n in (9, 10)] == [9, 10]
    assert [sentence_limit(SIZE, slots) for slots in (1, 2, 3)] == [20, 20, 13]


def test_both_layouts_read_the_same_sentences_in_the_same_order() -> None:
    (rows, chosen), (passages, _) = some_batch(False), some_batch(True)
    assert rows.tokens.shape[0] == 8 and passages.tokens.shape[0] == 4
    for place, (index, _) in enumerate(chosen):
        own = [row[(row != 0) & (row != 1)].tolist() for row in rows.tokens[2 * place : 2 * place + 2]]
        joined = passages.tokens[place]
        assert joined[joined != 0].tolist() == [1, *own[0], *own[1]]
        first = sentence_order(bags().bags[index], 0)[0]
        assert rows.languages[place, 0] == LANGUAGES.index(bags().bags[index].instances[first].language)
        for row in range(2 * place, 2 * place + 2):
            assert rows.tokens[row][rows.markers[row]].tolist() == [3, 5]
    assert rows.weights.tolist() == passages.weights.tolist() == [1, 1, 1, 0]
    assert passages.present[:3].sum(1).tolist() == [2, 2, 2]
    np.testing.assert_array_equal(rows.labels[:3], bags().labels[[index for index, _ in chosen]])


def test_every_example_is_in_one_batch_and_all_of_a_batch_have_one_shape() -> None:
    for layout in (Layout(True), Layout(False), Layout(True, full_length=True)):
        examples = bags().examples(layout.passages, RELATIONS)
        plain = list(grouped(bags(), examples, layout, 8, None))
        mixed = list(grouped(bags(), examples, layout, 8, np.random.default_rng(0)))
        assert sorted(sum(mixed, [])) == sorted(sum(plain, [])) == sorted(examples)
        assert len(plain) == len(mixed) and plain != mixed
        for chosen in mixed:
            shapes = {(layout.passages or bags().slots[i], bags().length(i, layout)) for i, _ in chosen}
            assert len(shapes) == 1
    assert {bags().length(i, Layout(True, True)) for i in range(len(bags()))} == {SIZE.passage_tokens}
    per_relation = bags().examples(False, RELATIONS)
    assert len(per_relation) == sum(len(bag.relations) for bag in bags().bags) > len(bags())


def scores(network, batch: Batch) -> np.ndarray:
    graphdef, params = nnx.split(network, nnx.Param)
    return np.asarray(jax.jit(lambda params, batch: nnx.merge(graphdef, params).scores(batch))(params, batch))


def states(arm: str, batch: Batch) -> np.ndarray:
    model = bert()
    return np.asarray(jax.jit(lambda batch: encoded(model, batch, None, blocks=arm_named(arm).blocks))(batch))


def test_without_flow_a_sentence_does_not_see_the_others_and_with_flow_it_does() -> None:
    batch, _ = some_batch(True)
    second = batch.segment_ids == 2
    other = replace(batch, tokens=np.where(second, (batch.tokens + 11) % VOCABULARY, batch.tokens))
    first = batch.segment_ids == 1
    change = {arm: np.abs(states(arm, batch) - states(arm, other))[first].max() for arm in ("PARE", "PARE, no flow")}
    assert change["PARE, no flow"] == 0 < 1e-3 < change["PARE"]


def test_on_bags_of_one_sentence_flow_makes_no_difference_and_seen_padding_does() -> None:
    batch, _ = some_batch(True, slots=1)
    found = {
        arm: scores(network_of(arm_named(arm), bert(), RELATIONS, 2, 0), batch)
        for arm in ("PARE", "PARE, no flow", "PARE, padding")
    }
    np.testing.assert_allclose(found["PARE"], found["PARE, no flow"], rtol=1e-5, atol=1e-6)
    assert (batch.segment_ids == 0).any()
    assert np.abs(found["PARE"] - found["PARE, padding"]).max() > 1e-4


def test_a_sentence_arm_scores_vectors_of_sentences_with_its_head_and_mnre_gets_them_by_language() -> None:
    batch, _ = some_batch(False)
    for arm in ("attention", "MNRE"):
        network = network_of(arm_named(arm), bert(), RELATIONS, 2, 0)
        hidden = network.encoder(jnp.asarray(batch.tokens), attention_mask=jnp.asarray(batch.segment_ids > 0))
        vectors = np.asarray(network.vector(hidden, jnp.asarray(batch.markers))).reshape(4, 2, -1)
        if arm == "attention":
            wanted = network.head.scores(vectors, batch.present)
        else:
            sorted_, there = np.zeros((4, 2, 2, vectors.shape[-1]), np.float32), np.zeros((4, 2, 2), bool)
            for b, s in np.argwhere(batch.present):
                sorted_[b, batch.languages[b, s], s] = vectors[b, s]
                there[b, batch.languages[b, s], s] = True
            wanted = network.head.scores(sorted_, there)
        np.testing.assert_allclose(scores(network, batch), np.asarray(wanted), rtol=2e-4, atol=1e-6)


def test_pcnn_begins_with_the_words_of_the_encoder() -> None:
    encoder = bert()
    np.testing.assert_array_equal(pcnn_of(encoder, rngs=nnx.Rngs(1)).word[...], encoder.embedder.embedding[...])


def test_the_head_learns_at_a_multiple_of_the_encoders_rate() -> None:
    params = {"encoder": {"x": jnp.ones(2)}, "head": {"queries": jnp.ones(3)}, "vector": {"bias": jnp.ones(1)}}
    optimizer = optax.chain(optax.sgd(0.5), scale_updates(4.0, is_of_the_head))
    found, _ = optimizer.update(params, optimizer.init(params), params)
    wanted = {"encoder": {"x": -0.5}, "head": {"queries": -2.0}, "vector": {"bias": -2.0}}
    for part, leaves in wanted.items():
        for name, value in leaves.items():
            np.testing.assert_allclose(found[part][name], value)
    same, _ = scale_updates(1.0, is_of_the_head).update(params, optax.EmptyState())
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.slow
def test_another_seed_compiles_nothing_and_is_trained_as_if_it_were_the_first() -> None:
    chosen = arm_named("average")
    size = replace(SIZE, epochs=2)

    def network(seed: int):
        return network_of(chosen, bert(seed), RELATIONS, 2, seed)

    train, val = bags("train", size), bags("val", size)
    training, alone = (Training(layout_of(chosen), train, val, RELATIONS) for _ in range(2))
    training(network(0), 0)
    compiled = training._programs[1]._cache_size()
    second = training(network(1), 1)
    assert training._programs[1]._cache_size() == compiled
    assert second.epochs == alone(network(1), 1).epochs


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "least"), [("PARE", 0.6), ("average", 0.8)])
def test_training_learns_the_made_up_relations_and_keeps_the_best_epoch(arm: str, least: float) -> None:
    # From 0.3; an encoder from scratch has little to learn from in 150 bags.
    chosen = arm_named(arm)
    network = network_of(chosen, bert(), RELATIONS, 2, 0)
    before = np.asarray(network.encoder.head.kernel[...])
    size = replace(SIZE, epochs=40, learning_rate=3e-3)
    val = bags("val", size)
    trained = Training(layout_of(chosen), bags("train", size), val, RELATIONS)(network, 0)
    losses, areas = zip(*trained.epochs)
    assert losses[-1] < 0.6 * losses[0]
    assert trained.best == int(np.argmax(areas)) + 1 and areas[trained.best - 1] > least
    assert area(curve_of(trained.scored(val))) == pytest.approx(areas[trained.best - 1])
    kept = nnx.merge(nnx.split(network_of(chosen, bert(), RELATIONS, 2, 0), nnx.Param)[0], trained.params)
    np.testing.assert_array_equal(kept.encoder.head.kernel[...], before)


def test_an_encoder_that_is_no_bert_or_lacks_markers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = SimpleNamespace(id_of={"[CLS]": 1, "[SEP]": 2, "[PAD]": 0}.get)
    for model, read_with, message in (
        (SimpleNamespace(), tokenizer, "need a BERT"),
        (bert(), None, "no tokenizer"),
        (bert(), tokenizer, r"no \[unused1\]"),
        (bert(), SimpleNamespace(id_of=len), "40 positions; passages have 41"),
    ):
        found = SimpleNamespace(model=model, tokenizer=read_with)
        monkeypatch.setattr(encoders, "load", lambda path, found=found: found)
        with pytest.raises(UserError, match=message):
            encoders.check_folder("folder", replace(SIZE, passage_tokens=41))
