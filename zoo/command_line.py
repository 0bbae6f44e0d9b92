"""Command lines generated from frozen dataclasses: one field, one option, its docstring the help."""

import contextlib
import io
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeVar

from zoo.errors import UserError

Command = TypeVar("Command")

AttentionName = Literal["reference", "xla", "pallas_tpu", "pallas_gpu"]
"""Implementations of `zoo.kernels.dot_product_attention` that serve every layer of a model."""
BOX = "│╭╮╰╯─ "


def parse_command(command: type[Command], prog: str, argv: Sequence[str] | None = None) -> Command:
    """The `command` dataclass that the arguments spell; --help exits 0; wrong ones raise a one-line `UserError`."""
    import tyro

    argv = sys.argv[1:] if argv is None else list(argv)
    counts = Counter(argument.partition("=")[0] for argument in argv if argument.startswith("--"))
    repeated = [name for name, count in counts.items() if count > 1 and name != "--"]
    if repeated:
        # The parser would take the last one and drop the others without a word.
        raise UserError(
            f"{repeated[0]} is given {counts[repeated[0]]} times; several values go after one {repeated[0]}"
        )

    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(command, prog=prog, args=argv)
    except SystemExit as stop:
        if stop.code in (0, None):
            sys.stderr.write(captured.getvalue())
            raise
        raise UserError(f"{_one_line(captured.getvalue())} (python -m {prog} --help lists the options)") from None


def _one_line(boxed: str) -> str:
    """tyro's boxed message without its frame, title and help texts."""
    sections: list[list[str]] = [[]]
    for line in boxed.splitlines():
        text = line.strip(BOX)
        if line.startswith(("╭", "╰")):
            continue
        if text:
            sections[-1].append(text)
        else:
            sections.append([])
    said = [" ".join(lines) for lines in sections if lines]
    return ". ".join(text for text in said if not text.startswith(("For full helptext", "Argument helptext")))
