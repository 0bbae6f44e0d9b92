"""From paths, folders and globs to the list of files to read."""

import glob
import os
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import UserError

TEXT_KINDS = (".txt", ".jsonl")
COMPRESSIONS = (".gz", ".xz", ".zst")
SUPPORTED = ".txt, .jsonl (each also .gz, .xz, .zst) and .parquet"

# Tests are a third of the library's bytes and unlike the rest; the tables under encodings/ and pydoc_data/ are
# generated.
NOT_STANDARD_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}
NOT_SOURCE_TEXT = {"test", "tests", "idle_test", "encodings", "pydoc_data"}


@dataclass(frozen=True)
class File:
    """A file to read. `name` is its path below what the user named, so that moving the data keeps the split."""

    path: Path
    name: str
    kind: str
    """.txt, .jsonl or .parquet"""
    compression: str = ""
    """"", .gz, .xz or .zst"""


def kind_of(path: Path) -> tuple[str, str] | None:
    """(kind, compression) of a file by its name, None if it is not a supported one."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if not suffixes:
        return None
    if suffixes[-1] == ".parquet" or suffixes[-1] in TEXT_KINDS:
        return suffixes[-1], ""
    if len(suffixes) > 1 and suffixes[-1] in COMPRESSIONS and suffixes[-2] in TEXT_KINDS:
        return suffixes[-2], suffixes[-1]
    return None


def find_files(entry: str) -> tuple[list[File], int]:
    """The supported files of one path, folder (with its subfolders) or glob, sorted by path, and how many were passed
    over because of their extension. Hidden files and folders are not looked at. Raises `UserError` if there is
    nothing to read."""
    path = Path(entry).expanduser()
    if path.is_dir():
        return _files_below(path, _visible_files(path), f"{entry}: no {SUPPORTED} file in this folder")
    if path.exists():
        return [_named_file(path)], 0
    if glob.has_magic(entry):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise UserError(f"{entry}: no file matches this pattern")
        files = [inner for match in matches for inner in (_visible_files(match) if match.is_dir() else [match])]
        return _files_below(_fixed_prefix(path), files, f"{entry}: no {SUPPORTED} file matches this pattern")
    raise UserError(f"{entry}: no such file or folder")


def standard_library() -> list[File]:
    """Every .py file of the running Python's standard library but tests and generated tables, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = NOT_STANDARD_LIBRARY | NOT_SOURCE_TEXT
    paths = _walk(root, lambda name: name in skipped)
    files = [File(path, path.relative_to(root).as_posix(), ".txt") for path in paths if path.suffix == ".py"]
    if not files:
        version = ".".join(map(str, sys.version_info[:2]))
        raise UserError(f"{root}: this Python {version} has no standard library in source form; name your own data")
    return files


def _named_file(path: Path) -> File:
    if not path.is_file():
        raise UserError(f"{path}: neither a regular file nor a folder")
    found = kind_of(path)
    if found is None:
        hint = " (one JSON object on each line: name it .jsonl)" if path.suffix.lower() == ".json" else ""
        raise UserError(f"{path}: unsupported extension{hint}; supported are {SUPPORTED}")
    return File(path, path.name, *found)


def _files_below(root: Path, paths: list[Path], nothing_found: str) -> tuple[list[File], int]:
    unique = dict.fromkeys(path for path in paths if path.is_file())
    files = [
        File(path, path.relative_to(root).as_posix(), *found) for path in unique if (found := kind_of(path)) is not None
    ]
    if not files:
        raise UserError(nothing_found)
    return files, len(unique) - len(files)


def _visible_files(folder: Path) -> list[Path]:
    return _walk(folder, lambda name: name.startswith("."))


def _walk(folder: Path, leave_out: Callable[[str], bool]) -> list[Path]:
    """Files below a folder, sorted, links followed; names of files and folders may be left out."""
    files, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not leave_out(name)]
        files += [] if real in seen else [Path(parent, name) for name in names if not leave_out(name)]
        seen.add(real)
    return sorted(files)


def _fixed_prefix(pattern: Path) -> Path:
    """The folders of a glob before its first wildcard."""
    fixed = Path(pattern.anchor)
    for part in pattern.parts[len(fixed.parts) : -1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed
