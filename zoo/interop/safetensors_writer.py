"""Writes safetensors files as a stream: one tensor in memory at a time, whatever the size of the file."""

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.interop.safetensors_folder import INDEX_FILE, SINGLE_FILE

_FORMAT_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64", "uint8": "U8", "int8": "I8"}


@dataclass(frozen=True)
class TensorToWrite:
    """Name, shape and dtype of a tensor, known before its values are."""

    name: str
    """Its name in the file."""
    shape: tuple[int, ...]
    """Its dimensions."""
    dtype: np.dtype
    """float32, bfloat16, float16, int64, uint8 or int8."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return self.size * self.dtype.itemsize


def write_folder(
    folder: Path, tensors: Sequence[TensorToWrite], read: Callable[[str], np.ndarray], max_shard_bytes: int
) -> list[Path]:
    """Writes all tensors into `folder`, as one file or as shards of at most `max_shard_bytes` with their index.

    `read(name)` gives the values when their turn comes. A tensor larger than a shard gets a shard of its own.
    """
    shards = _shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        write_file(folder / SINGLE_FILE, shards[0], read)
        return [folder / SINGLE_FILE]
    files = [folder / f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        write_file(file, shard, read)
    index = {
        "metadata": {
            "total_parameters": sum(tensor.size for tensor in tensors),
            "total_size": sum(tensor.num_bytes for tensor in tensors),
        },
        "weight_map": {t.name: file.name for file, shard in zip(files, shards, strict=True) for t in shard},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return files


def _shards(tensors: Iterable[TensorToWrite], max_shard_bytes: int) -> list[list[TensorToWrite]]:
    shards: list[list[TensorToWrite]] = []
    filled = 0
    for tensor in tensors:
        if not shards or filled + tensor.num_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.num_bytes
    return shards


def write_file(path: Path, tensors: Sequence[TensorToWrite], read: Callable[[str], np.ndarray]) -> None:
    """Writes one file.

    The format: length of the header (u64), JSON padded to 8 bytes, the tensors without gaps; all little-endian.
    """
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)  # stable; keeps every tensor aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _FORMAT_NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors:
            array = read(tensor.name)
            if array.shape != tensor.shape or array.dtype != tensor.dtype:
                raise ValueError(f"{tensor.name}: {array.dtype}{array.shape}, not {tensor.dtype}{tensor.shape}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
