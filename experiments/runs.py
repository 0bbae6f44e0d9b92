"""Runs of an experiment that take a process each: progress on the terminal, output in a log, failures in one line."""

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
BENCHMARKS = REPOSITORY / "docs" / "benchmarks"
"""Where reports and results lie that are committed."""


def say(text: str) -> None:
    """A line of progress, with the time of day."""
    print(f"[{datetime.datetime.now():%H:%M:%S}] {text}", flush=True)


def run_in_process(name: str, module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """`python -m module arguments` with this environment, its output appended to `log`; says how long it took.

    Raises:
      UserError: it ended with another exit code than 0; names the run, the code and the log.
    """
    began = time.time()
    command = [sys.executable, "-m", module, *arguments]
    with open(log, "a") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise UserError(f"{name} ended with exit code {done.returncode}; {log} says why. Run the same command again")
    say(f"  {time.time() - began:.0f} s")


def worker_environment(out: Path) -> dict[str, str]:
    """Of a run in a process of its own: compiled programs are kept in the folder for the runs of other seeds."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    cache = {"JAX_COMPILATION_CACHE_DIR": str(out / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1"}
    return {**cache, **os.environ, "PYTHONPATH": path}


def single_thread() -> dict[str, str]:
    """Variables of a process that shares the machine with others of its kind: with threads of its own it would take
    turns with them, and small products gain nothing from threads."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    return {"XLA_FLAGS": flags.strip(), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def write_json(value: Any, path: Path) -> None:
    """One line of JSON, the file whole or not at all: what is there, is a finished result."""
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")  # two commands may write the same at once
    unfinished.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.rename(path)
