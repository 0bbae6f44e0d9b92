"""Stopping between two steps: what asks for it, that all processes do it together, and what the launcher is told.

SIGTERM     a preemption or a maintenance notice: spot machines, Kubernetes, `scancel`, a TPU's host
SIGUSR1     what SLURM sends before the time limit (`sbatch --signal=USR1@300`)
SIGINT      Ctrl-C: somebody wants the run to stop, and to stay stopped

After the first two the command ends with exit code 75 (`zoo.errors.TRY_AGAIN`), after the last one with 0. With several
processes JAX's preemption service watches SIGTERM on each of them and has all stop after the same step.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class StopRequest:
    """Notices the signals above so that the loop can finish its step; a second one ends the process at once."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._preempted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            # With several processes SIGTERM belongs to JAX's service.
            own = (signal.SIGINT, signal.SIGUSR1)
            for signum in own if jax.process_count() > 1 else (*own, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._restore()

    def requested(self, step: int) -> bool:
        """Whether to stop after `step` steps. Ask before every step, on every process: they answer alike."""
        if jax.process_count() == 1:
            self._preempted = self._received not in (None, signal.SIGINT)
            return self._received is not None
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        interrupted = multihost_utils.process_allgather(np.int32(self._received == signal.SIGINT))
        self._preempted = not np.any(interrupted)
        return True

    @property
    def preempted(self) -> bool:
        """Whether a machine asked for the stop, not a person: the launcher should run the command again."""
        return self._preempted

    def _receive(self, signum: int, _frame: FrameType | None) -> None:
        if self._received is not None:
            self._restore()
            os.kill(os.getpid(), signum)
        elif jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # tells the other processes
        self._received = signum

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}
