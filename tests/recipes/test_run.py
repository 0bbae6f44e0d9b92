"""What a run takes from the machines it runs on, and what from its folder when it is resumed."""

import dataclasses
import logging
from pathlib import Path

import jax
import pytest

from zoo.recipes import DEFAULT, recipe, recipe_to_dict
from zoo.recipes.recipe import first_difference, same_on_all_processes
from zoo.recipes.run import choose_streams, how_to_go_on
from zoo.training.run_directory import RunInfo, write_run


@pytest.fixture
def new(tmp_path):
    return dataclasses.replace(recipe(DEFAULT), run_dir=str(tmp_path / "run"))


def begin(recipe, streams):
    """A run of this recipe in its folder; None: one that was begun before there were streams."""
    config = recipe_to_dict(recipe)
    config["data"].pop("streams")
    config["data"] |= {} if streams is None else {"streams": streams}
    write_run(RunInfo(Path(recipe.run_dir), recipe.name, {"architecture": "x"}, {}, None, None, config=config))


@pytest.mark.parametrize(("processes", "streams"), [(1, 1), (4, 4), (12, 4)])
def test_a_new_run_has_a_stream_for_each_process_as_far_as_they_divide_the_batch(new, monkeypatch, processes, streams):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    assert choose_streams(new).data.streams == streams


def test_a_resumed_run_keeps_its_streams_on_any_number_of_processes(new, monkeypatch, caplog):
    begin(new, 2)
    for processes in (1, 2, 4):
        monkeypatch.setattr(jax, "process_count", lambda count=processes: count)
        with caplog.at_level(logging.WARNING, logger="zoo"):
            chosen = choose_streams(new)
        assert chosen.data.streams == 2
        assert ("4 processes now" in caplog.text) == (processes == 4)


def test_a_run_from_before_there_were_streams_has_one_for_each_process_that_saved_it(new):
    begin(new, None)
    assert choose_streams(new).data.streams == 1
    data = Path(new.run_dir) / "checkpoints" / "5" / "data"
    data.mkdir(parents=True)
    (data / "process_0-of-4.json").write_text("{}")
    assert choose_streams(new).data.streams == 4


def test_a_number_of_streams_that_is_given_is_kept(new):
    given = dataclasses.replace(new, data=dataclasses.replace(new.data, streams=8))
    assert choose_streams(given) is given
    begin(new, 2)
    name, old, wanted = first_difference(recipe_to_dict(choose_streams(new)), recipe_to_dict(choose_streams(given)))
    assert (name, old, wanted) == ("data.streams", 2, 8)


def test_where_the_processes_meet_is_no_part_of_what_they_run(new):
    other = dataclasses.replace(new, distributed=dataclasses.replace(new.distributed, process_id=1))
    assert same_on_all_processes(other) == same_on_all_processes(new)
    assert first_difference(recipe_to_dict(new), recipe_to_dict(other)) is None
    assert same_on_all_processes(new)["optimizer.learning_rate"] == new.optimizer.learning_rate


def test_after_an_interruption_the_step_to_go_on_from_is_named(new):
    assert how_to_go_on(new) == "run the same command again: nothing was saved yet"
    (Path(new.run_dir) / "checkpoints" / "5").mkdir(parents=True)
    assert how_to_go_on(new) == "run the same command again to continue from the last checkpoint, step 5"
