"""A run as it is seen on the terminal: one dense line a step, and a progress bar where there is a terminal."""

import os
import resource
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from zoo.training.mfu import model_flops_utilization, peak_flops

WINDOW = 20
"""Speeds are means over this many steps."""


class Meter:
    """Turns the seconds and tokens of steps into speeds. The first step of a process compiles and is left out."""

    def __init__(self, devices: Sequence[Any], flops_per_token: float):
        """`devices` are all devices of the run; `flops_per_token` is that of a forward pass (0: no MFU)."""
        self._device = next(device for device in devices if device.process_index == jax.process_index())
        self._num_devices = len(devices)
        self._flops_per_token = flops_per_token
        self._peak, self.peak_label = peak_flops(devices) if flops_per_token else (None, "")
        self._window: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self._started = False

    def measure(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """`memory_bytes`; from the second step on `tokens_per_second_per_device` and, with a known peak, `mfu`."""
        found: dict[str, Any] = {"memory_bytes": device_memory(self._device)[0]}
        if self._started:
            self._window.append((numbers["seconds"], numbers["step_tokens"]))
            speed = sum(tokens for _, tokens in self._window) / sum(seconds for seconds, _ in self._window)
            found["tokens_per_second_per_device"] = speed / self._num_devices
            if self._peak:
                found["mfu"] = model_flops_utilization(self._flops_per_token, speed / self._num_devices, self._peak)
        self._started = True
        return found

    @property
    def memory_label(self) -> str:
        """What `memory_bytes` is: "mem" of the device, or "rss" of the process."""
        return device_memory(self._device)[1]

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over the last steps; None before the second one."""
        return sum(seconds for seconds, _ in self._window) / len(self._window) if self._window else None


def device_memory(device: Any) -> tuple[int, str]:
    """(bytes, label): the peak of the device's memory in use, "mem"; on CPU, where jax counts none, this process's
    resident memory, "rss", or its peak where the system does not tell the present one."""
    stats = device.memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"], "mem"
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"), "rss"
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024), "peak rss"


def step_line(
    numbers: Mapping[str, Any], *, steps: int, seconds_per_step: float | None, memory_label: str, peak_label: str
) -> str:
    """The line of one step, such as

    step   120/1000  loss 4.2131  lr 3.00e-03  grad 0.91  12.3k tok/s/device  mfu 41.3% of ...  rss 1.2 GB  1.2M tokens
    (epoch 0.43)  eta 1:50

    With sparse layers also the load of the busiest expert in multiples of a balanced one, and what found no room.
    """
    parts = [
        f"step {numbers['step']:>{len(str(steps))}}/{steps}",
        f"loss {numbers['loss']:.4f}",
        f"lr {numbers['learning_rate']:.2e}",
        f"grad {numbers['grad_norm']:.2f}",
    ]
    if "reward" in numbers:
        parts.append(f"reward {numbers['reward']:.3f}")
    if "router_largest_load" in numbers:
        parts.append(f"load {numbers['router_largest_load']:.2f}x")
        if numbers["router_dropped"]:
            parts.append(f"dropped {100 * numbers['router_dropped']:.1f}%")
    if "tokens_per_second_per_device" in numbers:
        parts.append(f"{short_count(numbers['tokens_per_second_per_device'])} tok/s/device")
    if "mfu" in numbers:
        parts.append(f"mfu {100 * numbers['mfu']:.1f}% {peak_label}")
    parts.append(f"{memory_label} {numbers['memory_bytes'] / 1e9:.2f} GB")
    position = f"{short_count(numbers['tokens'])} tokens"
    parts.append(position + (f" (epoch {numbers['epoch']:.2f})" if "epoch" in numbers else ""))
    if seconds_per_step is not None:
        parts.append(f"eta {duration((steps - numbers['step']) * seconds_per_step)}")
    else:
        parts.append(f"first step {numbers['seconds']:.1f} s, compilation included")
    return "  ".join(parts)


def validation_line(numbers: Mapping[str, Any], *, steps: int) -> str:
    """The line of a validation: its loss in nats per token, bits per byte if known."""
    parts = [
        f"step {numbers['step']:>{len(str(steps))}}/{steps}",
        f"validation loss {numbers['validation_loss']:.4f}",
    ]
    if "validation_bits_per_byte" in numbers:
        parts.append(f"{numbers['validation_bits_per_byte']:.4f} bits per byte")
    for name in ("reward", "accuracy", "preference_accuracy"):
        if f"validation_{name}" in numbers:
            parts.append(f"{name.replace('_', ' ')} {numbers[f'validation_{name}']:.4f}")
    return "  ".join(parts)


def skipped_line(numbers: Mapping[str, Any], *, steps: int) -> str:
    """The line of a step that was left out as a loss spike."""
    values = [
        f"{title} {numbers[name]:.4g} (limit {numbers[f'{name}_limit']:.4g})"
        for name, title in (("loss", "loss"), ("grad_norm", "gradient norm"))
    ]
    return f"step {numbers['step']:>{len(str(steps))}}/{steps}  left out as a spike: " + ", ".join(values)


class Progress:
    """Prints the first step, every `log_every`-th one, the last one, every validation, and every step left out.

    If standard error is a terminal, a bar is kept below the lines; otherwise there are only the lines.
    """

    def __init__(self, *, first_step: int, steps: int, log_every: int, meter: Meter):
        self._steps, self._log_every, self._meter = steps, log_every, meter
        self._first: int | None = None
        self._bar: RichProgress | None = None
        if sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("training"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                redirect_stdout=sys.stdout.isatty(),  # lines appear above the bar; a piped output stays a pipe
                expand=True,
            )
            self._task = self._bar.add_task("training", total=steps, completed=first_step, loss="-")
            self._bar.start()

    def show(self, numbers: Mapping[str, Any]) -> None:
        """Shows one step; its numbers are complete (see `Meter.measure`)."""
        step = numbers["step"]
        self._first = step if self._first is None else self._first
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=f"{numbers['loss']:.4f}")
        if step % self._log_every == 0 or step in (self._first, self._steps):
            line = step_line(
                numbers,
                steps=self._steps,
                seconds_per_step=self._meter.seconds_per_step,
                memory_label=self._meter.memory_label,
                peak_label=self._meter.peak_label,
            )
            print(line, flush=True)
        if numbers.get("skipped"):
            print(skipped_line(numbers, steps=self._steps), flush=True)
        if "validation_loss" in numbers:
            print(validation_line(numbers, steps=self._steps), flush=True)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()


def short_count(number: float) -> str:
    """12345 -> 12.3k; counts below 1,000 are written out."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}" if number < 999.5 * size else f"{number / size:.0f}{letter}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """3725 -> 1:02:05; 65 -> 1:05."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
