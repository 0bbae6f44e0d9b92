import grain
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from zoo.data.packing import PREDICTIONS, make_batch, packed_rows, predictions

PAD = 77


def pack(lengths: list[int], packing: str, length: int, seed: int | None = None):
    """Packs documents of ids 1000 d + i; returns the batch of all rows."""
    documents = [{PREDICTIONS: triples(number, size)} for number, size in enumerate(lengths)]
    dataset = grain.MapDataset.source(documents).to_iter_dataset(grain.ReadOptions(num_threads=0))
    rows = list(packed_rows(dataset, packing, length, seed))
    return make_batch(rows, len(rows), PAD)


def triples(number: int, size: int) -> np.ndarray:
    ids = 1000 * (number + 1) + np.arange(size + 1)
    return np.stack([ids[:-1], ids[1:], np.arange(size) % 3 > 0], axis=1).astype(np.int32)


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=20)


@pytest.mark.parametrize("packing", ["concat", "first_fit"])
@hypothesis.given(lengths=LENGTHS, length=st.integers(2, 16), shuffled=st.booleans())
@hypothesis.settings(max_examples=60)
def test_every_prediction_is_packed_exactly_once(packing, lengths, length, shuffled):
    batch = pack(lengths, packing, length, 3 if shuffled else None)
    real = batch.segment_ids > 0
    found = np.stack([batch.tokens[real], batch.targets[real], batch.loss_weights[real].astype(int)], 1)
    expected = np.concatenate([triples(number, size) for number, size in enumerate(lengths)])
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))
    assert batch.loss_weights.sum() == expected[:, 2].sum()


@pytest.mark.parametrize("packing", ["concat", "first_fit"])
@hypothesis.given(lengths=LENGTHS, length=st.integers(2, 16))
@hypothesis.settings(max_examples=60)
def test_segments_are_runs_with_rising_positions_and_padding_ends_the_row(packing, lengths, length):
    batch = pack(lengths, packing, length)
    for segments, positions, tokens in zip(batch.segment_ids, batch.positions, batch.tokens, strict=True):
        count = int((segments > 0).sum())
        assert (segments[:count] > 0).all() and (segments[count:] == 0).all()
        steps = np.diff(segments[:count])
        assert segments[0] == 1 and set(steps.tolist()) <= {0, 1}
        assert (positions[:count][np.concatenate([[True], steps == 1])] == 0).all()
        assert (np.diff(positions[:count])[steps == 0] == 1).all()
        assert (np.diff(tokens[:count])[steps == 0] == 1).all()
        assert (positions[count:] == 0).all() and (tokens[count:] == PAD).all()
    assert (batch.targets[batch.segment_ids == 0] == PAD).all()
    assert (batch.loss_weights[batch.segment_ids == 0] == 0).all()


def test_concat_leaves_no_padding_but_at_the_very_end():
    batch = pack([13, 7, 30, 2], "concat", 8)
    assert (batch.segment_ids == 0).sum() == 56 - 52
    assert (batch.segment_ids[:-1] > 0).all()


def test_rows_of_concat_look_like_this():
    batch = pack([3, 6, 2], "concat", 4)
    assert batch.tokens.tolist() == [[1000, 1001, 1002, 2000], [2001, 2002, 2003, 2004], [2005, 3000, 3001, PAD]]
    assert batch.targets.tolist() == [[1001, 1002, 1003, 2001], [2002, 2003, 2004, 2005], [2006, 3001, 3002, PAD]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2], [1, 1, 1, 1], [1, 2, 2, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3], [0, 0, 1, 0]]


def test_first_fit_keeps_documents_that_fit_whole():
    batch = pack([3, 6, 2, 1], "first_fit", 4)
    assert batch.tokens.tolist() == [[1000, 1001, 1002, 4000], [2000, 2001, 2002, 2003], [2004, 2005, 3000, 3001]]


def test_a_document_becomes_bos_text_eos_and_eos_is_a_target_only(tokenizer):
    ids = tokenizer.encode("def f(x):")
    found = predictions("def f(x):", tokenizer)[PREDICTIONS]
    assert found[:, 0].tolist() == [tokenizer.bos_id, *ids]
    assert found[:, 1].tolist() == [*ids, tokenizer.eos_id]
    assert found[:, 2].tolist() == [1] * (len(ids) + 1)


def test_a_batch_that_is_not_full_is_filled_up_with_padding():
    rows = [{PREDICTIONS: triples(0, 4), f"{PREDICTIONS}_segment_ids": np.ones(4, np.int32),
             f"{PREDICTIONS}_positions": np.arange(4, dtype=np.int32)}]  # fmt: skip
    batch = make_batch(rows, 3, PAD)
    assert batch.tokens.tolist() == [[1000, 1001, 1002, 1003], [PAD] * 4, [PAD] * 4]
    assert batch.segment_ids.sum() == 4 and batch.loss_weights[1:].sum() == 0
    assert batch.loss_weights.dtype == np.float32 and batch.tokens.dtype == batch.positions.dtype == np.int32
