"""The sinks: metrics.jsonl after interruptions, TensorBoard, Weights & Biases installed and missing."""

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import jax
import pytest

from zoo.errors import UserError
from zoo.training import metrics
from zoo.training.metrics import JsonLines, TensorBoard, open_record, read_metrics


def numbers(step: int, **more) -> dict:
    return {
        "step": step, "loss": 5.0 - 0.1 * step, "z_loss": 0.0, "grad_norm": 0.5, "learning_rate": 1e-3, "weight": 100.0,
        "step_tokens": 100, "tokens": 100 * step, "seconds": 0.5, **more,
    }  # fmt: skip


def write(path, steps, *, last_step=0, **more):
    sink = JsonLines(path, last_step=last_step)
    for step in steps:
        sink.write(numbers(step, **more))
    sink.close()


def test_every_step_is_one_json_object_on_disk_at_once(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonLines(path, last_step=0)
    for step in (1, 2):
        sink.write(numbers(step))
        assert [json.loads(line) for line in path.read_text().splitlines()] == [numbers(s) for s in range(1, step + 1)]
    sink.close()


def test_a_resumed_run_has_the_file_of_one_that_was_never_stopped(tmp_path):
    straight, resumed = tmp_path / "straight.jsonl", tmp_path / "resumed.jsonl"
    write(straight, range(1, 8))
    write(resumed, range(1, 6))
    write(resumed, range(4, 8), last_step=3)  # killed after step 5, restored from step 3
    assert resumed.read_text() == straight.read_text()


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 4))
    path.write_text(path.read_text() + '{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    write(path, [4], last_step=4)
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]


def test_a_complete_line_without_its_newline_is_dropped_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 4))
    path.write_text(path.read_text().rstrip("\n"))
    write(path, [3], last_step=3)
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    assert len(path.read_text().splitlines()) == 3


def test_floats_come_back_to_the_last_bit(tmp_path):
    path = tmp_path / "metrics.jsonl"
    loss = float(jax.numpy.float32(1 / 3))
    write(path, [1], loss=loss)
    assert read_metrics(path)[0]["loss"] == loss


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_is_null(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    write(path, [1], validation_loss=value)
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["validation_loss"] is None


def test_tensorboard_gets_training_and_validation_numbers(tmp_path):
    sink = TensorBoard(tmp_path, last_step=0)
    for step in (1, 2):
        sink.write(numbers(step, validation_loss=4.5))
    sink.close()
    (file,) = tmp_path.glob("events.out.tfevents.*")
    written = file.read_bytes()
    for tag in (b"train/loss", b"train/learning_rate", b"validation/loss"):
        assert written.count(tag) == 2
    assert b"train/step\n" not in written


def open_test_record(run, **options):
    settings = dict(first_step=0, steps=4, log_every=2, flops_per_token=1e6, devices=jax.devices()[:2])
    return open_record(run, **(settings | options))


def test_a_record_adds_speed_utilization_and_memory_and_prints_lines(tmp_path, capsys):
    with open_test_record(tmp_path, tensorboard=False) as record:
        for step in range(1, 5):
            record(numbers(step, epoch=0.25 * step, **({"validation_loss": 4.25} if step == 4 else {})))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert "tokens_per_second_per_device" not in rows[0]  # its seconds are those of compiling
    assert all(row["tokens_per_second_per_device"] == 100 for row in rows[1:])
    assert all(0 < row["mfu"] < 1 and row["memory_bytes"] > 1e7 for row in rows[1:])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "4/4", "4/4"]
    assert "validation loss 4.2500" in lines[-1]
    assert not (tmp_path / "tensorboard").exists()


def test_other_processes_than_the_first_write_nothing(tmp_path, capsys, monkeypatch):
    devices = jax.devices()
    monkeypatch.setattr(metrics.jax, "process_index", lambda: 1)
    fake = [SimpleNamespace(process_index=1, platform="cpu", memory_stats=lambda: None), *devices]
    with open_test_record(tmp_path / "run", devices=fake) as record:
        record(numbers(1))
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_wandb_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        open_test_record(tmp_path / "run", wandb="project")
    assert not (tmp_path / "run").exists()


def test_wandb_resumes_the_same_run(tmp_path, monkeypatch):
    calls = []
    fake = ModuleType("wandb")
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finished")
    )
    fake.init = lambda **options: calls.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: fake)
    for first in (0, 1):
        with open_test_record(tmp_path, wandb="zoo", tensorboard=False, first_step=first, config={"a": 1}) as record:
            record(numbers(first + 1, validation_loss=4.5))
    first, logged, _, second, *_ = calls
    assert first["id"] == second["id"] and first["project"] == "zoo" and first["config"] == {"a": 1}
    assert logged[0] == 1 and logged[1]["train/loss"] == 4.9 and logged[1]["validation/loss"] == 4.5
    assert calls[-1] == "finished"
