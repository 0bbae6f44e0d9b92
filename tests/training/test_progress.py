"""The line of a step, the speeds in it, and what is printed when."""

import io
import sys
from types import SimpleNamespace

import jax
import pytest

from zoo.training.progress import Meter, Progress, device_memory, short_count, step_line, validation_line

NUMBERS = {
    "step": 120, "loss": 4.21312, "learning_rate": 3e-3, "grad_norm": 0.912, "seconds": 0.25, "step_tokens": 2048,
    "tokens": 1_234_567, "epoch": 0.4321, "tokens_per_second_per_device": 12_345.0, "mfu": 0.4131,
    "memory_bytes": 1_210_000_000,
}  # fmt: skip
LABELS = dict(memory_label="mem", peak_label="of 197 TFLOP/s")


def test_the_line_of_a_step_has_everything():
    assert step_line(NUMBERS, steps=1000, seconds_per_step=0.125, **LABELS) == (
        "step  120/1000  loss 4.2131  lr 3.00e-03  grad 0.91  12.3k tok/s/device  mfu 41.3% of 197 TFLOP/s  mem 1.21 GB"
        "  1.23M tokens (epoch 0.43)  eta 1:50"
    )


def test_the_first_line_says_how_long_compiling_took_instead_of_a_speed():
    first = {
        name: value for name, value in NUMBERS.items() if name not in ("tokens_per_second_per_device", "mfu", "epoch")
    }
    line = step_line({**first, "seconds": 12.34}, steps=1000, seconds_per_step=None, **LABELS)
    assert line.endswith("mem 1.21 GB  1.23M tokens  first step 12.3 s, compilation included")


def test_the_line_of_a_validation():
    numbers = {"step": 250, "validation_loss": 2.34567, "validation_bits_per_byte": 1.2345678}
    assert validation_line(numbers, steps=1000) == "step  250/1000  validation loss 2.3457  1.2346 bits per byte"


def test_a_step_that_was_left_out_has_a_line_of_its_own(capsys):
    meter = Meter(jax.devices()[:1], flops_per_token=0)
    progress = Progress(first_step=0, steps=1000, log_every=1000, meter=meter)
    limits = {"loss_limit": 4.0, "grad_norm_limit": 1.23456}
    for step, skipped in ((1, 0), (2, 0), (3, 1)):
        numbers = {**NUMBERS, **limits, "step": step, "skipped": skipped}
        meter.measure(numbers)
        progress.show(numbers)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "step    3/1000  left out as a spike: loss 4.213 (limit 4), gradient norm 0.912 (limit 1.235)"
    ]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0"), (999, "999"), (1000, "1k"), (12_345, "12.3k"), (999_600, "1000k"), (2_048_000, "2.05M"), (3e12, "3T")],
)
def test_counts_are_short(number, expected):
    assert short_count(number) == expected


def test_speed_is_a_mean_over_the_last_steps_without_the_first():
    meter = Meter(jax.devices()[:2], flops_per_token=0)
    assert "tokens_per_second_per_device" not in meter.measure({"seconds": 30.0, "step_tokens": 100})
    assert meter.seconds_per_step is None
    meter.measure({"seconds": 1.0, "step_tokens": 100})
    found = meter.measure({"seconds": 3.0, "step_tokens": 300})
    assert found["tokens_per_second_per_device"] == 400 / 4 / 2
    assert meter.seconds_per_step == 2.0
    assert "mfu" not in found


def test_memory_is_the_peak_of_the_device_or_the_resident_memory_of_the_process():
    accelerator = SimpleNamespace(memory_stats=lambda: {"bytes_in_use": 1, "peak_bytes_in_use": 7})
    assert device_memory(accelerator) == (7, "mem")
    size, label = device_memory(jax.devices()[0])
    assert label.endswith("rss") and 1e7 < size < 1e12


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show_steps(steps: int = 6) -> None:
    meter = Meter(jax.devices()[:1], flops_per_token=0)
    progress = Progress(first_step=0, steps=steps, log_every=4, meter=meter)
    for step in range(1, steps + 1):
        numbers = {**NUMBERS, "step": step}
        meter.measure(numbers)
        progress.show(numbers)
    progress.close()


def test_without_a_terminal_there_are_only_lines(capsys):
    show_steps()
    captured = capsys.readouterr()
    assert [line.split()[1] for line in captured.out.splitlines()] == ["1/6", "4/6", "6/6"]
    assert captured.err == ""


def test_on_a_terminal_there_is_a_bar_and_the_lines_can_still_be_piped(capsys, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    show_steps()
    assert "6/6" in terminal.getvalue() and "loss 4.2131" in terminal.getvalue()
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["1/6", "4/6", "6/6"]
