"""Continual multilingual learning: edits that write forms, what distances decide, and the figures of an update."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.continual_multilingual.arms import ARMS, Run, runs_of
from experiments.continual_multilingual.choice import best_rate, strongest_pull
from experiments.continual_multilingual.corpora import read_corpus
from experiments.continual_multilingual.edits import COPY, EMPTY, FIRST_CHARACTER, PREFIX, SUFFIX, edit_labels, written
from experiments.continual_multilingual.findings import changes, figures
from experiments.continual_multilingual.languages import (
    first_slots,
    groups,
    near,
    nearest,
    permuted,
    read_distances,
    shares,
    slot_gates,
    width_of,
)
from experiments.continual_multilingual.sizes import QUICK_SIZE, TRANSDUCTION
from experiments.continual_multilingual.study import OTHERS
from experiments.continual_multilingual.trainer import batches, rate_at
from experiments.continual_multilingual.updates import paired_error
from experiments.kept import check_made_with
from zoo.errors import UserError

TABLE = np.array([[0.0, 0.1, 0.5, 0.9], [0.1, 0.0, 0.6, 0.8], [0.5, 0.6, 0.0, 0.7], [0.9, 0.8, 0.7, 0.0]])


def ids(word):
    return [FIRST_CHARACTER + ord(character) - ord("a") for character in word]


@pytest.mark.parametrize(
    "lemma, form",
    [("walk", "walked"), ("do", "undo"), ("man", "men"), ("", "abc"), ("go", "went"), ("abcdef", ""), ("geben", "gab")],
)
def test_what_labels_write_is_the_form(lemma, form):
    labels = edit_labels(ids(lemma), ids(form))
    assert labels is not None and len(labels) == PREFIX + len(lemma) + SUFFIX
    places = [EMPTY] * PREFIX + ids(lemma) + [EMPTY] * SUFFIX
    found = written(np.array([places]), np.array([labels]))[0]
    assert found[: len(form)].tolist() == ids(form) and not found[len(form) :].any()


def test_the_cheapest_labels_copy_and_what_has_no_room_cannot_be_written():
    labels = edit_labels(ids("walk"), ids("walked"))
    assert labels is not None and labels[PREFIX : PREFIX + 4] == [COPY] * 4
    assert edit_labels(ids("a"), ids("b" * (PREFIX + SUFFIX + 2))) is None


def test_a_language_reads_the_more_of_a_delta_the_nearer_it_is():
    found = shares(TABLE, [0], least=0.0)
    assert found[:, 0].tolist() == sorted(found[:, 0], reverse=True) and found[0, 0] == 1
    np.testing.assert_allclose(found[2, 0], np.exp(-0.5 / near(TABLE)))
    assert shares(TABLE, [0], least=0.5)[3, 0] == 0


def test_the_control_has_the_same_distances_between_other_languages():
    found = permuted(TABLE, 0)
    np.testing.assert_array_equal(np.sort(found, axis=None), np.sort(TABLE, axis=None))
    assert (found != TABLE).any() and not np.diag(found).any()
    np.testing.assert_array_equal(found, permuted(TABLE, 0))


def test_a_shared_delta_is_narrower_where_the_others_are_far():
    widths = [width_of(TABLE, [number], (2, 32)) for number in range(4)]
    mean = TABLE.sum(1) / 3
    assert np.argsort(mean, kind="stable").tolist() == np.argsort([-width for width in widths], kind="stable").tolist()
    assert max(widths) == 32 and min(widths) == 2


def test_groups_and_nearest_languages():
    assert groups(TABLE, [0]) == ["updated", "related", "related" if near(TABLE) >= 0.5 else "other", "other"]
    np.testing.assert_array_equal(nearest(TABLE, [0, 2]), [0.0, 0.1, 0.0, 0.7])


def test_gates_open_the_slots_of_the_deltas_that_a_language_reads():
    gates = slot_gates(np.array([[1.0, 0.0], [0.5, 0.25]]), 2, 6)
    np.testing.assert_array_equal(gates, [[1, 1, 0, 0, 0, 0], [0.5, 0.5, 0.25, 0.25, 0, 0]])
    np.testing.assert_array_equal(first_slots(2, 1, 3), [[1, 0, 0], [1, 0, 0]])
    with pytest.raises(ValueError, match="no room"):
        slot_gates(np.ones((1, 2)), 4, 6)


def test_tables_of_distances_are_checked(tmp_path):
    path = tmp_path / "distances.tsv"
    path.write_text("\ta\tb\na\t0\t0.5\nb\t0.5\t0\n")
    np.testing.assert_array_equal(read_distances(path, ["b", "a"]), [[0, 0.5], [0.5, 0]])
    with pytest.raises(UserError, match="no language c"):
        read_distances(path, ["a", "c"])
    path.write_text("\ta\tb\na\t0\t0.5\nb\t0.4\t0\n")
    with pytest.raises(UserError, match="symmetric"):
        read_distances(path, ["a"])


def test_figures_of_an_update():
    change = changes([50, 50, 50, 50], [60, 45, 50, 55])
    found = figures(change, ["updated", "other", "other", "related"])
    expected = {"aggregate": 5, "improved": 50, "gain": 15, "loss": 10, "updated": 20, "related": 10, "other": -5}
    assert found == pytest.approx(expected)


def test_the_paired_error_is_that_of_a_mean_of_differences():
    draw = np.random.default_rng(0)
    before, after = (np.stack([draw.integers(0, 2, 400), np.ones(400)], axis=1) for _ in range(2))
    difference = after[:, 0] - before[:, 0]
    assert paired_error(before, after) == pytest.approx(difference.std() / 20)
    assert paired_error(before, before) == 0


def test_rates_and_pulls_are_chosen_by_gains_on_the_updated_languages():
    assert best_rate({0.1: 0.0, 0.01: 2.0, 0.001: 1.0}) == 0.01
    assert strongest_pull({0.1: 9.5, 1.0: 9.1, 10.0: 3.0}, free=10.0, kept=0.9) == 1.0


def test_the_rate_rises_and_falls_and_every_epoch_has_every_row():
    rates = [rate_at(step, 100, 1.0, 0.1) for step in range(100)]
    assert max(rates) == 1.0 and rates[0] == pytest.approx(0.1) and rates[-1] < 0.02
    order = batches(6, 4, seed=1)
    drawn = np.concatenate([next(order) for _ in range(3)])
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == list(range(6))


def test_runs_go_seed_by_seed_and_results_of_other_settings_are_refused(tmp_path):
    assert runs_of(("laft", "full"), (1, 2)) == [Run("full", 1), Run("laft", 1), Run("full", 2), Run("laft", 2)]
    assert len(runs_of((), (0,))) == len(ARMS)
    with pytest.raises(UserError, match="--arms: 'lora2' is unknown"):
        runs_of(("lora2",), (0,))
    path = tmp_path / "full-seed-0.json"
    path.write_text(json.dumps({"made_with": "this"}))
    check_made_with(path, "this", OTHERS)
    with pytest.raises(UserError, match="other data or sizes"):
        check_made_with(path, "that", OTHERS)


def test_lines_are_divided_and_held_out_ones_are_no_training_lines(tmp_path):
    (tmp_path / "data" / "uriel").mkdir(parents=True)
    (tmp_path / "data" / "uriel" / "dist_forms_syntax_knn_cosine.tsv").write_text("\taa\taa2\naa\t0\t1\naa2\t1\t0\n")
    folder = tmp_path / "data" / "forms"
    folder.mkdir()
    lines = [f"lemma{number}\tform{number}\tN;PL" for number in range(20)]
    (folder / "aa.train.tsv").write_text("\n".join([*lines, lines[0]]))
    (folder / "aa.test.tsv").write_text("\n".join(["a\tb\tN", lines[3]]))
    size = dataclasses.replace(QUICK_SIZE, new_rows=6, dev=3)
    sizes = dict(languages=("aa",), subsets=(("aa",),), data="forms", per_language=5, test=4)
    family = dataclasses.replace(TRANSDUCTION, **sizes)
    found = read_corpus(family, size, tmp_path)
    parts = [one for split in (found.stage0, found.new, found.dev, found.test) for one in split["aa"]]
    assert [len(split["aa"]) for split in (found.stage0, found.new, found.dev, found.test)] == [5, 6, 3, 4]
    assert len(set(parts)) == 18 and ("a", "b", "N") not in parts
    found = read_corpus(dataclasses.replace(family, held_out=False), size, tmp_path)
    assert found.test["aa"] == [("a", "b", "N")] and len(found.dev["aa"]) == 3
    (folder / "aa.train.tsv").write_text("lemma\tform")
    with pytest.raises(UserError, match="line 1: not the columns of transduction"):
        read_corpus(family, size, tmp_path)
