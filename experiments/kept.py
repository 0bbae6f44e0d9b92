"""Results of runs that are kept: one JSON for each, signed with a digest of everything that it comes from."""

import hashlib
import json
from pathlib import Path
from typing import Any

from experiments.runs import write_json
from zoo.errors import UserError

MADE_WITH = "made_with"
"""The field of a result's JSON that has the digest."""


def digest(parts: Any) -> str:
    """16 hexadecimal digits of anything that JSON can write: the same settings have the same ones on any machine."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def write_signed(fields: dict[str, Any], made_with: str, path: Path) -> None:
    """The result and its digest as one JSON, the file whole or not at all."""
    write_json({MADE_WITH: made_with, **fields}, path)


def sign(unsigned: Path, made_with: str, path: Path) -> None:
    """Moves what a worker has written to where results are kept."""
    write_signed(json.loads(unsigned.read_text()), made_with, path)
    unsigned.unlink()


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a result without its digest; of one that is not signed yet, all."""
    fields = json.loads(path.read_text())
    fields.pop(MADE_WITH, None)
    return fields


def check_made_with(path: Path, made_with: str, others: str) -> None:
    """Raises `UserError` if the result that is there has another digest, or none. others: what may be another, as in
    "other sizes or data"."""
    if path.is_file() and json.loads(path.read_text()).get(MADE_WITH) != made_with:
        raise UserError(f"{path} was made with {others}: remove it, or give another --results")
