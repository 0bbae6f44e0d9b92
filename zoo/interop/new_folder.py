"""Folders that appear whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from zoo.errors import UserError

# What an earlier export leaves behind; any other folder with files in it is never replaced.
_EXPORT_MARKS = (
    "config.json",
    "run.json",
    "_METADATA",
    "_CHECKPOINT_METADATA",
    "quantised.json",
    "model.gguf",
    "adapter.json",
)


def check_destination(path: Path, *, overwrite: bool, source: Path | None = None) -> None:
    """Raises `UserError` if a folder may not be written to `path`; `source` is what must not be written over."""
    target = path.resolve()
    if source is not None and (target == source.resolve() or target in source.resolve().parents):
        raise UserError(f"{path} would replace the checkpoint that is exported: choose another folder")
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path} is a file, the export needs a folder")
    if any(path.iterdir()):
        if not overwrite:
            raise UserError(f"{path} is not empty: choose another folder, or --overwrite an earlier export")
        if not any((path / mark).exists() for mark in _EXPORT_MARKS):
            raise UserError(
                f"{path} does not look like an earlier export, so it is not overwritten: choose another folder"
            )


@contextlib.contextmanager
def new_folder(path: Path, *, num_bytes: int = 0, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that is renamed to `path` when the block ends well, and removed otherwise.

    Raises:
        UserError: `path` exists and may not be replaced, `num_bytes` do not fit on the disk, or writing failed.
    """
    check_destination(path, overwrite=overwrite)
    path = path.absolute()
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if num_bytes > free:
            raise UserError(f"{path.parent} has {free / 1e9:.2f} GB free, the export needs {num_bytes / 1e9:.2f} GB")
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        _swap(temporary, path)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror or error}); nothing was left there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(file: Path) -> None:
    """To the disk before the rename: after a power cut there must be no folder with empty files."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    retired = path.parent / f".{path.name}.{secrets.token_hex(4)}.old"
    path.rename(retired)
    try:
        temporary.rename(path)
    except OSError:
        retired.rename(path)
        raise
    shutil.rmtree(retired, ignore_errors=True)
