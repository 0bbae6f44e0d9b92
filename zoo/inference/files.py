"""Array files of the commands: read without pickle, written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zoo.errors import UserError


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy file; raises UserError for anything else."""
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: not a .npy file of numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: an archive of several arrays; give one .npy array")
    return array


class Output:
    """A file in the making, beside its final path. Errors of the file system are raised as UserError."""

    def __init__(self, path: Path):
        self.path = path
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file to write")
        with self._named_errors():
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        self._temporary = Path(name)

    def write_array(self, array: np.ndarray) -> None:
        """`array` as .npy."""
        with self._named_errors(), open(self._temporary, "wb") as stream:
            np.save(stream, array, allow_pickle=False)

    def map_array(self, shape: tuple[int, ...], dtype: np.dtype | type) -> np.memmap:
        """A writable memory map of a new .npy. Its space is reserved: a full disk would kill the process later."""
        with self._named_errors():
            array = np.lib.format.open_memmap(self._temporary, mode="w+", dtype=np.dtype(dtype), shape=shape)
            with open(self._temporary, "r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, os.path.getsize(self._temporary))
        return array

    def write_text(self, text: str) -> None:
        """`text` as UTF-8."""
        with self._named_errors():
            self._temporary.write_text(text, encoding="utf-8")

    def commit(self) -> None:
        """Puts the finished file in its place."""
        with self._named_errors():
            os.chmod(self._temporary, 0o666 & ~_umask())
            with open(self._temporary, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(self._temporary, self.path)

    def discard(self) -> None:
        """Removes the unfinished file."""
        self._temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def output_file(path: Path | None) -> Iterator[Output | None]:
    """An `Output` that becomes `path` when the block ends well and vanishes otherwise; None for None.

    It is made before the work in the block, so that a path that cannot be written is said first.
    """
    output = None if path is None else Output(path)
    try:
        yield output
        if output is not None:
            output.commit()
    finally:
        if output is not None:
            output.discard()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
