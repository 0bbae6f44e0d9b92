"""Whole compressed files into memory, with one plain error for each way in which they can be broken."""

import gzip
import lzma
import zlib
from pathlib import Path

from zoo.errors import UserError


def decompress(path: Path, compression: str) -> bytes:
    """The content of a .gz, .xz or .zst file. Raises `UserError` if it is truncated, damaged or of another format."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not data:
        return b""
    try:
        match compression:
            case ".gz":
                return gzip.decompress(data)
            case ".xz":
                return _decompress_xz(data)
            case ".zst":
                return _decompress_zst(path, data)
    except EOFError:
        raise UserError(f"{path}: the compressed file is truncated") from None
    except (OSError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: not a valid {compression} file: {error}") from None
    raise ValueError(f"unknown compression {compression!r}")


def _decompress_xz(data: bytes) -> bytes:
    parts = []
    while data:
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        parts.append(decompressor.decompress(data))
        if not decompressor.eof:
            raise EOFError
        data = decompressor.unused_data.lstrip(b"\0")  # streams may be padded with zeros
    return b"".join(parts)


def _decompress_zst(path: Path, data: bytes) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{path}: reading .zst needs zstandard: pip install '.[data]'") from None
    parts = []
    while data:
        # Not `stream_reader`: it ends without a word where a frame is cut off.
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(decompressor.decompress(data))
        except zstandard.ZstdError as error:
            raise UserError(f"{path}: not a valid .zst file: {error}") from None
        if not decompressor.eof:
            raise EOFError
        data = decompressor.unused_data
    return b"".join(parts)
