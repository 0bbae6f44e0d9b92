"""A line of progress: on a terminal a bar that is written over, elsewhere a line for each cell."""

import sys
import time
from typing import TextIO

from experiments.long_context_recall.report import duration

WIDTH = 24
"""Characters of the bar."""


class Progress:
    """Knows how much of the predicted time is done, in the prediction's own seconds."""

    def __init__(self, predicted: float, stream: TextIO | None = None):
        self.predicted, self.done = max(predicted, 1e-9), 0.0
        self.stream = stream or sys.stderr
        self.began = self.written = time.perf_counter()

    def show(self, what: str, part: float) -> None:
        """`part` = predicted seconds of the cell at hand that are done; a bar at most ten times a second."""
        if not self.stream.isatty() or time.perf_counter() - self.written < 0.1:
            return
        self.written = time.perf_counter()
        share = min((self.done + part) / self.predicted, 1.0)
        bar = "#" * round(WIDTH * share)
        self.stream.write(f"\r[{bar:.<{WIDTH}}] {share:4.0%} {what}, {self._left(share)}\x1b[K")
        self.stream.flush()

    def finish(self, what: str, seconds: float) -> None:
        """A cell whose prediction was so many seconds is done."""
        self.done += seconds
        share = min(self.done / self.predicted, 1.0)
        start = "\r\x1b[K" if self.stream.isatty() else ""
        self.stream.write(f"{start}{share:4.0%} {what}, {self._left(share)}\n")
        self.stream.flush()

    def _left(self, share: float) -> str:
        spent = time.perf_counter() - self.began
        return f"{duration(spent)}, about {duration(spent * (1 - share) / max(share, 1e-3))} left"
