"""Two processes stop together: when one is told to go, and when one of them computes wrongly."""

import json
import signal
import subprocess
import sys

import pytest

from tests import tiny_run
from tests.tiny_run import arguments, finish, losses, start_several, write_corpus
from zoo.training.run_directory import saved_steps

OPTIONS = {
    "mesh.fsdp": 4,
    "data.streams": 2,
    "sample_tokens": 0,
    "steps": 60,
    "evaluate_every": 30,
    "checkpoint_every": 30,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """An uninterrupted run of two processes."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert [code for code, *_ in finish(start_several([arguments(corpus, run, **OPTIONS)] * 2, devices=2))] == [0, 0]
    return run


def tell_after_step(processes, told, signum, step=3):
    """Sends a signal to the processes `told` once a step is shown; the exit codes, and what the first one printed."""
    next(line for line in processes[0].stdout if line.startswith(f"step {step:>2}/"))
    for index in told:
        processes[index].send_signal(signum)
    results = finish(processes, timeout=120)
    return [code for code, *_ in results], results[0][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "told", "code"),
    [(signal.SIGTERM, [1], 75), (signal.SIGUSR1, [0, 1], 75), (signal.SIGINT, [1], 0)],
    ids=["one is preempted", "the time is up for both", "Ctrl-C on one"],
)
def test_both_save_after_the_same_step_say_so_to_the_launcher_and_go_on_bit_for_bit(
    whole, corpus, tmp_path, signum, told, code
):
    command = arguments(corpus, tmp_path / "run", **OPTIONS)
    codes, output = tell_after_step(start_several([command] * 2, devices=2), told, signum)
    assert codes == [code, code]
    [saved] = saved_steps(tmp_path / "run" / "checkpoints")
    assert 3 <= saved < 60 and f"stopped after step {saved} of 60" in output
    assert [code for code, *_ in finish(start_several([command] * 2, devices=2))] == [0, 0]
    assert losses(tmp_path / "run") == losses(whole)
    account = json.loads((tmp_path / "run" / "goodput.json").read_text())
    assert [start["last_step"] for start in account["starts"]] == [saved, 60]


@pytest.mark.slow
def test_both_stop_when_one_of_them_computes_wrongly_and_name_step_parameter_and_device(corpus, tmp_path, monkeypatch):
    command = arguments(corpus, tmp_path / "run", **OPTIONS | {"replay_check": 10, "checkpoint_every": 5})

    def start_broken(argv, **options):
        assert argv[1:3] == ["-m", "zoo.train"]
        broken = ["-m", "tests.multi_host.broken_chip", "1", "21"]  # step 20 is computed by calls 21 and 22
        return popen([sys.executable, *broken, *argv[3:]], **options)

    popen = subprocess.Popen
    with monkeypatch.context() as patch:
        patch.setattr(tiny_run.subprocess, "Popen", start_broken)
        processes = start_several([command] * 2, devices=2)
    results = finish(processes, timeout=120)
    assert [code for code, *_ in results] == [1, 1]
    for _, _, errors in results:
        [line] = [line for line in errors.splitlines() if line.startswith("error: step ")]
        assert "step 20, computed twice" in line and ": params/" in line and " differs in 1 of " in line
        assert "of process 1; nothing of this step is kept; the last good checkpoint, step 15, is kept" in line
        assert "Traceback" not in errors
    assert losses(tmp_path / "run")[-1][0] == 19
    assert saved_steps(tmp_path / "run" / "checkpoints")[-1] == 15
