"""How fast new tokens come."""

import sys
import time
from collections.abc import Sequence


class Meter:
    """Counts new tokens, and the time from the first ones on (what comes before is mostly compilation)."""

    def __init__(self, rows: int, stop_tokens: Sequence[int]):
        self._stop_tokens = set(stop_tokens)
        self._running = [True] * rows
        self._start = time.perf_counter()
        self._first: float | None = None
        self._total = self._after_first = 0

    def count(self, tokens) -> None:
        """Takes one step's tokens [B]; rows that have stopped do not count."""
        new = sum(self._running)
        self._running = [on and int(t) not in self._stop_tokens for on, t in zip(self._running, tokens, strict=True)]
        self._total += new
        if self._first is None:
            self._first = time.perf_counter()
        else:
            self._after_first += new

    def report(self) -> None:
        """One line on standard error."""
        if self._first is None:
            return
        line = f"{self._total} new tokens, the first after {self._first - self._start:.2f} s (compilation included)"
        if self._after_first:
            line += f", then {self._after_first / (time.perf_counter() - self._first):.1f} tokens/s"
        print(line, file=sys.stderr)
