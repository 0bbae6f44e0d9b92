"""A trace of some steps of a run."""

from pathlib import Path
from typing import Any

import jax


class ProfileWindow:
    """Traces some steps, after those that compile and warm up."""

    def __init__(self, folder: Path, first: int, steps: int):
        self._folder, self._first, self._steps = folder, first, steps
        self._running = False

    def __enter__(self) -> "ProfileWindow":
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Call before step `step` + 1."""
        if self._steps and step == self._first:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        """Call after step `step` with something that is computed by it."""
        if self._running and step == self._first + self._steps:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
