"""The documents of one file, by number: text pieces, JSON lines, Parquet rows.

Opening a file reads it once from end to end, so that what is wrong with it is said before training starts and not hours
into it. Afterwards plain files are read by byte offset; compressed files and Parquet columns are kept in memory.
"""

import json
import mmap
from array import array
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from zoo.data.compression import decompress
from zoo.data.sources import File
from zoo.errors import UserError, nearest_name

# A text file above twice this size is cut into documents of at most this size, so that even a single file can be split
# into training and validation documents.
MAX_PIECE_BYTES = 64 * 1024

# What a JSON object holds as a document: called with the object and "file:line"; None for an empty one.
Parse = Callable[[Any, str], Any]


class Documents(Protocol):
    """The documents of one file."""

    file: File
    num_skipped: int
    """Empty ones, left out."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """The text (str), or what `Parse` made of it."""
        ...

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each document as they lie in the (decompressed) file."""
        ...


def open_documents(file: File, parse: Parse, text_field: str, *, whole: bool = False) -> Documents:
    """Opens a file of any supported kind. whole: a .txt file is one document, however long."""
    if file.kind == ".parquet":
        return ParquetDocuments(file, text_field)
    if file.kind == ".jsonl":
        return JsonDocuments(file, parse)
    return TextDocuments(file, whole=whole)


class _ByteRanges:
    """Byte ranges of a file, read from disk (plain) or from memory (compressed)."""

    def __init__(self, file: File):
        self.file = file
        self.num_skipped = 0
        self._data = decompress(file.path, file.compression) if file.compression else None
        with self._open_buffer() as buffer:
            _check_is_text(file.path, buffer)
            ranges = np.array(self._find_ranges(buffer), np.int64).reshape(-1, 3)
        self._starts, self._stops, self._lines = ranges.T

    def _find_ranges(self, buffer) -> array:
        """start, stop and line number of each document that is not empty, one after the other."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def sizes(self) -> np.ndarray:
        return self._stops - self._starts

    def _read(self, index: int) -> bytes:
        start, stop = int(self._starts[index]), int(self._stops[index])
        if self._data is not None:
            return self._data[start:stop]
        try:
            with open(self.file.path, "rb") as stream:
                stream.seek(start)
                data = stream.read(stop - start)
        except OSError as error:
            raise _unreadable(self.file.path, error) from None
        if len(data) != stop - start:
            raise UserError(f"{self.file.path}: the file has become shorter since it was opened")
        return data

    def _where(self, index: int) -> str:
        return f"{self.file.path}:{self._lines[index]}"

    @contextmanager
    def _open_buffer(self):
        if self._data is not None:
            yield self._data
            return
        with ExitStack() as stack:
            try:
                stream = stack.enter_context(open(self.file.path, "rb"))
                empty = stream.seek(0, 2) == 0  # mmap refuses an empty file
                access = mmap.ACCESS_READ
                buffer = b"" if empty else stack.enter_context(mmap.mmap(stream.fileno(), 0, access=access))
            except OSError as error:
                raise _unreadable(self.file.path, error) from None
            yield buffer


class TextDocuments(_ByteRanges):
    """A .txt file: one document, or pieces of at most `MAX_PIECE_BYTES` if it is above twice that size. A piece ends
    after a blank line if there is one in its second half, else after a line, else after a whole character."""

    def __init__(self, file: File, *, whole: bool = False):
        self._whole = whole
        super().__init__(file)

    def _find_ranges(self, buffer):
        ranges, start, line = array("q"), _byte_order_mark(buffer), 1
        cut = not self._whole and len(buffer) > 2 * MAX_PIECE_BYTES
        while start < len(buffer):
            stop = _piece_end(buffer, start) if cut else len(buffer)
            piece = buffer[start:stop]
            text = _decode(self.file.path, piece, start)
            if text.strip():
                ranges.extend((start, stop, line))
            start, line = stop, line + piece.count(b"\n")
        self.num_skipped = 0 if ranges else 1
        return ranges

    def __getitem__(self, index: int) -> str:
        return _decode(self.file.path, self._read(index), int(self._starts[index]))


class JsonDocuments(_ByteRanges):
    """A .jsonl file: one JSON object on each line; blank lines are passed over."""

    accepts: dict[type, str] = {dict: "object"}
    """What a line may hold."""

    def __init__(self, file: File, parse: Parse):
        self._parse = parse
        super().__init__(file)

    def _find_ranges(self, buffer):
        ranges, start, line = array("q"), _byte_order_mark(buffer), 1
        while start < len(buffer):
            newline = buffer.find(b"\n", start)
            stop = len(buffer) if newline < 0 else newline
            data = buffer[start:stop]
            if data.strip():
                if self._document(data, f"{self.file.path}:{line}", start) is None:
                    self.num_skipped += 1
                else:
                    ranges.extend((start, stop, line))
            start, line = stop + 1, line + 1
        return ranges

    def __getitem__(self, index: int) -> Any:
        return self._document(self._read(index), self._where(index), int(self._starts[index]))

    def _document(self, data: bytes, where: str, offset: int) -> Any:
        text = _decode(where, data, offset)
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from None
        except RecursionError:
            raise UserError(f"{where}: not valid JSON: nested too deeply") from None
        if not isinstance(value, tuple(self.accepts)):
            expected = " or ".join(self.accepts.values())
            raise UserError(f"{where}: expected a JSON {expected} on each line, found {_json_type(value)}")
        return self._parse(value, where)


class ParquetDocuments:
    """The rows of one string column of a Parquet file, kept in memory as one Arrow column. Nulls and "" are left
    out."""

    def __init__(self, file: File, text_field: str):
        try:
            import pyarrow
            import pyarrow.compute
            import pyarrow.parquet
        except ImportError:
            raise UserError(f"{file.path}: reading .parquet needs pyarrow: pip install '.[data]'") from None
        self.file = file
        try:
            schema = pyarrow.parquet.read_schema(file.path)
            if text_field not in schema.names:
                raise UserError(f"{file.path}: no column {text_field!r}; {nearest_name(text_field, schema.names)}")
            found = schema.field(text_field).type
            if not (pyarrow.types.is_string(found) or pyarrow.types.is_large_string(found)):
                raise UserError(f"{file.path}: column {text_field!r} holds {found}, not strings")
            table = pyarrow.parquet.read_table(file.path, columns=[text_field])
            column = table.column(0).cast(pyarrow.large_string()).combine_chunks()
            column.validate(full=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{file.path}: not a readable Parquet file: {_first_line(error)}") from None
        lengths = pyarrow.compute.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        self._column = column
        self._rows = np.flatnonzero(lengths)
        self._sizes = lengths[self._rows]
        self.num_skipped = len(lengths) - len(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> str:
        return self._column[int(self._rows[index])].as_py()

    @property
    def sizes(self) -> np.ndarray:
        return self._sizes


def text_of(field: str) -> Parse:
    """A `Parse` for {field: text}: the text, None if it is empty."""

    def parse(value: dict[str, Any], where: str) -> str | None:
        if field not in value:
            raise UserError(f"{where}: no field {field!r}; {nearest_name(field, value)}")
        text = value[field]
        if not isinstance(text, str):
            raise UserError(f"{where}: field {field!r} must be a string, found {_json_type(text)}")
        check_unicode(text, where)
        return text if text.strip() else None

    return parse


def check_unicode(text: str, where: str):
    """JSON can spell half a surrogate pair (\\ud800), which is no text and has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: a lone surrogate at character {error.start}, which is not Unicode text") from None


def _piece_end(buffer, start: int) -> int:
    stop = start + MAX_PIECE_BYTES
    if stop >= len(buffer):
        return len(buffer)
    for mark, earliest in ((b"\n\n", start + MAX_PIECE_BYTES // 2), (b"\n", start)):
        found = buffer.rfind(mark, earliest, stop)
        if found >= 0:
            return found + len(mark)
    while stop > start + MAX_PIECE_BYTES - 4 and buffer[stop] & 0xC0 == 0x80:  # inside a character
        stop -= 1
    return stop


def _check_is_text(path: Path, buffer):
    if buffer[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path}: UTF-16 text; convert it to UTF-8")
    nul = buffer.find(b"\0")
    if nul >= 0:
        raise UserError(f"{path}: a binary file (NUL at byte {nul}), expected UTF-8 text")


def _byte_order_mark(buffer) -> int:
    return 3 if buffer[:3] == b"\xef\xbb\xbf" else 0


def _decode(where: Path | str, data: bytes, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 text: {error.reason} at byte {offset + error.start} of the file; convert it to UTF-8"
        ) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read: {error.strerror or error}")


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
