"""Errors that are the user's to mend, and the commands' exit codes: 0 done, 2 wrong input, 75 run the same command
again, 1 anything else."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Wrong input. The message is one line: what is wrong, where, and what would be right."""


class TryAgain(Exception):
    """Something outside of this process failed, and may work another time. The message is one line."""


TRY_AGAIN = 75
"""Exit code EX_TEMPFAIL of sysexits.h, on which a launcher should run the same command again."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A hint such as ``did you mean 'gemma2-9b'? (known: ...)`` for a name that is not among `known`."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"(known: {', '.join(known)})"


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's `main`; a `UserError` becomes one line on standard error and exit code 2, a `TryAgain` one line
    and exit code 75."""
    try:
        main()
    except (UserError, TryAgain) as error:
        # What failed in other writes of the same checkpoint is said by asyncio when its tasks are collected; the
        # interpreter says which were not begun.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else TRY_AGAIN)
    except BrokenPipeError:
        sys.exit(1)
