"""WordPiece vocabularies: read as BERT's are, trained the same way every time, with markers that no text is read as."""

import json
import math
import sys
from collections import Counter

import numpy as np
import pytest

from zoo.data import (
    DataConfig,
    load_tokenizer,
    open_corpus,
    tokenizer_for,
    train_wordpiece,
    unigram,
    validation_dataset,
)
from zoo.data.packing import PREDICTIONS, masked_predictions, predictions_of
from zoo.data.wordpiece_tokenizer import FIRST_TOKENS
from zoo.errors import UserError

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "a", "b", "é", "!", "\u2028", "A")
MARKERS = ("[E1]", "[/E1]")


@pytest.fixture(scope="module")
def trained(texts):
    return train_wordpiece(texts, 700, markers=MARKERS)


def write_vocabulary(folder, pieces=PIECES, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_words_become_their_longest_pieces_and_unknown_words_the_unknown_token(tmp_path):
    tokenizer = load_tokenizer(write_vocabulary(tmp_path))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 2, 3)
    assert tokenizer.encode("unaffable a!b xyz", bos=True, eos=True) == [2, 5, 6, 7, 8, 11, 9, 1, 3]
    assert tokenizer.vocab_size == len(PIECES) and tokenizer.id_of("A") == 13
    assert tokenizer.decode([2, 5, 6, 7, 8, 3]) == "unaffable a"


@pytest.mark.parametrize(
    ("pieces", "settings", "ids"),
    [
        (PIECES, {}, [13, 10]),
        (PIECES[:-1], {}, [8, 1]),
        (PIECES, {"do_lower_case": True}, [8, 1]),
        (PIECES, {"do_lower_case": True, "strip_accents": False}, [8, 10]),
    ],
)
def test_case_and_accents_are_as_the_configuration_says_or_else_the_vocabulary(tmp_path, pieces, settings, ids):
    assert load_tokenizer(write_vocabulary(tmp_path, pieces, **settings)).encode("A é") == ids


def test_saved_and_loaded_again_it_is_the_same_tokenizer(tmp_path, trained):
    for number, tokenizer in enumerate((load_tokenizer(write_vocabulary(tmp_path / "v")), trained)):
        tokenizer.save(tmp_path / str(number))
        again = load_tokenizer(tmp_path / str(number))
        assert again.fingerprint == tokenizer.fingerprint and again.encode("A def é") == tokenizer.encode("A def é")


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        (("[PAD]", "[UNK]", "[CLS]", "a"), r"\[SEP\] is not among its pieces"),
        ((*PIECES, "a"), "'a' is among its pieces more than once"),
    ],
)
def test_what_is_no_vocabulary_of_bert_is_refused_with_its_name(tmp_path, pieces, problem):
    with pytest.raises(UserError, match=f"vocab.txt: not a BERT vocabulary, or damaged: {problem}"):
        load_tokenizer(write_vocabulary(tmp_path, pieces))


def test_a_trained_vocabulary_begins_as_googles_do_and_its_markers_follow(trained):
    named = {"[PAD]": 0, "[unused1]": 1, "[unused99]": 99, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    assert {name: trained.id_of(name) for name in named} == named
    assert [trained.id_of(name) for name in MARKERS] == [104, 105] and trained.vocab_size == 700


def test_the_same_texts_give_the_same_vocabulary(texts, trained):
    # Twice: the order of a hash table in the package is another one every time.
    more = [*texts, "Größe größer größte “naïve” 汉字 తెలుగు తెలుగు हिन्दी हिन्दी"]
    first, second = (train_wordpiece(more, 700, lowercase=True) for _ in range(2))
    assert first.fingerprint == second.fingerprint != trained.fingerprint
    assert train_wordpiece(texts, 700, markers=MARKERS).fingerprint == trained.fingerprint


def test_no_text_is_read_as_a_marker_or_a_control_token(trained):
    ids = trained.encode("def [E1] self [/E1] [MASK] [CLS] [unused1]")
    assert min(ids) >= 100 and not {101, 102, 103, 104, 105} & set(ids)
    assert trained.encode("[E1]", parse_special=True) == [104]


def test_a_word_with_an_unknown_character_is_one_unknown_token(trained):
    assert trained.encode("def \u2603 def") == [trained.id_of("def"), 100, trained.id_of("def")]


@pytest.mark.parametrize(
    ("texts", "options", "problem"),
    [
        (["some text"], {"vocab_size": 105}, "a vocabulary of 105 pieces cannot be trained: 104 tokens and the"),
        ([" \n"], {"vocab_size": 200}, "there is no text"),
        (["a"], {"vocab_size": 200, "markers": ("[CLS]",)}, r"marker '\[CLS\]' is a token already"),
        (["a"], {"vocab_size": 200, "markers": ("[E]", "[E]")}, r"marker '\[E\]' is a token already"),
    ],
)
def test_a_vocabulary_that_cannot_be_trained_is_refused(texts, options, problem):
    with pytest.raises(UserError, match=problem):
        train_wordpiece(texts, **options)


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="pip install '.\\[hf\\]'"):
        train_wordpiece(["a text"], 200)


def test_every_token_of_a_text_is_its_own_target_and_control_tokens_are_never_masked(trained):
    triples = masked_predictions("def \u2603 self", trained)[PREDICTIONS]
    ids = [101, trained.id_of("def"), 100, trained.id_of("self"), 102]
    np.testing.assert_array_equal(triples, [[id, id, weight] for id, weight in zip(ids, (0, 1, 0, 1, 0), strict=True)])
    assert predictions_of("masked") is masked_predictions


def test_a_run_on_masked_tokens_trains_a_vocabulary_reads_whole_texts_and_has_frequencies_to_beat(folder):
    config = DataConfig(
        paths=(str(folder),), format="masked", packing="first_fit", sequence_length=4096, batch_size=2, vocab_size=500
    )
    corpus = open_corpus(config)
    tokenizer = tokenizer_for(corpus, config)
    assert tokenizer.vocab_size == 500 and tokenizer.id_of("[MASK]") == FIRST_TOKENS.index("[MASK]")
    [batch, *_] = validation_dataset(corpus, tokenizer, config)
    np.testing.assert_array_equal(batch.tokens, batch.targets)
    found, rest = unigram(corpus, tokenizer, [batch]), batch.tokens[batch.loss_weights > 0]
    frequent = Counter(id for text in corpus.train_texts() for id in tokenizer.encode(text) if id != 100)
    assert found.accuracy == np.mean(rest == max(frequent, key=lambda id: (frequent[id], -id)))
    nats = [-math.log((frequent[id] + 1) / (frequent.total() + tokenizer.vocab_size)) for id in rest.tolist()]
    assert found.nats_per_token == pytest.approx(np.mean(nats))

    texts = [corpus.sources[0].validation[number] for number in range(corpus.num_validation_documents)]
    whole = [tokenizer.encode(text, bos=True, eos=True) for text in texts]
    assert batch.tokens[0][batch.segment_ids[0] == 1].tolist() in whole
