import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from zoo.data import DataConfig, load_tokenizer, open_corpus, tokenizer_for, train_tokenizer
from zoo.errors import UserError

# Text with what tokenizers get wrong: runs of spaces, tabs, newlines, the space mark itself, control tokens spelled
# out.
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\n\n", "\u2581", "\ufeff", "\0"]
NAMES = ["<start_of_turn>", "<end_of_turn>", "<bos>", "<unk>", "<0x0A>", "\u2047"]
AWKWARD = st.sampled_from([*SPACES, *NAMES, "12345", "def f(x):\n        return"])
TEXT = st.lists(AWKWARD | st.text(max_size=6), max_size=12).map("".join)


@hypothesis.given(text=TEXT)
@hypothesis.settings(max_examples=200)
def test_decoding_gives_back_every_text_exactly_and_its_bytes_are_counted_exactly(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.num_bytes(ids) == len(text.encode())
    assert b"".join(tokenizer.token_strings()[id] for id in ids) == text.encode()
    assert tokenizer.decode(tokenizer.encode(text, bos=True, eos=True)) == text


@hypothesis.given(text=TEXT)
def test_no_text_becomes_a_control_token(tokenizer, text):
    control = {0, 1, 2, tokenizer.id_of("<start_of_turn>"), tokenizer.id_of("<end_of_turn>")}
    assert control.isdisjoint(tokenizer.encode(text))


def test_the_ids_of_control_tokens_are_gemmas(tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.id_of("<unk>")) == (0, 1, 2, 3)
    assert tokenizer.id_of("<start_of_turn>") == 4 and tokenizer.id_of("<end_of_turn>") == 5
    assert tokenizer.id_of("no such piece") is None
    assert tokenizer.encode("", bos=True, eos=True) == [2, 1]
    assert tokenizer.token_bytes()[:6].tolist() == [0] * 6
    assert tokenizer.vocab_size == 600 == len(tokenizer.token_strings())


def test_digits_stand_alone_and_white_space_is_kept_in_runs(tokenizer):
    assert len(tokenizer.encode("12345")) == 5
    assert tokenizer.encode("        ") == [tokenizer.id_of("\u2581" * 8)]


def test_control_tokens_are_read_from_a_prompt_only_when_asked_for(tokenizer):
    prompt = "<bos><start_of_turn>user\nhi<end_of_turn>\n"
    start, end = tokenizer.id_of("<start_of_turn>"), tokenizer.id_of("<end_of_turn>")
    expected = [2, start, *tokenizer.encode("user\nhi"), end, *tokenizer.encode("\n")]
    assert tokenizer.encode(prompt, parse_special=True) == expected
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt


def test_num_bytes_takes_arrays_and_counts_a_byte_token_as_one_byte(tokenizer):
    ids = np.array(tokenizer.encode("\U0001f389"), np.int32)
    assert len(ids) == 4 == tokenizer.num_bytes(ids) == tokenizer.num_bytes(ids.tolist())
    assert tokenizer.num_bytes([]) == 0


def test_an_id_beyond_the_vocabulary_reads_as_the_unknown_token(tokenizer):
    assert tokenizer.decode([*tokenizer.encode("ab"), 10**6]).startswith("ab")


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(UserError, match="lone surrogate at character 1"):
        tokenizer.encode("a\ud800")


def test_the_same_texts_train_the_same_tokenizer(texts, tokenizer):
    assert train_tokenizer(iter(texts), 600).fingerprint == tokenizer.fingerprint
    assert train_tokenizer(texts[1:], 600).fingerprint != tokenizer.fingerprint
    assert re.fullmatch("[0-9a-f]{64}", tokenizer.fingerprint)


def test_training_is_quiet_and_writes_the_file(texts, tmp_path, capfd):
    trained = train_tokenizer(texts, 600, tmp_path / "new" / "tokenizer.model")
    assert load_tokenizer(tmp_path / "new" / "tokenizer.model").fingerprint == trained.fingerprint
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "texts, vocab_size, reason",
    [
        (["abc"], 4096, "4,096 tokens .*: the text is too small for it \\(it gives at most 268 tokens\\)"),
        (["abc"], 100, "smaller than 256 bytes, 6 control tokens and the characters"),
        ([], 300, "there is no text to train on"),
        ([""], 300, "there is no text to train on"),
    ],
)
def test_too_little_text_for_the_vocabulary_is_refused(texts, vocab_size, reason):
    with pytest.raises(UserError, match=reason):
        train_tokenizer(texts, vocab_size)


def test_a_saved_tokenizer_is_loaded_from_its_folder_and_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode("def f(x):") == tokenizer.encode("def f(x):")
    assert [path.name for path in (tmp_path / "tokenizer").iterdir()] == ["tokenizer.model"]


def test_files_that_lie_beside_a_tokenizer_travel_with_it(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "a")
    (tmp_path / "a" / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    (tmp_path / "a" / "config.json").write_text("{}")
    load_tokenizer(tmp_path / "a").save(tmp_path / "b")
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"tokenizer.model", "tokenizer_config.json"}


@pytest.mark.parametrize("data", [b"", b"not a model", b"\n\x05hello", None])
def test_a_damaged_model_file_is_refused_with_its_name(tokenizer, tmp_path, data, capfd):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:1000] if data is None else data)
    with pytest.raises(UserError, match="tokenizer.model: not a SentencePiece model, or damaged"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("missing.model", "missing.model: cannot be read: No such file"),
        ("folder", "folder: neither tokenizer.model nor tokenizer.json"),
        ("vocab.bin", "vocab.bin: a tokenizer is a .model"),
    ],
)
def test_a_path_without_a_tokenizer_is_refused(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=reason):
        load_tokenizer(tmp_path / name)


def test_a_run_uses_the_tokenizer_it_names_or_trains_one_on_its_training_documents(folder, corpus, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    named = tokenizer_for(corpus, DataConfig(paths=(str(folder),), tokenizer=str(tmp_path)))
    trained = tokenizer_for(corpus, DataConfig(paths=(str(folder),), vocab_size=500))
    assert named.fingerprint == tokenizer.fingerprint and trained.vocab_size == 500


@pytest.mark.slow
def test_a_tokenizer_for_the_default_corpus_is_trained_in_seconds_and_is_lossless_on_it():
    import time

    config = DataConfig(vocab_size=8192)
    corpus = open_corpus(config)
    start = time.perf_counter()
    tokenizer = tokenizer_for(corpus, config)
    assert time.perf_counter() - start < 10
    num_bytes = num_tokens = 0
    for text in corpus.train_texts():
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        num_bytes, num_tokens = num_bytes + tokenizer.num_bytes(ids), num_tokens + len(ids)
    assert num_bytes == corpus.train_bytes
    assert num_bytes / num_tokens > 3


def test_public_sentencepiece_models_count_the_bytes_of_what_they_decode(shared_dir):
    folder = shared_dir / "data" / "tokenizers"
    models = sorted(folder.glob("*.model"))
    if not models:
        pytest.skip("optional test data: no tokenizers")
    text = "Hello world, this is a test of 12 words"
    for model in models:
        tokenizer = load_tokenizer(model)
        ids = tokenizer.encode(text)
        unknown = tokenizer.id_of("<unk>")
        if unknown not in ids:
            assert tokenizer.num_bytes(ids) == len(tokenizer.decode(ids).encode()), model.name
