"""Sizes and checksums of a checkpoint's files, so that damage is found before a number of it is used.

The storage format detects a missing file and some, but not all, flipped bytes; the manifest detects every one of
them. It is written inside the checkpoint before the atomic rename that publishes it: whatever is committed has one.
"""

import json
import zlib
from pathlib import Path

from zoo.training.run_directory import write_json_atomically

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 24


def checksum(path: Path) -> int:
    """CRC-32 of a file's content (an error-detecting code against damage, not against an adversary)."""
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def write_manifest(folder: Path, *, checksums: bool = True) -> None:
    """Lists every file of the item folders inside `folder` with its size and, if asked for, its checksum.

    Files at the top are the storage library's own, and it still rewrites them while it commits.
    """
    files = {}
    for path in sorted(path for item in folder.iterdir() if item.is_dir() for path in item.rglob("*")):
        if path.is_file():
            size = path.stat().st_size
            files[path.relative_to(folder).as_posix()] = [size, checksum(path)] if checksums else [size]
    write_json_atomically(folder / MANIFEST, {"files": files})


def find_damage(folder: Path) -> str | None:
    """What is wrong with the checkpoint in `folder`, None if every file is as it was written.

    A checkpoint without a manifest (saved by another program) only needs its parameters to be there.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None if (folder / "params" / "_METADATA").is_file() else "params/_METADATA is missing"
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))["files"].items()
    except (OSError, ValueError, LookupError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    try:
        for name, (size, *checksums) in listed:
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if checksums and checksum(path) != checksums[0]:
                return f"{name} does not have the checksum it was saved with"
    except (OSError, ValueError, TypeError) as error:
        return f"{MANIFEST} cannot be followed ({error})"
    return None
