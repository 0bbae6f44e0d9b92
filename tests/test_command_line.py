import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from zoo.command_line import parse_command
from zoo.errors import UserError


@dataclass(frozen=True)
class Command:
    """Does something."""

    folder: Path
    """Where."""
    names: tuple[str, ...] = ()
    """Which."""
    count: int = 1
    """How often."""
    kind: Literal["a", "b"] = "a"
    """What kind."""


def parse(*argv: str) -> Command:
    return parse_command(Command, "zoo.something", argv)


def test_fields_are_options():
    assert parse("--folder", "x", "--names", "one", "two three", "--count", "-2") == Command(
        Path("x"), ("one", "two three"), -2
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], ["--folder"]),
        (["--folder", "x", "--cuont", "2"], ["--cuont", "--count"]),
        (["--folder", "x", "--count", "two"], ["--count", "'two'"]),
        (["--folder", "x", "--kind", "c"], ["--kind", "c", "a", "b"]),
        (["--folder", "x", "--names", "a", "--names", "b"], ["--names is given 2 times"]),
        (["--folder", "x", "stray"], ["stray"]),
    ],
    ids=str,
)
def test_wrong_arguments_are_one_line_that_names_them(argv, said):
    with pytest.raises(UserError) as raised:
        parse(*argv)
    for part in said:
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not set(str(raised.value)) & set("│╭╮╰╯─")


def test_help_goes_to_standard_output(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "How often." in out
    assert "--folder" in out


ENDED_WHILE_WRITING = """
from zoo.errors import UserError, run_command

async def write(): pass

def main():
    global never_begun
    never_begun = write()  # collected when the interpreter ends
    raise UserError("the disk is full")

run_command(main)
"""


def test_wrong_input_is_one_line_whatever_was_never_begun():
    done = subprocess.run([sys.executable, "-c", ENDED_WHILE_WRITING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: the disk is full\n")
