"""The cache of a teacher: what is read is what was written, an interruption costs a part, and strangers are refused."""

import dataclasses
import json

import numpy as np
import pytest

from zoo.data import Batch
from zoo.errors import UserError
from zoo.recipes import teacher_cache
from zoo.recipes.teacher_cache import CacheLayout, CacheWriter, TeacherCache, stream_identity
from zoo.training.top_k_distillation import TopK

B, T, K, V = 2, 4, 3, 20
STREAM = {"stream_0-of-1": {"documents": "d" * 8, "tokenizer": "t" * 8, "seed": 0, "batch_size": B, "sizes": [1, 2]}}
LAYOUT = CacheLayout(B, T, K, V, 1.0, "a" * 64, STREAM)


@pytest.fixture(autouse=True)
def two_steps_a_part(monkeypatch):
    monkeypatch.setattr(teacher_cache, "PART_BYTES", 2 * B * T * (6 * K + 4))
    assert LAYOUT.steps_per_part == 2


def batch_of(step):
    rng = np.random.default_rng(step)
    tokens, targets, segments = (rng.integers(0, V, (B, T)).astype(np.int32) for _ in range(3))
    return Batch(tokens, targets, np.zeros((B, T), np.int32), segments, np.ones((B, T), np.float32))


def kept_of(step):
    rng = np.random.default_rng(100 + step)
    kept = -np.sort(rng.uniform(0.5, 9, (B, T, K)).astype(np.float32))
    return TopK(kept, rng.integers(0, V, (B, T, K)).astype(np.int32), -rng.uniform(0.1, 5, (B, T)).astype(np.float32))


def position_after(step):
    return {"stream_0-of-1": {"read": step + 1}}


def write(folder, steps, layout=LAYOUT, stop_before=None):
    """Goes on to so many steps, and returns the step it began with; `stop_before` is where it is killed."""
    writer = CacheWriter(folder, layout)
    for step in range(writer.first_step, steps):
        if step == stop_before:
            return writer.first_step
        writer.add(kept_of(step), batch_of(step), position_after(step))
    writer.finish(position_after(steps - 1))
    return writer.first_step


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_read_is_what_was_written_in_half_precision(tmp_path):
    write(tmp_path / "cache", 5)
    cache = TeacherCache(tmp_path / "cache")
    assert cache.steps == 5 and cache.layout == LAYOUT
    for step in (4, 0, 3):
        found, wanted = cache.read(step, batch_of(step)), kept_of(step)
        assert found.log_probabilities.dtype == np.float16
        np.testing.assert_array_equal(found.log_probabilities, wanted.log_probabilities.astype(np.float16))
        np.testing.assert_array_equal(found.ids, wanted.ids)
        np.testing.assert_array_equal(found.log_tail, wanted.log_tail)


def test_a_process_reads_its_own_rows(tmp_path):
    write(tmp_path / "cache", 2)
    batch = batch_of(1)
    own = dataclasses.replace(
        batch, **{name: getattr(batch, name)[1:] for name in ("tokens", "targets", "segment_ids")}
    )
    found = TeacherCache(tmp_path / "cache").read(1, own, rows=(1,))
    np.testing.assert_array_equal(found.ids, kept_of(1).ids[1:])


def test_probabilities_beneath_the_range_of_half_precision_stay_finite(tmp_path):
    writer = CacheWriter(tmp_path / "cache", LAYOUT)
    kept = kept_of(0)
    kept.log_probabilities[0, 0, 2] = -1e9
    writer.add(kept, batch_of(0), {})
    writer.finish({})
    found = TeacherCache(tmp_path / "cache").read(0, batch_of(0)).log_probabilities
    assert np.isfinite(found).all() and found[0, 0, 2] < -5e4


def test_an_interrupted_cache_is_gone_on_with_after_its_last_whole_part_and_ends_with_the_same_bytes(tmp_path):
    assert write(tmp_path / "whole", 5) == 0
    write(tmp_path / "cache", 5, stop_before=3)
    assert TeacherCache(tmp_path / "cache").steps == 2
    assert CacheWriter(tmp_path / "cache", LAYOUT).position == position_after(1)
    assert write(tmp_path / "cache", 5) == 2
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def test_a_cache_can_be_made_longer(tmp_path):
    write(tmp_path / "whole", 6)
    write(tmp_path / "cache", 3)
    assert write(tmp_path / "cache", 6) == 2  # the part that was not whole is written again
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"teacher": "b" * 64}, "teacher"),
        ({"k": 2}, "k"),
        ({"temperature": 2.0}, "temperature"),
        ({"sequence_length": 8}, "sequence_length"),
        ({"stream": {"stream_0-of-1": STREAM["stream_0-of-1"] | {"tokenizer": "u"}}}, "tokenizer"),
        ({"stream": {"stream_0-of-1": STREAM["stream_0-of-1"] | {"documents": "e"}}}, "documents"),
        ({"stream": {"stream_0-of-2": STREAM["stream_0-of-1"]}}, "data.streams"),
    ],
)
def test_a_cache_of_something_else_is_refused_with_the_first_thing_that_differs(tmp_path, changes, name):
    write(tmp_path / "cache", 2)
    other = dataclasses.replace(LAYOUT, **changes)
    with pytest.raises(UserError, match=f"was written with {name}=.* and this run has {name}="):
        TeacherCache(tmp_path / "cache").check(other, 2)
    with pytest.raises(UserError, match=f"holds a cache with {name}=.*: choose another --out"):
        CacheWriter(tmp_path / "cache", other)


def test_a_cache_that_fits_is_accepted_and_one_that_is_too_short_says_by_how_much(tmp_path):
    write(tmp_path / "cache", 3)
    cache = TeacherCache(tmp_path / "cache")
    cache.check(dataclasses.replace(LAYOUT), 3)
    with pytest.raises(UserError, match="holds 3 steps and this run has 4"):
        cache.check(LAYOUT, 4)
    with pytest.raises(UserError, match="ends at step 3, step 4 is not in it"):
        cache.read(3, batch_of(3))


def test_other_tokens_at_the_same_address_are_found(tmp_path):
    write(tmp_path / "cache", 2)
    batch = batch_of(1)
    batch.targets[1, 3] += 1
    with pytest.raises(UserError, match="written for other tokens than row 1 of step 2 of this run has"):
        TeacherCache(tmp_path / "cache").read(1, batch)


def test_folders_that_are_no_cache_and_damaged_ones_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"is no cache of a teacher: it holds no manifest\.json"):
        TeacherCache(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "novel.txt").write_text("not to be overwritten")
    with pytest.raises(UserError, match="exists and is no cache of a teacher"):
        CacheWriter(tmp_path / "mine", LAYOUT)
    write(tmp_path / "cache", 2)
    (tmp_path / "cache" / "00000.ids.npy").write_bytes(b"not an array")
    with pytest.raises(UserError, match=r"00000\.ids\.npy cannot be read"):
        TeacherCache(tmp_path / "cache").read(0, batch_of(0))
    (tmp_path / "cache" / "00000.json").write_text("{}")
    with pytest.raises(UserError, match=r"00000\.json cannot be read"):
        TeacherCache(tmp_path / "cache")
    manifest = tmp_path / "cache" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with pytest.raises(UserError, match=r"manifest\.json cannot be read: written by another version"):
        TeacherCache(tmp_path / "cache")


def test_the_identity_of_a_stream_survives_json(tmp_path):
    position = {"stream_0-of-1": {"parent": {}, "documents": 3, "identity": {"media": {"sizes": (1, 2)}, "seed": 0}}}
    assert stream_identity(position) == {"stream_0-of-1": {"media": {"sizes": [1, 2]}, "seed": 0}}
