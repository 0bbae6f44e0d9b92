"""Goodput: every second of a run, restarts included, belongs to one cause."""

import json
import time

import jax.numpy as jnp
import pytest

from zoo.training import goodput as module
from zoo.training.goodput import CAUSES, Goodput, StepClock


class Clock:
    """Stands in for the module's `time`: it stands still until it is moved."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(module, "time", self)

    def time(self) -> float:
        return 5e8 + self.now

    def perf_counter(self) -> float:
        return self.now

    def at(self, now: float) -> float:
        self.now = now
        return now


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def step(account, clock, number, *, fetched, dispatched, done):
    clock.now = max(clock.now, done)
    account.step(number, fetched=fetched, dispatched=dispatched, done=done)


def two_steps(account, clock, first: int) -> None:
    """Ten seconds of start and first step, then one step of two seconds."""
    begin = clock.now
    step(account, clock, first, fetched=begin, dispatched=begin + 1, done=begin + 10)
    step(account, clock, first + 1, fetched=begin + 2, dispatched=begin + 2, done=begin + 12)


def spent(account) -> dict[str, float]:
    return {cause: round(seconds, 6) for cause, seconds in account.seconds.items() if seconds}


def test_the_first_step_is_counted_as_start_because_it_compiles(tmp_path, clock):
    account = Goodput(tmp_path, first_step=0)
    two_steps(account, clock, 1)
    assert spent(account) == {"start": 10, "step": 2}
    assert account.fraction == pytest.approx(2 / 12)


def test_a_batch_that_is_read_while_a_step_runs_costs_nothing(tmp_path, clock):
    account = Goodput(tmp_path, first_step=0)
    two_steps(account, clock, 1)  # until 1012
    step(account, clock, 3, fetched=1011.9, dispatched=1011.95, done=1015)
    assert spent(account) == {"start": 10, "step": 5}


def test_the_devices_wait_for_data_from_the_end_of_a_step_until_the_next_batch_is_there(tmp_path, clock):
    account = Goodput(tmp_path, first_step=0)
    two_steps(account, clock, 1)
    step(account, clock, 3, fetched=1015, dispatched=1015.5, done=1018)
    assert spent(account) == {"start": 10, "step": 4.5, "data": 3, "other": 0.5}


def test_validation_saving_and_replay_are_counted_apart(tmp_path, clock):
    account = Goodput(tmp_path, first_step=0)
    two_steps(account, clock, 1)
    for seconds, cause in ((3, "evaluation"), (4, "checkpoint"), (5, "replay")):
        with account.spending(cause):
            clock.now += seconds
    with account.spending("evaluation", fetched=clock.now + 1):
        clock.now += 1
    with pytest.raises(RuntimeError), account.spending("checkpoint"):
        clock.now += 1
        raise RuntimeError
    assert spent(account) == {"start": 10, "step": 2, "evaluation": 3, "checkpoint": 5, "replay": 5, "data": 1}


def test_the_seconds_of_all_causes_are_the_wall_clock(tmp_path, clock):
    account = Goodput(tmp_path, first_step=0)
    two_steps(account, clock, 1)
    with account.spending("evaluation"):
        clock.now += 3
    step(account, clock, 3, fetched=clock.now, dispatched=clock.now + 1, done=clock.now + 7)
    clock.now += 0.25
    account.close()
    assert sum(account.seconds.values()) == pytest.approx(clock.now - 1000)
    assert set(account.seconds) == set(CAUSES)


def test_a_restart_counts_the_time_between_and_the_steps_that_are_done_again(tmp_path, clock):
    first = Goodput(tmp_path, first_step=0)
    two_steps(first, clock, 1)  # reaches step 2, of which nothing is saved
    first.write()
    clock.now += 100
    second = Goodput(tmp_path, first_step=0)
    two_steps(second, clock, 1)
    step(second, clock, 3, fetched=clock.now, dispatched=clock.now, done=clock.now + 5)
    second.close()
    assert spent(second) == {"start": 20, "step": 2 + 5, "redone": 2, "down": 100}
    saved = json.loads((tmp_path / "goodput.json").read_text())
    assert saved["seconds"] == second.seconds and saved["goodput"] == second.fraction
    assert saved["wall_seconds"] == pytest.approx(clock.now - 1000)
    assert [(start["first_step"], start["last_step"]) for start in saved["starts"]] == [(0, 2), (0, 3)]


def test_steps_that_only_metrics_jsonl_knows_of_are_done_again_too(tmp_path, clock):
    account = Goodput(tmp_path, first_step=4, last_written=6)
    two_steps(account, clock, 5)
    step(account, clock, 7, fetched=clock.now, dispatched=clock.now, done=clock.now + 5)
    assert spent(account) == {"start": 10, "redone": 2, "step": 5}


def test_a_start_that_was_killed_counts_until_its_file_was_last_written(tmp_path, clock):
    first = Goodput(tmp_path, first_step=0)
    two_steps(first, clock, 1)
    for number in range(3, 20):  # two seconds each: the file is written every ten
        step(first, clock, number, fetched=clock.now, dispatched=clock.now, done=clock.now + 2)
    killed = clock.now
    second = Goodput(tmp_path, first_step=0)
    assert 0 < second.seconds["down"] <= 10 + 2
    assert sum(second.seconds.values()) == pytest.approx(killed - 1000)


def test_the_start_counts_from_the_beginning_of_the_command(tmp_path, clock):
    account = Goodput(tmp_path, first_step=0, began=clock.time() - 7)
    step(account, clock, 1, fetched=1001, dispatched=1001, done=1002)
    assert spent(account) == {"start": 9}


def test_a_file_that_cannot_be_read_is_named_and_the_run_goes_on(tmp_path, clock, caplog):
    (tmp_path / "goodput.json").write_text('{"starts": [{"beg')
    account = Goodput(tmp_path, first_step=0)
    two_steps(account, clock, 1)
    account.close()
    assert "goodput.json cannot be read" in caplog.text
    assert len(json.loads((tmp_path / "goodput.json").read_text())["starts"]) == 1


def test_the_table_names_every_cause_that_took_time(tmp_path, clock):
    account = Goodput(tmp_path, first_step=0)
    two_steps(account, clock, 1)
    with account.spending("evaluation"):
        clock.now += 3600
    assert account.table().splitlines() == [
        "goodput 0.1 % of 1:00:12",
        "  validation                   1:00:00    99.7 %",
        "  start and compilation         10.0 s     0.3 %",
        "  training steps                 2.0 s     0.1 %",
    ]


def test_the_step_clock_tells_when_arrays_were_computed_and_what_went_wrong():
    clock = StepClock()
    before = time.perf_counter()
    assert before < clock.watch({"loss": jnp.ones(())}).result(timeout=10) < time.perf_counter()

    class Broken:
        def block_until_ready(self):
            raise ValueError("the device is gone")

    with pytest.raises(ValueError, match="the device is gone"):
        clock.watch(Broken()).result(timeout=10)
    clock.close()
