"""Goodput: the share of a run's wall-clock time, restarts included, that went into training steps that count.

RUN/goodput.json holds, for every start of the run, the seconds by cause. Each second belongs to one cause:

    step         the devices computed a step that had not been done before
    redone       they computed a step again that a kill had lost
    start        from the start of the command to the end of its first step: reading, restoring, compiling
    data         the devices had finished a step and the next batch was not there
    checkpoint   the loop waited for a save (what is written in the background costs nothing)
    evaluation   validation
    replay       the second run of checked steps, and their comparison (zoo.training.replay)
    other        the devices were idle for any other reason
    down         nothing ran: from the last sign of life of one start to the beginning of the next

Goodput is step / (sum of all), as in Google's "ML productivity goodput", with the time between the starts in it. The
clock is that of the first process. A killed process leaves the file as it was up to ten seconds before; those seconds
count as down.
"""

import contextlib
import json
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax

from zoo.training.progress import duration
from zoo.training.run_directory import write_json_atomically

logger = logging.getLogger(__name__)

CAUSES = {
    "step": "training steps",
    "redone": "steps done again",
    "start": "start and compilation",
    "data": "waiting for data",
    "checkpoint": "saving",
    "evaluation": "validation",
    "replay": "replay checks",
    "other": "other idle time",
    "down": "not running",
}
"""Every cause, and its name for people."""

WRITE_EVERY = 10.0
"""Seconds between two writings of the file."""


class Goodput:
    """The account of one run. The loop says what happened until when (`time.perf_counter`), in order of time."""

    def __init__(self, run: str | Path, *, first_step: int, began: float | None = None, last_written: int = 0):
        """Goes on with the account of the run directory `run`.

        Args:
            first_step: steps that the restored state has behind it.
            began: when the command started (`time.time`); now if None.
            last_written: the last step that an earlier start wrote down, which may be one that it then lost.
        """
        self._path = Path(run) / "goodput.json"
        self._earlier = _read(self._path)
        now, self._mark = time.time(), time.perf_counter()
        self._unix_minus_clock = now - self._mark
        last_end = max((start["ended"] for start in self._earlier), default=0.0)
        began = max(now if began is None else min(began, now), last_end)
        self._mark = began - self._unix_minus_clock
        self._reached = max([last_written, *(start["last_step"] for start in self._earlier)])
        self._start: dict[str, Any] = {
            "began": began, "ended": began, "first_step": first_step, "last_step": first_step, "seconds": {},
        }  # fmt: skip
        self._started = False
        self._down = _down_seconds([*self._earlier, self._start])
        self._before = {cause: _sum(self._earlier, cause) for cause in CAUSES}
        self._next_write = self._mark + WRITE_EVERY

    def spend(self, cause: str, until: float) -> None:
        """The time since the last call, up to `until`, went to `cause`. An earlier `until` changes nothing."""
        seconds = until - self._mark
        if seconds > 0:
            cause = cause if self._started else "start"
            self._start["seconds"][cause] = self._start["seconds"].get(cause, 0.0) + seconds
            self._start["ended"] = until + self._unix_minus_clock
            self._mark = until

    def step(self, number: int, *, fetched: float, dispatched: float, done: float) -> None:
        """Step `number`: when its batch had been read, when it was given to the devices, when they had done it."""
        self.spend("data", min(fetched, dispatched))
        self.spend("other", dispatched)
        self.spend("redone" if number <= self._reached else "step", done)
        self._started = True
        self._start["last_step"] = number
        if self._mark > self._next_write:
            self.write()

    @contextlib.contextmanager
    def spending(self, cause: str, *, fetched: float = 0.0) -> Iterator[None]:
        """What happens inside goes to `cause`, also if it fails; `fetched` is when the next batch had been read."""
        self.spend("data", fetched)
        self.spend("other", time.perf_counter())
        try:
            yield
        finally:
            self.spend(cause, time.perf_counter())

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by cause, over all starts so far."""
        now = self._start["seconds"]
        return {cause: self._before[cause] + now.get(cause, 0.0) for cause in CAUSES} | {"down": self._down}

    @property
    def fraction(self) -> float:
        """step / (sum of all); 0 before anything happened."""
        seconds = self.seconds
        return seconds["step"] / (sum(seconds.values()) or 1.0)

    @property
    def starts(self) -> list[dict[str, Any]]:
        """`began` and `ended` (seconds since 1970), `first_step`, `last_step` and `seconds` by cause of each start."""
        return [*self._earlier, self._start]

    def write(self) -> None:
        """Writes the file now (the first process does)."""
        self._next_write = time.perf_counter() + WRITE_EVERY
        if jax.process_index() == 0:
            seconds = self.seconds
            summary = {"goodput": self.fraction, "wall_seconds": sum(seconds.values()), "seconds": seconds}
            try:
                write_json_atomically(self._path, summary | {"starts": self.starts})
            except OSError as error:  # a full disk is told by what matters more than this file
                logger.warning("%s cannot be written: %s", self._path, error.strerror or error)

    def close(self) -> None:
        """What happened since the last call is idle time; writes the file."""
        self.spend("other", time.perf_counter())
        self.write()

    def table(self) -> str:
        """The account in lines, the largest cause first."""
        seconds, starts = self.seconds, len(self.starts)
        wall = sum(seconds.values()) or 1.0
        counted = f", {starts} starts" if starts > 1 else ""
        rows = [f"goodput {100 * self.fraction:.1f} % of {readable_time(wall)}{counted}"]
        for cause, spent in sorted(seconds.items(), key=lambda item: -item[1]):
            if spent >= 0.0005 * wall:
                rows.append(f"  {CAUSES[cause]:<24}{readable_time(spent):>12}{100 * spent / wall:>8.1f} %")
        return "\n".join(rows)


class StepClock:
    """Notices when steps end, on a thread that waits for them while the loop reads the next batch."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Any, Future[float]] | None] = queue.SimpleQueue()
        # A daemon: it never keeps a process alive that waits for devices which no longer answer.
        threading.Thread(target=self._wait, name="step-clock", daemon=True).start()

    def watch(self, arrays: Any) -> "Future[float]":
        """Will be the `time.perf_counter` at which the arrays were computed; their error if they could not be."""
        end: Future[float] = Future()
        self._waiting.put((arrays, end))
        return end

    def close(self) -> None:
        """Ends the thread once it has seen what it was given."""
        self._waiting.put(None)

    def _wait(self) -> None:
        while (item := self._waiting.get()) is not None:
            arrays, end = item
            try:
                jax.block_until_ready(arrays)
                end.set_result(time.perf_counter())
            except Exception as error:
                end.set_exception(error)


def readable_time(seconds: float) -> str:
    """3725 -> 1:02:05; 12.34 -> 12.3 s."""
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def _read(path: Path) -> list[dict[str, Any]]:
    """The starts in a goodput.json; none, with a warning, if it cannot be read: no run should fail for its clock."""
    if not path.is_file():
        return []
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
        return [{**start, "seconds": dict(start["seconds"]), "ended": float(start["ended"])} for start in starts]
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s): goodput is counted from now on", path, error)
        return []


def _sum(starts: list[dict[str, Any]], cause: str) -> float:
    return sum(start["seconds"].get(cause, 0.0) for start in starts)


def _down_seconds(starts: list[Mapping[str, Any]]) -> float:
    return sum(max(0.0, after["began"] - before["ended"]) for before, after in zip(starts, starts[1:]))
