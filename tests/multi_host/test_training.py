"""Two processes train as one does; when one is killed the other says so and stops, and the run goes on from there."""

import json
import signal
import time

import numpy as np
import pytest

from tests.multi_host import kills
from tests.tiny_run import arguments, finish, losses, start_several, write_corpus
from zoo.train import main
from zoo.training.run_directory import saved_steps

MESH = {"mesh.fsdp": 4, "mesh.tensor": 2, "model.num_kv_heads": 2}
OPTIONS = {**MESH, "data.streams": 2, "data.packing": "first_fit", "sample_tokens": 0, "log_every": 1}


def curve(run):
    return [[np.nan if number is None else number for number in numbers] for numbers in losses(run)]


def assert_same_curve(run, other):
    """Both runs wrote every step once, with the same numbers but for the order of additions."""
    assert [numbers[0] for numbers in losses(run)] == [numbers[0] for numbers in losses(other)]
    np.testing.assert_allclose(curve(run), curve(other), rtol=1e-5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """The run of one process with eight devices."""
    run = tmp_path_factory.mktemp("alone") / "run"
    main(arguments(corpus, run, **OPTIONS))
    return run


def test_two_processes_of_four_devices_give_the_curve_of_one_of_eight(corpus, alone, tmp_path):
    command = arguments(corpus, tmp_path / "run", **OPTIONS)
    for index, (code, output, errors) in enumerate(finish(start_several([command] * 2, devices=4))):
        assert code == 0, errors
        assert ("step 6/6" in output) == (index == 0)
    assert_same_curve(tmp_path / "run", alone)
    streams = (tmp_path / "run" / "checkpoints" / "6" / "data").glob("stream*")
    assert sorted(path.name for path in streams) == ["stream_0-of-2.json", "stream_1-of-2.json"]


def kill_after_step(process, watched, step):
    """Kills a process with SIGKILL once the other one has shown a step."""
    next(line for line in watched.stdout if line.startswith(f"step {step}/"))
    process.send_signal(signal.SIGKILL)
    return time.monotonic()


def assert_stopped_for(process, gone, since):
    """The survivor ended with code 75 and, as its last words, one line that says what to do."""
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - since < 60
    last = errors.strip().splitlines()[-1]
    assert process.returncode == 75, errors
    assert f"error: process {gone} of 2 (host " in last and "stopped responding" in last
    assert "run the same command again" in last
    return last


def test_when_one_is_killed_the_other_stops_and_one_process_finishes_the_run(corpus, alone, tmp_path):
    command = arguments(corpus, tmp_path / "run", **OPTIONS)
    first, second = start_several([command] * 2, devices=4)
    line = assert_stopped_for(first, 1, kill_after_step(second, first, 3))
    finish([second])
    [*_, saved] = saved_steps(tmp_path / "run" / "checkpoints")
    assert saved >= 2 and f"continue from the last checkpoint, step {saved}" in line
    main(command)
    assert_same_curve(tmp_path / "run", alone)


@pytest.mark.slow
def test_when_the_first_one_is_killed_the_other_stops_and_two_processes_finish_the_run(corpus, alone, tmp_path):
    command = arguments(corpus, tmp_path / "run", **OPTIONS)
    first, second = start_several([command] * 2, devices=4)
    assert_stopped_for(second, 0, kill_after_step(first, first, 3))
    finish([first])
    assert [code for code, *_ in finish(start_several([command] * 2, devices=4))] == [0, 0]
    assert_same_curve(tmp_path / "run", alone)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(2, 1, 4), (1, 2), (4, 2)], ids=str)
def test_a_run_goes_on_with_another_number_of_processes(corpus, alone, tmp_path, counts):
    command = arguments(corpus, tmp_path / "run", **OPTIONS)
    for number, count in enumerate(counts):
        stop = [] if number == len(counts) - 1 else ["--stop-at-step", str(2 * number + 2)]
        for code, _, errors in finish(start_several([[*command, *stop]] * count, devices=8 // count)):
            assert code == 0, errors
    assert_same_curve(tmp_path / "run", alone)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 4}, {"fsdp": 2, "tensor": 4}, {"fsdp": 1, "tensor": 8}], ids=str)
def test_any_axis_may_lie_across_the_processes(corpus, tmp_path, mesh):
    sizes = {
        "model.num_heads": 8,
        "model.num_kv_heads": 8,
        "model.head_dim": 4,
        "data.batch_size": 8,
        "data.streams": 2,
    }
    options = OPTIONS | sizes | {f"mesh.{axis}": size for axis, size in ({"fsdp": 1, "tensor": 1} | mesh).items()}
    for code, _, errors in finish(start_several([arguments(corpus, tmp_path / "two", **options)] * 2, devices=4)):
        assert code == 0, errors
    main(arguments(corpus, tmp_path / "one", **options))
    assert_same_curve(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_the_streams_of_a_new_run_are_its_processes_and_stay(corpus, tmp_path):
    options = OPTIONS | {"data.streams": None}
    first = arguments(corpus, tmp_path / "run", **options, stop_at_step=2)
    assert [code for code, *_ in finish(start_several([first] * 2, devices=4))] == [0, 0]
    main(arguments(corpus, tmp_path / "run", **options))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["data"]["streams"] == 2
    main(arguments(corpus, tmp_path / "alone", **OPTIONS))
    assert_same_curve(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
def test_sigterm_to_one_of_two_saves_and_both_end_with_code_75(corpus, tmp_path):
    command = arguments(corpus, tmp_path / "run", **OPTIONS | {"steps": 2000})
    first, second = start_several([command] * 2, devices=4)
    next(line for line in first.stdout if line.startswith("step"))
    second.send_signal(signal.SIGTERM)
    for code, _, errors in finish([first, second]):
        assert code == 75, errors
        assert "stopped responding" not in errors
    assert saved_steps(tmp_path / "run" / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer.learning_rate": 0.5},
            "the processes do not run the same: optimizer.learning_rate is 0.012 on process 0",
        ),
        ({"data.seed": 3}, "the processes do not run the same: data.seed is 0 on process 0"),
    ],
)
def test_processes_that_do_not_run_the_same_end_with_one_line_and_code_2(corpus, tmp_path, changes, message):
    commands = [arguments(corpus, tmp_path / "run", **options) for options in (OPTIONS, OPTIONS | changes)]
    for code, _, errors in finish(start_several(commands, devices=4)):
        assert code == 2
        assert len(errors.splitlines()) == 1 and message in errors


@pytest.mark.slow
def test_ten_kills_of_one_of_two_lose_only_the_steps_since_the_last_save(tmp_path):
    found = kills.check(tmp_path, 10, steps=100)
    assert len(found) == 10 and {kill.victim for kill in found} == {0, 1}
