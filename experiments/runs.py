"""Runs of an experiment that take a process each: progress on the terminal, output in a log, failures in one line."""

import datetime
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from zoo.errors import UserError


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
