"""Where the numbers of a run go: metrics.jsonl, TensorBoard, Weights & Biases, and the terminal (progress.py)."""

import importlib.util
import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import jax

from zoo.errors import UserError
from zoo.training.progress import Meter, Progress


class Sink(Protocol):
    """Something that is given the numbers of every step, in order."""

    def write(self, numbers: Mapping[str, Any]) -> None:
        """Takes the numbers of one step; `numbers["step"]` is its number."""

    def close(self) -> None:
        """Writes what is still held back."""


class JsonLines:
    """One JSON object a line and step, flushed at once.

    Opened at `last_step`, it drops the lines of later steps and a half-written last line: a resumed run writes those
    steps again, so that the file is that of a run that never stopped. The old file stays until the new one is whole.
    """

    def __init__(self, path: str | Path, *, last_step: int):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for numbers, line in _read_lines(path) if numbers["step"] <= last_step]
        unfinished = path.with_name(path.name + ".unfinished")
        unfinished.write_text("".join(kept), encoding="utf-8")
        os.replace(unfinished, path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)

    def write(self, numbers: Mapping[str, Any]) -> None:
        """Appends one line; a float that JSON cannot hold (nan, inf) becomes null."""
        plain = {name: _for_json(value) for name, value in numbers.items()}
        self._file.write(json.dumps(plain, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The numbers of every step in a metrics.jsonl; a line that was not finished is left out."""
    return [numbers for numbers, _ in _read_lines(Path(path))]


def last_step(path: str | Path) -> int:
    """The step of the last whole line of a metrics.jsonl, from its end; 0 if there is none."""
    path = Path(path)
    if not path.is_file():
        return 0
    size, part = path.stat().st_size, 2**16
    while True:  # the loads of many layers and experts make long lines
        with open(path, "rb") as file:
            file.seek(max(0, size - part))
            lines = _whole_lines(file.read().decode("utf-8", errors="replace"))
        if lines or part >= size:
            return lines[-1][0]["step"] if lines else 0
        part *= 8


class TensorBoard:
    """Scalars for TensorBoard. What an earlier process wrote after `last_step` is hidden by the program."""

    def __init__(self, folder: str | Path, *, last_step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1)

    def write(self, numbers: Mapping[str, Any]) -> None:
        """Adds every number as `train/NAME`, `validation_NAME` as `validation/NAME`; no arrays."""
        for name, value in numbers.items():
            if name != "step" and value is not None and not isinstance(value, list):
                self._writer.add_scalar(_tag(name), value, numbers["step"])

    def close(self) -> None:
        """Writes what is buffered."""
        self._writer.close()


class WeightsAndBiases:
    """One run of a Weights & Biases project; resuming the run directory resumes the same run there."""

    def __init__(self, project: str, run: Path, config: Mapping[str, Any]):
        _require_wandb()
        import wandb

        identity = run / "wandb" / "run_id"
        identity.parent.mkdir(parents=True, exist_ok=True)
        if not identity.is_file():
            identity.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project=project, name=run.name, dir=str(run), id=identity.read_text(), resume="allow", config=dict(config)
        )

    def write(self, numbers: Mapping[str, Any]) -> None:
        """Logs the numbers under the names that TensorBoard shows. A step that it already has is ignored there."""
        scalars = {name: value for name, value in numbers.items() if name != "step" and not isinstance(value, list)}
        self._run.log({_tag(name): value for name, value in scalars.items()}, step=numbers["step"])

    def close(self) -> None:
        """Uploads the rest."""
        self._run.finish()


class Record:
    """Takes the numbers of each step from the loop: adds speed, MFU and memory, writes to the sinks, shows progress."""

    def __init__(self, meter: Meter, sinks: Sequence[Sink], progress: Progress | None):
        self._meter, self._sinks, self._progress = meter, sinks, progress

    def __call__(self, numbers: Mapping[str, Any]) -> None:
        """Takes the numbers of one step: `step`, `loss`, `seconds`, `step_tokens`, ... and optionally `epoch`."""
        numbers = {**numbers, **self._meter.measure(numbers)}
        for sink in self._sinks:
            sink.write(numbers)
        if self._progress is not None:
            self._progress.show(numbers)

    def __enter__(self) -> "Record":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.close()
        for sink in self._sinks:
            sink.close()


def open_record(
    run: str | Path,
    *,
    first_step: int,
    steps: int,
    log_every: int,
    flops_per_token: float,
    devices: Iterable[Any],
    tensorboard: bool = True,
    wandb: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Record:
    """The record of a run in the folder `run`; only the first process writes and shows anything.

    Args:
        run: gets metrics.jsonl and, if asked for, tensorboard/ and wandb/.
        first_step: steps that the restored state has behind it (0 for a new run); later ones are written again.
        steps: of the whole run.
        log_every: steps between two lines on the terminal.
        flops_per_token: of a forward pass, for MFU; 0 shows no MFU.
        devices: all devices of the mesh, of all processes.
        tensorboard: whether to write RUN/tensorboard.
        wandb: project of Weights & Biases, None for none.
        config: the run's configuration, for Weights & Biases.

    Raises:
        UserError: wandb is asked for and not installed.
    """
    meter = Meter(list(devices), flops_per_token)
    if wandb is not None:
        _require_wandb()
    if jax.process_index() != 0:
        return Record(meter, (), None)
    run = Path(run)
    sinks: list[Sink] = [JsonLines(run / "metrics.jsonl", last_step=first_step)]
    if tensorboard:
        sinks.append(TensorBoard(run / "tensorboard", last_step=first_step))
    if wandb is not None:
        sinks.append(WeightsAndBiases(wandb, run, config or {}))
    return Record(meter, sinks, Progress(first_step=first_step, steps=steps, log_every=log_every, meter=meter))


def _require_wandb() -> None:
    if importlib.util.find_spec("wandb") is None:
        raise UserError("wandb is asked for and not installed: pip install wandb, or leave it out")


def _read_lines(path: Path) -> list[tuple[dict[str, Any], str]]:
    """(numbers, line) of every whole line with a step."""
    return _whole_lines(path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "")


def _whole_lines(text: str) -> list[tuple[dict[str, Any], str]]:
    found = []
    for line in text.splitlines(keepends=True):
        try:
            numbers = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and isinstance(numbers, dict) and isinstance(numbers.get("step"), int):
            found.append((numbers, line))
    return found


def _tag(name: str) -> str:
    return f"validation/{name.removeprefix('validation_')}" if name.startswith("validation_") else f"train/{name}"


def _for_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_for_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
