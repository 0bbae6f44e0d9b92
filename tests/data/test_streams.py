"""The batches of a run are the same for any number of processes, which may change between two saves."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from zoo.data import Batch, DataConfig, epochs_begun, open_corpus, train_batches, train_dataset
from zoo.errors import UserError
from zoo.parallel import Rows

FIELDS = ("tokens", "targets", "positions", "segment_ids", "loss_weights")
SHARED_OUT = {
    "one": {0: range(8)},
    "two": {0: range(4), 1: range(4, 8)},
    "four": {process: range(2 * process, 2 * process + 2) for process in range(4)},
    "a tensor axis over two hosts": {0: range(4), 1: range(4), 2: range(4, 8), 3: range(4, 8)},
    "rows that are no neighbours": {0: (0, 1, 6), 3: (2, 3, 4, 5, 7)},
}


@pytest.fixture(scope="module")
def eight(config) -> DataConfig:
    return dataclasses.replace(config, batch_size=8, streams=2)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def whole(parts: list[Batch | Rows]) -> Batch:
    """The global batch of what the processes hold; where two hold the same row, it must be the same row."""
    arrays = {}
    for part in parts:
        batch, numbers = (part.batch, part.numbers) if isinstance(part, Rows) else (part, range(len(part.tokens)))
        for field in FIELDS:
            rows = arrays.setdefault(field, {})
            for number, row in zip(numbers, getattr(batch, field), strict=True):
                np.testing.assert_array_equal(rows.setdefault(number, row), row)
    return Batch(**{field: np.stack([rows[i] for i in range(len(rows))]) for field, rows in arrays.items()})


def read(corpus, tokenizer, config, rows, count, position=None):
    """`count` global batches read by processes that hold `rows`, and the position after them that all of them save."""
    batches, saved = [], {}
    for process in rows:
        iterator = train_batches(corpus, tokenizer, config, rows, process)
        if position is not None:
            iterator.set_state({name: position[name] for name in iterator.parts})
        batches.append(take(iterator, count))
        own = iterator.get_state()
        assert not own.keys() & saved.keys(), "two processes would write the same file"
        saved |= json.loads(json.dumps(own))
        iterator.close()
    return [whole(list(parts)) for parts in zip(*batches, strict=True)], saved


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    for x, y in zip(a, b, strict=True):
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(x, field), getattr(y, field))


def test_one_stream_in_one_process_gives_the_batches_of_the_dataset(corpus, tokenizer, config):
    batches = take(train_batches(corpus, tokenizer, config), 10)
    assert all(isinstance(batch, Batch) for batch in batches)
    assert_equal(batches, take(iter(train_dataset(corpus, tokenizer, config)), 10))


@pytest.mark.parametrize("names", [*itertools.permutations(["one", "two", "four"], 2)], ids=" to ".join)
def test_another_number_of_processes_continues_with_the_same_batches(corpus, tokenizer, eight, names):
    first, second = (SHARED_OUT[name] for name in names)
    expected, _ = read(corpus, tokenizer, eight, SHARED_OUT["one"], 12)
    batches, position = read(corpus, tokenizer, eight, first, 7)
    assert position.keys() == {"stream_0-of-2", "stream_1-of-2"}
    more, _ = read(corpus, tokenizer, eight, second, 5, position)
    assert_equal(batches + more, expected)


@pytest.mark.parametrize("rows", SHARED_OUT.values(), ids=SHARED_OUT)
@pytest.mark.parametrize("streams", [1, 4])
def test_the_batches_do_not_depend_on_which_rows_a_process_holds(corpus, tokenizer, eight, rows, streams):
    config = dataclasses.replace(eight, streams=streams)
    expected, position = read(corpus, tokenizer, config, SHARED_OUT["one"], 4)
    found, saved = read(corpus, tokenizer, config, rows, 4)
    assert_equal(found, expected)
    assert saved == position


def test_a_process_opens_only_the_streams_of_its_rows(corpus, tokenizer, eight):
    assert train_batches(corpus, tokenizer, eight, SHARED_OUT["two"], 1).parts == ("stream_1-of-2",)
    assert train_batches(corpus, tokenizer, eight, SHARED_OUT["one"], 0).parts == ("stream_0-of-2", "stream_1-of-2")


def test_the_number_of_epochs_does_not_depend_on_the_number_of_processes(corpus, tokenizer, eight):
    found = set()
    for name in ("one", "two", "four"):
        iterator = train_batches(corpus, tokenizer, eight, SHARED_OUT[name], 0)
        take(iterator, 20)
        found.add(epochs_begun(iterator.get_state(), corpus, eight))
    assert len(found) == 1 and found.pop() > 0


def test_a_position_that_was_saved_before_there_were_streams_is_still_read(corpus, tokenizer, config):
    iterator = train_batches(corpus, tokenizer, config)
    take(iterator, 5)
    [(name, state)] = iterator.get_state().items()
    older = json.loads(json.dumps(state))
    older["identity"]["process"] = older["identity"].pop("stream")
    expected = take(iterator, 3)
    restored = train_batches(corpus, tokenizer, config)
    restored.set_state({name: older})
    assert_equal(take(restored, 3), expected)


def test_streams_that_do_not_divide_the_batch_are_refused(folder):
    with pytest.raises(UserError, match="batch_size 8 is not divisible by streams, 3"):
        DataConfig(paths=(str(folder),), batch_size=8, streams=3)


def test_fewer_documents_than_streams_are_refused(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("x = 1")
    config = DataConfig(paths=(str(tmp_path / "a.txt"),), batch_size=2, streams=2, validation_fraction=0)
    with pytest.raises(UserError, match="1 training document cannot be shared out to 2 streams"):
        train_batches(open_corpus(config), tokenizer, config)
