"""An implementation in a process of its own, which computes on command and is stopped while the others measure.

Threads that spin between two commands (OpenMP's active waiting) would take the cores from the others: a process that is
not measuring gets SIGSTOP. Commands and answers are lines of JSON on pipes; whatever the libraries print goes to a log.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
REPOSITORY = Path(__file__).resolve().parents[2]


class WorkerFailed(Exception):
    """A worker's command raised, or its process ended; the text says what it printed last."""


class Worker:
    """Parent's side of one worker process."""

    def __init__(self, name: str, module: str, arguments: list[str], environment: Mapping[str, str], log: Path):
        self.name, self.log = name, log
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            start_new_session=True,  # so that a signal reaches the process alone, or all of its group
        )

    def call(self, command: str, **arguments: Any) -> Any:
        """Wakes the process, runs one command there, and stops the process again."""
        assert self._process.stdin and self._process.stdout
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"command": command, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerFailed(f"{self.name}: the process ended\n{self._last_lines()}")
        self._signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(f"{self.name}: {command}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        """Ends the process and what it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass

    def _last_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Child's side: answers commands on standard input until it closes. Ends with its parent, even while stopped."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of libraries must not end up between the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": commands[request["command"]](**request["arguments"])}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def timed(function: Callable[[], Any]) -> dict[str, float]:
    """Seconds on the clock, and seconds of processor time of all threads, of one call."""
    clock, processor = time.perf_counter(), time.process_time()
    function()
    return {"seconds": time.perf_counter() - clock, "processor_seconds": time.process_time() - processor}


def peak_bytes() -> int:
    """Largest resident memory that this process has had (VmHWM of Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def matmul_rate(multiply: Callable[[], Any], size: int, repeats: int = 5) -> float:
    """Floating-point operations per second of the fastest of `repeats` products of two [size, size] matrices."""
    multiply()
    return 2 * size**3 / min(timed(multiply)["seconds"] for _ in range(repeats))
