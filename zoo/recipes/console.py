"""What a command says: results on standard output, warnings of the library as one line each on standard error."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import jax

from zoo.training.replay import ReplayMismatch


def say(text: str) -> None:
    """Prints on standard output, by the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def show_logs() -> None:
    """Shows the library's warnings, and what it reports once (which attention is used), on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    logger = logging.getLogger("zoo")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO if jax.process_index() == 0 else logging.ERROR)
    # What goes wrong in a background save is raised where it is waited for; the libraries' logs would say it twice.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    sys.unraisablehook = _ignore_late_callbacks


@contextlib.contextmanager
def replay_mismatch_in_one_line() -> Iterator[None]:
    """A failed replay check ends the command with one line and exit code 1: no input is wrong, and the same command on
    the same machines may well fail again."""
    try:
        yield
    except ReplayMismatch as mismatch:
        print(f"error: {mismatch}", file=sys.stderr, flush=True)
        sys.exit(1)


def _ignore_late_callbacks(unraisable: Any) -> None:
    """When one array of a save fails, the storage library's callbacks for the others find their event loop closed."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
        sys.__unraisablehook__(unraisable)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(record.getMessage().split())
        return f"warning: {text}" if record.levelno >= logging.WARNING else text
