import dataclasses
import gc
import itertools
import json
import subprocess
import sys
from collections import Counter

import grain
import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from tests.marks import slow
from zoo.data import Batch, DataConfig, epochs_read, open_corpus, train_dataset, validation_dataset
from zoo.data.packing import PREDICTIONS, predictions
from zoo.errors import UserError

FIELDS = ("tokens", "targets", "positions", "segment_ids", "loss_weights")


def take(iterator, count: int) -> list[Batch]:
    return list(itertools.islice(iterator, count))


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(x, field), getattr(y, field))


def differ(a: list[Batch], b: list[Batch]) -> bool:
    return any(not np.array_equal(x.tokens, y.tokens) for x, y in zip(a, b, strict=True))


def predicted(batches) -> Counter:
    """How often each (input, target) pair that counts occurs."""
    pairs = Counter()
    for batch in batches:
        counted = batch.loss_weights > 0
        pairs.update(zip(batch.tokens[counted].tolist(), batch.targets[counted].tolist(), strict=True))
    return pairs


def pairs_of(view, tokenizer) -> Counter:
    found = (predictions(view[i], tokenizer)[PREDICTIONS] for i in range(len(view)))
    return Counter((int(a), int(b)) for triples in found for a, b, weight in triples if weight)


def in_order(folder, **fields) -> DataConfig:
    """Rows in the order in which they are packed."""
    fields = {"sequence_length": 32, "batch_size": 1, **fields}
    return DataConfig(paths=(str(folder),), shuffle_window_tokens=0, **fields)


@pytest.fixture(scope="module")
def mixture(folder, tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("mixture") / "b.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:60]))
    return DataConfig(
        paths=(str(folder), str(path)), weights=(0.7, 0.3), sequence_length=32, batch_size=4, shuffle_window_tokens=640
    )


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(corpus, tokenizer, config):
    first, again = (take(iter(train_dataset(corpus, tokenizer, config)), 20) for _ in range(2))
    assert_equal(first, again)
    assert differ(first, take(iter(train_dataset(corpus, tokenizer, dataclasses.replace(config, seed=1))), 20))


def test_batches_are_numpy_arrays_of_the_promised_shapes_and_types_and_a_pytree(corpus, tokenizer, config):
    batch = next(iter(train_dataset(corpus, tokenizer, config)))
    for field in FIELDS:
        value = getattr(batch, field)
        assert isinstance(value, np.ndarray) and value.shape == (4, 32)
        assert value.dtype == (np.float32 if field == "loss_weights" else np.int32)
    assert len(jax.tree.leaves(batch)) == 5
    assert jax.tree.map(lambda x: x + 0, batch).media is None


@pytest.mark.parametrize(
    ("mixed", "packing", "examples"),
    [
        *((mixed, packing, 3) for mixed in (False, True) for packing in ("concat", "first_fit")),
        *slow(*((mixed, packing, 20) for mixed in (False, True) for packing in ("concat", "first_fit"))),
    ],
)
def test_an_iterator_restored_from_json_continues_exactly(config, mixture, tokenizer, mixed, packing, examples):
    lengths, windows = st.sampled_from([8, 32, 100]), st.sampled_from([0, 64, 640])

    @hypothesis.given(before=st.integers(0, 40), window=windows, length=lengths)
    @hypothesis.settings(max_examples=examples)
    def check(before, window, length):
        check_continues(mixture if mixed else config, tokenizer, packing, before, window, length)

    check()


def check_continues(config, tokenizer, packing, before, window, length):
    fields = dict(packing=packing, shuffle_window_tokens=window, sequence_length=length, batch_size=2)
    config = dataclasses.replace(config, **fields)
    corpus = open_corpus(config)
    iterator = iter(train_dataset(corpus, tokenizer, config))
    take(iterator, before)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 15)
    restored = iter(train_dataset(corpus, tokenizer, config))
    restored.set_state(state)
    assert_equal(take(restored, 15), expected)
    assert restored.get_state()["documents"] == iterator.get_state()["documents"]
    iterator.set_state(state)
    assert_equal(take(iterator, 15), expected)
    iterator.close()
    restored.close()


def test_the_state_stays_small(corpus, tokenizer, config):
    iterator = iter(train_dataset(corpus, tokenizer, config))
    take(iterator, 200)
    assert len(json.dumps(iterator.get_state())) < 1000


def test_a_position_is_saved_and_restored_by_orbax(corpus, tokenizer, config, tmp_path):
    import orbax.checkpoint as ocp

    iterator = iter(train_dataset(corpus, tokenizer, config))
    take(iterator, 33)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(33, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        expected = take(iterator, 10)
        restored = iter(train_dataset(corpus, tokenizer, config))
        manager.restore(33, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(restored)))
    assert_equal(take(restored, 10), expected)


@pytest.mark.parametrize("packing", ["concat", "first_fit"])
def test_an_epoch_predicts_every_token_of_the_training_documents_once(folder, tokenizer, packing):
    config = in_order(folder, packing=packing)
    corpus = open_corpus(config)
    expected = pairs_of(corpus.sources[0].train, tokenizer)
    epochs = 3
    iterator = iter(train_dataset(corpus, tokenizer, config))
    batches = []
    while epochs_read(iterator.get_state(), corpus) < epochs:
        batches += take(iterator, 10)
    found = predicted(batches)
    # What is read of the fourth epoch, and what first-fit has read but not yet given, is less than an epoch.
    assert all((epochs - 1) * count <= found[pair] <= (epochs + 1) * count for pair, count in expected.items())
    assert found.keys() == expected.keys()


def test_documents_come_in_another_order_in_each_epoch(folder, tokenizer):
    config = in_order(folder)
    corpus = open_corpus(config)
    total = sum(pairs_of(corpus.sources[0].train, tokenizer).values())
    batches = take(iter(train_dataset(corpus, tokenizer, config)), 2 * total // 32)
    ids = np.concatenate([batch.tokens[0] for batch in batches])
    assert not np.array_equal(ids[:500], ids[total : total + 500])


def test_a_step_is_not_filled_by_one_document(tokenizer, tmp_path):
    words = ("return", "None", "self", "import")
    ids = [tokenizer.encode(word)[0] for word in words]
    for word in words:
        (tmp_path / f"{word}.txt").write_text(f"{word}\n" * 1000)
    config = DataConfig(paths=(str(tmp_path),), sequence_length=16, batch_size=8, validation_fraction=0)
    corpus = open_corpus(config)
    batches = take(iter(train_dataset(corpus, tokenizer, config)), 20)
    assert np.mean([np.isin(ids, batch.tokens).sum() for batch in batches]) > 2


def test_weights_are_the_shares_of_rows(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "aaaa aaaa aaaa"}\n' * 50)
    (tmp_path / "b.jsonl").write_text(('{"text": "' + "b " * 500 + '"}\n') * 20)
    config = DataConfig(paths=(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")), weights=(0.75, 0.25),
                        sequence_length=16, batch_size=8, shuffle_window_tokens=2048)  # fmt: skip
    corpus = open_corpus(config)
    a = {id for id in range(tokenizer.vocab_size) if b"a" in tokenizer.token_strings()[id]}
    rows = np.concatenate([batch.tokens for batch in take(iter(train_dataset(corpus, tokenizer, config)), 100)])
    share = np.mean([bool(a & set(row.tolist())) for row in rows])
    assert abs(share - 0.75) < 0.02


@pytest.mark.parametrize("packing", ["concat", "first_fit"])
def test_streams_share_the_documents_out_without_overlap(folder, tokenizer, packing):
    config = in_order(folder, packing=packing, batch_size=4)
    corpus = open_corpus(config)
    streams = []
    for index in range(2):
        iterator = iter(train_dataset(corpus, tokenizer, config, stream=index, streams=2))
        streams.append([])
        while epochs_read(iterator.get_state(), corpus, streams=2) < 2:
            streams[-1] += take(iterator, 5)
        assert streams[-1][0].tokens.shape == (2, 32)
    expected = pairs_of(corpus.sources[0].train, tokenizer)
    found = predicted(streams[0]) + predicted(streams[1])
    assert all(count <= found[pair] <= 3 * count for pair, count in expected.items())


def test_a_single_short_document_can_be_trained_on(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("x = 1")
    config = DataConfig(paths=(str(tmp_path / "a.txt"),), sequence_length=16, batch_size=2, validation_fraction=0)
    batch = next(iter(train_dataset(open_corpus(config), tokenizer, config)))
    assert (batch.segment_ids > 0).all() and (batch.loss_weights == 1).all()


def test_more_streams_than_documents_are_refused(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("x = 1")
    config = DataConfig(paths=(str(tmp_path / "a.txt"),), batch_size=2, validation_fraction=0)
    with pytest.raises(UserError, match="1 training document cannot be shared out to 2 streams"):
        train_dataset(open_corpus(config), tokenizer, config, stream=0, streams=2)


def test_a_batch_that_streams_cannot_share_evenly_is_refused(corpus, tokenizer, config):
    with pytest.raises(UserError, match="batch_size 4 is not divisible by the number of streams, 3"):
        train_dataset(corpus, tokenizer, config, stream=0, streams=3)


@pytest.mark.parametrize("change", [{"sequence_length": 16}, {"seed": 5}, {"packing": "first_fit"}, {"batch_size": 2}])
def test_a_position_of_other_settings_is_refused_naming_what_changed(corpus, tokenizer, config, change):
    state = iter(train_dataset(corpus, tokenizer, config)).get_state()
    other = iter(train_dataset(corpus, tokenizer, dataclasses.replace(config, **change)))
    with pytest.raises(UserError, match=f"belongs to other data or settings: changed {next(iter(change))}"):
        other.set_state(state)


def test_a_position_of_other_documents_is_refused(corpus, tokenizer, config, mixture):
    state = iter(train_dataset(corpus, tokenizer, config)).get_state()
    with pytest.raises(UserError, match="changed documents"):
        iter(train_dataset(open_corpus(mixture), tokenizer, mixture)).set_state(state)


def test_the_data_position_counts_the_documents_that_were_begun(folder, tokenizer):
    config = in_order(folder)
    corpus = open_corpus(config)
    iterator = iter(train_dataset(corpus, tokenizer, config))
    assert epochs_read(iterator.get_state(), corpus) == 0
    total = sum(pairs_of(corpus.sources[0].train, tokenizer).values())
    take(iterator, total // 32 + 1)
    assert epochs_read(iterator.get_state(), corpus) == pytest.approx(1, abs=2 / corpus.num_train_documents)


def test_a_file_that_turns_bad_during_training_is_named_where_the_batch_is_asked_for(tmp_path, tokenizer):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("text " * 1000)
    config = DataConfig(paths=(str(tmp_path),), sequence_length=16, batch_size=2, shuffle_window_tokens=0)
    corpus = open_corpus(config)
    iterator = iter(train_dataset(corpus, tokenizer, config))
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("")
    with pytest.raises(UserError, match="the file has become shorter"):
        take(iterator, 1000)


@pytest.mark.parametrize("packing", ["concat", "first_fit"])
def test_validation_predicts_every_held_out_token_once_and_is_the_same_each_time(corpus, tokenizer, config, packing):
    config = dataclasses.replace(config, packing=packing, validation_batches=1000)
    batches = validation_dataset(corpus, tokenizer, config)
    assert predicted(batches) == pairs_of(corpus.sources[0].validation, tokenizer)
    assert all(batch.tokens.shape == (4, 32) for batch in batches)
    assert_equal(batches, validation_dataset(corpus, tokenizer, dataclasses.replace(config, seed=9)))


def test_validation_ends_at_its_limit_and_is_empty_without_held_out_documents(corpus, tokenizer, config):
    assert len(validation_dataset(corpus, tokenizer, dataclasses.replace(config, validation_batches=2))) == 2
    config = dataclasses.replace(config, validation_fraction=0)
    assert validation_dataset(open_corpus(config), tokenizer, config) == []


def test_iterators_that_are_dropped_or_still_open_at_exit_end_quietly(folder, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    code = f"""
from zoo.data import *
config = DataConfig(paths=({str(folder)!r},), sequence_length=32, batch_size=4)
corpus, tokenizer = open_corpus(config), load_tokenizer({str(tmp_path)!r})
iterator = iter(train_dataset(corpus, tokenizer, config))
next(iterator)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_threads_of_an_iterator_end_with_it(corpus, tokenizer, config):
    import threading

    before = threading.active_count()
    iterator = iter(train_dataset(corpus, tokenizer, config))
    next(iterator)
    assert threading.active_count() > before
    del iterator
    gc.collect()
    assert threading.active_count() <= before + 1


@pytest.mark.slow
def test_worker_processes_give_batches_that_resume_exactly(corpus, tokenizer, config):
    config = dataclasses.replace(config, worker_processes=2)
    iterator = iter(train_dataset(corpus, tokenizer, config))
    take(iterator, 7)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 7)
    restored = iter(train_dataset(corpus, tokenizer, config))
    restored.set_state(state)
    assert_equal(take(restored, 7), expected)
