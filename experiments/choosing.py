"""What a study's command line chooses: arms by name, and seeds; and that line as a report has it."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from experiments.shared_folder import named
from zoo.errors import UserError, nearest_name

One = TypeVar("One")


def choose(name: str, known: Mapping[str, One], option: str = "--arms") -> One:
    """What has the name. Raises `UserError` that names the option and the nearest name."""
    if name not in known:
        raise UserError(f"{option}: {name!r} is unknown; {nearest_name(name, list(known))}")
    return known[name]


def seeds_of(text: str, default: Sequence[int] = ()) -> tuple[int, ...]:
    """ "0,1,2" as numbers; "" is the default. Raises `UserError` for anything else."""
    parts = [part.strip() for part in text.split(",")] if text else [str(seed) for seed in default]
    if not all(part.isdigit() for part in parts) or len(set(parts)) != len(parts):
        raise UserError(f"--seeds: need different whole numbers with commas between them, like 0,1,2; got {text!r}")
    return tuple(map(int, parts))


def command_line(module: str, arguments: Sequence[str] | None = None) -> str:
    """`python -m module arguments` (default: this process's) as a shell takes it, absolute paths by their last two
    parts: where they lie on this machine is nobody's business."""
    given = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["python", "-m", module, *(named(part) if Path(part).is_absolute() else part for part in given)])
