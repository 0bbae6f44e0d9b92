"""A run's folder: where everything lies, `run.json`, the lock, and what a path given by the user turns out to be.

RUN/run.json           which model, execution, tokenizer and configuration this run has (written before step 1)
RUN/tokenizer/         the tokenizer's own file
RUN/checkpoints/STEP/  one folder for each saved step (zoo.training.checkpoints)
RUN/damaged/STEP/      checkpoints that failed their checks when the run was resumed; nothing is deleted
RUN/metrics.jsonl, loss.png, goodput.json, goodput.png, tensorboard/, profile/
"""

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import jax

from zoo.errors import UserError

FORMAT = 1


@dataclass(frozen=True)
class RunInfo:
    """What `run.json` (or, for a lone checkpoint folder, its `meta` item) says, and which steps were saved."""

    path: Path
    """The run directory, or the folder that holds the lone checkpoint."""
    recipe: str
    """Name of the recipe that started the run."""
    model_dict: dict[str, Any]
    """The model's configuration as a dictionary, its architecture's name included."""
    execution_dict: dict[str, Any]
    """How the model was computed (dtypes, scanned or unrolled layers); decides the layout of the saved parameters."""
    tokenizer_fingerprint: str | None
    """SHA-256 of the tokenizer's model, None for a run without one."""
    tokenizer_dir: Path | None
    """Folder with the tokenizer's file, None if there is none."""
    steps: tuple[int, ...] = ()
    """Saved steps in rising order; a damaged one may be among them."""
    config: dict[str, Any] = field(default_factory=dict)
    """The complete recipe as a dictionary, to be compared when the run is resumed."""


def checkpoints_dir(run: str | Path) -> Path:
    """The folder of a run that holds its checkpoints."""
    return Path(run) / "checkpoints"


def tokenizer_dir(run: str | Path) -> Path:
    """The folder of a run that holds its tokenizer."""
    return Path(run) / "tokenizer"


def saved_steps(folder: str | Path) -> tuple[int, ...]:
    """The committed steps in a `checkpoints` folder, rising. A save in progress has a longer name and is not listed."""
    folder = Path(folder)
    if not folder.is_dir():
        return ()
    return tuple(sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit() and child.is_dir()))


def is_run_dir(path: str | Path) -> bool:
    """Whether `path` is a run directory of `zoo.train`."""
    return (Path(path) / "run.json").is_file()


def is_step_dir(path: str | Path) -> bool:
    """Whether `path` is the folder of one saved step."""
    path = Path(path)
    return path.name.isdigit() and (path / "params").is_dir()


def is_checkpoint_dir(path: str | Path) -> bool:
    """Whether `path` is the folder of one saved step, or a folder that holds such folders."""
    path = Path(path)
    return is_step_dir(path) or any(is_step_dir(path / str(step)) for step in saved_steps(path))


def wait_until_seen(path: Path, seconds: float = 60.0) -> None:
    """Waits for what another host has written: network file systems show it late.

    Raises:
        UserError: it never comes.
    """
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"process {jax.process_index()} does not see {path}, which process 0 sees: "
                "the run directory must lie on a file system that all hosts share"
            )
        time.sleep(0.5)


def write_json_atomically(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON so that at any moment the file is the old one or the new one, and never half of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def run_description(info: RunInfo) -> dict[str, Any]:
    """The content of `run.json`; every checkpoint carries it too."""
    return {
        "format": FORMAT,
        "recipe": info.recipe,
        "model": info.model_dict,
        "execution": info.execution_dict,
        "tokenizer_fingerprint": info.tokenizer_fingerprint,
        "config": info.config,
    }


def write_run(info: RunInfo) -> None:
    """Writes `run.json` of `info.path`."""
    write_json_atomically(info.path / "run.json", run_description(info))


def read_run(path: str | Path) -> RunInfo:
    """Reads what is known about a run directory, its `checkpoints` folder or one STEP folder of it.

    A STEP folder that was copied away from its run still carries its configuration, though no tokenizer.

    Raises:
        UserError: `path` is none of these, or its description cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    step = int(path.name) if is_step_dir(path) else None
    folder = path.parent if step is not None else path
    run = folder.parent if folder.name == "checkpoints" and is_run_dir(folder.parent) else folder
    steps = saved_steps(checkpoints_dir(run)) if is_run_dir(run) else saved_steps(folder)
    steps = (step,) if step is not None else steps
    if is_run_dir(run):
        described = _read_description(run / "run.json")
    elif is_checkpoint_dir(path):
        described = _read_description(folder / str(steps[-1]) / "meta" / "metadata")
    else:
        raise UserError(f"{path} is neither a run directory (no run.json) nor a checkpoint of one (no params folder)")
    tokenizer = tokenizer_dir(run)
    return RunInfo(
        path=run,
        recipe=described.get("recipe", ""),
        model_dict=described["model"],
        execution_dict=described["execution"],
        tokenizer_fingerprint=described.get("tokenizer_fingerprint"),
        tokenizer_dir=tokenizer if tokenizer.is_dir() else None,
        steps=steps,
        config=described.get("config", {}),
    )


def _read_description(path: Path) -> dict[str, Any]:
    """The JSON object that describes a run; a checkpoint's `meta` item holds it under the key "run"."""
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        described = described.get("run", described)
        found = described.get("format", FORMAT)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as the description of a run: {error}") from None
    if found != FORMAT:
        raise UserError(f"{path} has format {found!r}, this version reads format {FORMAT}")
    if not isinstance(described.get("model"), dict) or not isinstance(described.get("execution"), dict):
        raise UserError(f"{path} does not describe a run: it has no 'model' or no 'execution'")
    return described


class RunLock:
    """Keeps a second run from training into the same folder; the system frees it when the process dies. Of a run of
    several processes the first one holds it."""

    def __init__(self, run: str | Path):
        """Raises `UserError` if another run holds the run directory."""
        self._file: IO[str] | None = None
        if jax.process_index() != 0:
            return
        path = Path(run) / ".lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a")  # noqa: SIM115 (held for as long as the run trains)
        except OSError as error:
            raise UserError(f"run directory {run} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"another process is training in {run}: wait for it or choose another --run-dir") from None
        except OSError:
            pass  # a file system without locks: training must still be possible there

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._file is not None:
            self._file.close()
