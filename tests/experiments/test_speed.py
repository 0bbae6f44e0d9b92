"""The speed experiment measures what it says: ratios within rounds, stopped processes, a report that hides nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.speed import aims, contest, local_attention, machine, report, worker, workload
from experiments.speed.peers import ZOO

EAGER, COMPILED = "transformers eager", "torch.compile"


def make_results(zoo_seconds: float = 1.0, missing: tuple[str, ...] = ()) -> report.Results:
    """Results with invented times, as a run would collect them."""
    names = [ZOO] if missing else [ZOO, EAGER, COMPILED]
    times = {ZOO: [zoo_seconds, zoo_seconds * 1.2], EAGER: [2.5, 3.0], COMPILED: [1.8, 2.0]}
    found = contest.Contest(
        measurements={
            key: contest.Measurement(f"{key}, B = 2", 2048, {n: times[n] for n in names}, {n: times[n] for n in names})
            for key in ("train", "forward", "decode-1", "decode-8")
        },
        peak_bytes=dict.fromkeys(names, 10**9),
        matmul_rates=dict.fromkeys(names, 2e11),
        agreement={name: {"losses": 1e-6, "logits": 2e-5, "greedy tokens, batch 1": 1.0} for name in names},
    )
    local = [
        local_attention.LengthResult(n, n * 1e-5, n * 1e-5, n * 1000, n * 3000) for n in (2048, 4096, 8192, 16_384)
    ]
    return report.Results(
        date="2026-11-23",
        command="python -m experiments.speed",
        machine={"processor": "one"},
        workload=workload.FULL,
        parameters=35_000_000,
        training_flops=4e11,
        read_bytes_per_second=15e9,
        copy_bytes_per_second=14e9,
        contest=found,
        missing=list(missing),
        local=local,
        aims=aims.contest_aims(found) + aims.local_aims(local),
    )


def test_ratios_are_taken_within_a_round():
    measurement = contest.Measurement("step", 10, {ZOO: [1.0, 4.0, 2.0], EAGER: [2.0, 8.0, 6.0]}, {})
    assert measurement.speedups(EAGER) == [2.0, 2.0, 3.0]
    assert measurement.tokens_per_second(ZOO) == 5.0


def test_warming_up_goes_on_while_calls_get_faster():
    seconds = iter([10.0, 5.0, 1.0, 0.9, 0.8])
    contest._warm_up(lambda: next(seconds))
    assert list(seconds) == [0.8]


def test_implementations_that_differ_are_refused():
    contest.require(True, "fine")
    with pytest.raises(contest.Disagreement, match="logits differ"):
        contest.require(False, "logits differ")


def test_an_aim_is_judged_by_the_median_round_against_the_faster_peer():
    found = {aim.what: aim for aim in make_results(1.1).aims}
    assert found["training step against torch.compile"].reached
    assert not found["forward pass against eager"].reached  # 2.3 in the median round
    assert found["peak memory of training"].reached
    assert all(aim.reached for aim in aims.local_aims(make_results().local))


def test_the_largest_array_of_a_program_is_found_in_its_text():
    text = "  %a.1 = f32[2,16,128]{2,1,0} fusion(f32[4]{0} %x), pred[3,5]{1,0} %m, s32[] %i"
    assert local_attention.largest_buffer_elements(text) == 2 * 16 * 128


def test_the_local_layer_has_no_array_of_t_by_t_and_linear_memory():
    layer = local_attention.LocalLayer(num_heads=2, num_kv_heads=1, head_dim=16, sliding_window=64)
    short, long = local_attention.measure_local_layer([512, 2048], 1, layer)
    assert long.largest_buffer_elements < 2048 * 2048
    assert long.temporary_bytes <= 1.1 * 4 * short.temporary_bytes


def test_a_dense_layer_would_be_found_out(monkeypatch):
    import functools

    monkeypatch.setattr(
        local_attention,
        "dot_product_attention",
        functools.partial(local_attention.dot_product_attention, implementation="reference"),
    )
    layer = local_attention.LocalLayer(num_heads=2, num_kv_heads=1, head_dim=16, sliding_window=64)
    short, long = local_attention.measure_local_layer([256, 1024], 1, layer)
    assert long.largest_buffer_elements >= 1024 * 1024
    assert not all(aim.reached for aim in aims.local_aims([short, long]))


def test_the_report_names_what_falls_short():
    text = report.write_report(make_results(zoo_seconds=2.0), ["a.png"])
    assert "training step against torch.compile: 0.87x" in text and "aim 1.5x" in text
    assert "GFLOP/s" in text and "![a.png](a.png)" in text
    assert "Nothing" in report.write_report(make_results(zoo_seconds=0.1), [])


def test_without_torch_the_report_says_so_and_judges_the_local_layer_only():
    results = make_results(missing=("torch", "transformers"))
    assert {aim.what.split(",")[0] for aim in results.aims} == {"local layer"}
    assert "torch, transformers not installed" in report.write_report(results, [])
    json.dumps(report.as_json(results))


def test_the_initial_model_is_the_same_for_everybody(tmp_path):
    import jax

    import zoo

    num_bytes = workload.save_initial_model("gemma2-nano", tmp_path / "model")
    model = zoo.load(tmp_path / "model").model
    assert num_bytes == 4 * model.config.num_parameters()
    assert float(jax.numpy.abs(model.final_norm.scale[...]).max()) > 0


def test_the_bandwidth_is_that_of_the_bytes_read():
    assert 1e8 < machine.read_bandwidth(1, 2**24, repeats=3) < 1e13
    assert 1e8 < machine.copy_bandwidth(2, 2**24, repeats=3) < 1e13


SERVER = """
import time
from experiments.speed.worker import serve, peak_bytes
def fail():
    raise ValueError("no such thing")
def noisy():
    print("a library says something")
    return 3
serve({"count": time.process_time, "peak": peak_bytes, "fail": fail, "noisy": noisy})
"""


@pytest.fixture
def serving(tmp_path, repository: Path):
    (tmp_path / "speed_test_server.py").write_text(SERVER)
    paths = os.pathsep.join([str(tmp_path), str(repository)])
    started = worker.Worker(
        "server", "speed_test_server", [], {**os.environ, "PYTHONPATH": paths}, tmp_path / "server.log"
    )
    yield started
    started.close()


def test_a_worker_answers_and_is_stopped_between_commands(serving):
    assert serving.call("noisy") == 3
    assert "a library says" in serving.log.read_text()
    time.sleep(0.1)
    state = Path(f"/proc/{serving._process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    assert state == "T"
    assert serving.call("peak") > 2**20


def test_what_fails_in_a_worker_is_reported_in_the_parent(serving):
    with pytest.raises(worker.WorkerFailed, match="no such thing"):
        serving.call("fail")
    assert serving.call("noisy") == 3
    serving._process.kill()
    with pytest.raises(worker.WorkerFailed, match="the process ended"):
        serving.call("noisy")


def test_wrong_options_get_one_line_and_exit_code_2(run_module):
    code, _, errors = run_module("experiments.speed", "--rounds", 0)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1 and "rounds" in errors


@pytest.mark.slow
def test_the_quick_run_measures_the_zoo_alone(repository: Path, tmp_path):
    out = tmp_path / "out"
    subprocess.run(
        [sys.executable, "-m", "experiments.speed", "--quick", "--rounds", "1", "--out", str(out)],
        cwd=repository,
        check=True,
        timeout=300,
    )
    results = json.loads((out / "results.json").read_text())
    assert np.median(results["contest"]["measurements"]["train"]["seconds"][ZOO]) > 0
    assert len(list(out.glob("*.png"))) == 2
