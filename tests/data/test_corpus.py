import dataclasses

import pytest

from zoo.data import DataConfig, open_corpus
from zoo.data.corpus import document_hashes
from zoo.errors import UserError


def write_documents(folder, count: int, name: str = "a.jsonl"):
    (folder / name).write_text("".join(f'{{"text": "{name} {n}"}}\n' for n in range(count)))
    return str(folder / name)


def split_of(path: str, **fields):
    corpus = open_corpus(DataConfig(paths=(path,), **fields))
    return set(corpus.sources[0].train), set(corpus.sources[0].validation)


def test_every_document_is_either_for_training_or_for_validation(tmp_path):
    path = write_documents(tmp_path, 1000)
    train, validation = split_of(path, validation_fraction=0.1)
    assert train | validation == {f"a.jsonl {n}" for n in range(1000)}
    assert not train & validation
    assert 60 < len(validation) < 140


def test_the_split_moves_no_document_when_others_are_added_and_follows_its_own_seed(tmp_path):
    _, before = split_of(write_documents(tmp_path, 500), validation_fraction=0.1)
    train, after = split_of(write_documents(tmp_path, 800), validation_fraction=0.1)
    assert before <= after and not before & train
    assert split_of(str(tmp_path / "a.jsonl"), validation_fraction=0.1, seed=5)[1] == after
    assert split_of(str(tmp_path / "a.jsonl"), validation_fraction=0.1, validation_seed=5)[1] != after


def test_document_hashes_are_fixed_for_all_time_and_uniform():
    expected = [0.4660224568086099, 0.7548986161276285, 0.3645761715627307]
    assert document_hashes("a.txt", 3, 0).tolist() == expected
    hashes = document_hashes("b.txt", 20_000, 0)
    assert abs(hashes.mean() - 0.5) < 0.01 and hashes.min() >= 0 and hashes.max() < 1


@pytest.mark.parametrize("fraction", [1e-9, 0.999999])
def test_there_is_at_least_one_document_on_either_side_of_the_split(tmp_path, fraction):
    train, validation = split_of(write_documents(tmp_path, 3), validation_fraction=fraction)
    assert len(train) >= 1 and len(validation) >= 1


def test_a_single_document_cannot_be_split_but_can_be_trained_on(tmp_path):
    path = write_documents(tmp_path, 1)
    with pytest.raises(UserError, match="at least 2 documents"):
        split_of(path)
    assert split_of(path, validation_fraction=0.0) == ({"a.jsonl 0"}, set())


@pytest.mark.parametrize("content", ["", "\n", '{"text": ""}\n'])
def test_data_without_any_text_are_refused_with_the_path(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match="a.jsonl: no document that is not empty"):
        open_corpus(DataConfig(paths=(str(tmp_path / "a.jsonl"),)))


def test_a_file_named_twice_is_read_once(tmp_path):
    path = write_documents(tmp_path, 10)
    corpus = open_corpus(DataConfig(paths=(path, str(tmp_path))))
    assert corpus.num_train_documents + corpus.num_validation_documents == 10


def test_weights_make_a_source_of_each_path_and_leave_out_those_of_weight_zero(tmp_path):
    paths = tuple(write_documents(tmp_path, 5 * (n + 1), f"{n}.jsonl") for n in range(3))
    corpus = open_corpus(DataConfig(paths=paths, weights=(1, 0, 3)))
    assert [source.weight for source in corpus.sources] == [1, 3]
    assert corpus.num_train_documents + corpus.num_validation_documents == 20
    assert all(len(source.train) for source in corpus.sources)


def test_the_description_is_one_line_that_says_what_was_found(tmp_path):
    write_documents(tmp_path, 20)
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.pdf").write_text("")
    corpus = open_corpus(DataConfig(paths=(str(tmp_path),)))
    assert corpus.description == (
        f"{tmp_path}: 2 files, 0.4 kB, 20 documents ({corpus.num_train_documents} for training, "
        f"{corpus.num_validation_documents} for validation), 1 empty left out, 1 file of other kinds passed over"
    )


def test_without_paths_the_corpus_is_the_standard_library_and_says_so():
    corpus = open_corpus(DataConfig())
    assert "standard library" in corpus.description and "\n" not in corpus.description
    assert corpus.num_train_documents > 100 and corpus.num_validation_documents > 1
    assert corpus.train_bytes > 2_000_000


def test_the_fingerprint_follows_the_documents_and_the_split(tmp_path):
    write_documents(tmp_path, 50)
    config = DataConfig(paths=(str(tmp_path),))
    fingerprint = open_corpus(config).fingerprint
    assert open_corpus(dataclasses.replace(config, seed=9)).fingerprint == fingerprint
    assert open_corpus(dataclasses.replace(config, validation_fraction=0.3)).fingerprint != fingerprint
    write_documents(tmp_path, 51)
    assert open_corpus(config).fingerprint != fingerprint


def test_a_sample_of_the_training_texts_is_the_same_each_time_and_ends_near_its_limit(corpus):
    texts = list(corpus.train_texts(3000))
    assert texts == list(corpus.train_texts(3000)) != list(corpus.train_texts(3000, seed=1))
    assert sum(len(text.encode()) for text in texts[:-1]) < 3000 <= sum(len(text.encode()) for text in texts)
    assert len(list(corpus.train_texts())) == corpus.num_train_documents


def test_chat_reads_json_lines_only(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(UserError, match="a.txt: format 'chat' reads .jsonl files, not .txt"):
        open_corpus(DataConfig(paths=(str(tmp_path),), format="chat"))
