"""The weights of a Hugging Face folder (one safetensors file, or shards and an index), read one tensor at a time."""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401 (registers bfloat16 with numpy, which safetensors asks for by name)
import numpy as np
from safetensors import SafetensorError, safe_open

from zoo.errors import UserError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_NUMPY_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class StoredTensor:
    """What a file's header says about one tensor."""

    file: Path
    """The safetensors file that holds it."""
    shape: tuple[int, ...]
    """Its dimensions."""
    dtype: str
    """numpy name of its dtype: float32, bfloat16 or float16; any other under its safetensors name (I8)."""


class SafetensorsFolder:
    """`tensors` lists what is there, `read` reads one; nothing else of the files stays in memory.

    Files are read with ``pread``, not mapped, so that what was read is not counted (and kept) a second time.
    """

    def __init__(self, folder: Path, old_endings: Mapping[str, str] | None = None, *, file: str | None = None):
        """Reads the index and every header. Raises `UserError` for missing, damaged or contradictory files.

        old_endings: what the endings of names that older software wrote are called here. file: the only file that is
        read, instead of a model's."""
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        self._open: tuple[Path, Callable[[str], np.ndarray]] | None = None
        index = _read_index(folder) if file is None else {}
        for one in sorted(set(index.values())) if index else [folder / (file or SINGLE_FILE)]:
            for name, tensor in _read_header(one).items():
                if index and index.get(name) != one:
                    listed = f"lists it in {index[name].name}" if name in index else "does not list it"
                    raise UserError(f"{one} holds tensor {name}, but {INDEX_FILE} {listed}")
                self.tensors[name] = tensor
        for name, one in index.items():
            if name not in self.tensors:
                raise UserError(f"{folder / INDEX_FILE} lists tensor {name} in {one.name}, which does not hold it")
        self._stored_names = {_renamed(name, old_endings or {}): name for name in self.tensors}
        if len(self._stored_names) < len(self.tensors):
            twice = sorted(set(self.tensors) - set(self._stored_names.values()))
            raise UserError(f"{folder} holds tensor {twice[0]} under its old name and under today's")
        self.tensors = {name: self.tensors[stored] for name, stored in self._stored_names.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor in its stored dtype. Raises `UserError` if it is damaged or holds NaN or infinity."""
        file = self.tensors[name].file
        try:
            if self._open is None or self._open[0] != file:
                self._open = (file, safe_open(file, "numpy", backend="pread").get_tensor)
            array = self._open[1](self._stored_names[name])
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged: tensor {name} cannot be read ({error})") from None
        if not _is_finite(array):
            raise UserError(f"{file} is damaged: tensor {name} holds NaN or infinity")
        return array


def _renamed(name: str, endings: Mapping[str, str]) -> str:
    return next((name.removesuffix(old) + new for old, new in endings.items() if name.endswith(old)), name)


def _read_index(folder: Path) -> dict[str, Path]:
    """Tensor name -> shard, from the index; empty for a folder with one file."""
    path = folder / INDEX_FILE
    if not path.is_file():
        if (folder / SINGLE_FILE).is_file():
            return {}
        if any(folder.glob("*.safetensors")):
            raise UserError(f"{folder} holds safetensors files, but neither {SINGLE_FILE} nor {INDEX_FILE}")
        if any(folder.glob("pytorch_model*.bin")):
            raise UserError(
                f"{folder} holds PyTorch pickles (*.bin), which are not read: save it with safetensors first"
            )
        raise UserError(f"{folder} holds no weights: looked for {SINGLE_FILE} and {INDEX_FILE}")
    if (folder / SINGLE_FILE).is_file():
        raise UserError(f"{folder} holds both {SINGLE_FILE} and {INDEX_FILE}: remove the one that is out of date")
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = {name: folder / shard for name, shard in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is not a safetensors index: it needs a 'weight_map' of tensor names to files"
        ) from None
    if not shards:
        raise UserError(f"{path} lists no tensors")
    for name, shard in shards.items():
        if shard.parent != folder:
            raise UserError(f"{path} lists tensor {name} in {shard}, outside of the folder")
        if not shard.is_file():
            raise UserError(f"{path} lists tensor {name} in {shard.name}, which does not exist")
    return shards


def _read_header(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, "numpy", backend="pread") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
            return {
                name: StoredTensor(file, tuple(part.get_shape()), _NUMPY_NAMES.get(part.get_dtype(), part.get_dtype()))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} {_diagnosis(file) or f'is damaged: {error}'}") from None


def _diagnosis(file: Path) -> str | None:
    """What is wrong with a file that safetensors refused, as far as its own header tells."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(8)
            if start == b"version ":
                return "is a Git LFS pointer, not the weights: fetch them with `git lfs pull`"
            length = struct.unpack("<Q", start)[0]
            size = file.stat().st_size
            if length > size - 8:
                return (
                    f"is truncated or not a safetensors file: it has {size} bytes, its header alone asks for {length}"
                )
            header = json.loads(opened.read(length))
        ends = {name: entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
        cut = [name for name, end in sorted(ends.items(), key=lambda item: item[1]) if end > size - 8 - length]
        return f"is truncated: tensor {cut[0]} and {len(cut) - 1} more lie beyond its {size} bytes" if cut else None
    except (OSError, struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None


def _is_finite(array: np.ndarray, chunk: int = 1 << 24) -> bool:
    """Whether no element's exponent is all ones; on integer views, because numpy is slow on bfloat16."""
    exponent = {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}.get(array.dtype.name)
    if exponent is None:
        return True
    bits = array.reshape(-1).view(f"u{array.dtype.itemsize}")
    return not any(bool(((bits[i : i + chunk] & exponent) == exponent).any()) for i in range(0, bits.size, chunk))
