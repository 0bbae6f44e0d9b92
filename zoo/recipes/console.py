"""What a command says: results on standard output, warnings of the library as one line each on standard error."""

import logging

import jax


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


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(record.getMessage().split())
        return f"warning: {text}" if record.levelno >= logging.WARNING else text
