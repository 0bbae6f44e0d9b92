"""A folder with what a teacher says of every token of a run's training stream, written once, read by many runs.

DIR/manifest.json                  the layout below and what the numbers are of
DIR/NNNNN.log_probabilities.npy    float16 [steps, B, T, K], of the K most likely next words, at one temperature
DIR/NNNNN.ids.npy                  int32 [steps, B, T, K], which words
DIR/NNNNN.log_tail.npy             float32 [steps, B, T], log of the probability of all others together
DIR/NNNNN.rows.npy                 uint32 [steps, B], CRC-32 of a row's tokens, targets and segments
DIR/NNNNN.json                     the position in the data after these steps; written last, a part without it is none

A token's address is (step, row, place): step s of a run reads the batch that the data iterator gives as the s-th. Hence
a cache belongs to one stream (data, tokenizer, seed, batch size, sequence length, packing, number of streams), which
may be longer than the run, and cannot be used with another order of the same texts. The manifest says which stream, and
the rows' checksums hold it to that, step by step.
"""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import Batch
from zoo.errors import UserError
from zoo.training.checkpoints import disk_is_full
from zoo.training.run_directory import write_json_atomically
from zoo.training.top_k_distillation import TopK

FORMAT = 1
MANIFEST = "manifest.json"
PART_BYTES = 64 * 2**20
"""Aim for the size of one part; so much is in memory while it is written."""
LEAST_LOG_PROBABILITY = -6e4
"""float16 ends at -65,504."""


@dataclass(frozen=True)
class CacheLayout:
    """What a cache holds; two caches with equal ones hold the same numbers."""

    batch_size: int
    """Rows of a step (B)."""
    sequence_length: int
    """Tokens of a row (T)."""
    k: int
    """Words kept of each distribution (K)."""
    vocab_size: int
    """Words of the teacher (V)."""
    temperature: float
    """Of the distributions."""
    teacher: str
    """SHA-256 of the teacher's weights."""
    stream: Mapping[str, Mapping[str, Any]]
    """The identity of each stream of the data, by its name (`zoo.data.streams`): documents, tokenizer, seed, ..."""

    @property
    def steps_per_part(self) -> int:
        """Steps of a whole part; the last one may have fewer."""
        return max(1, PART_BYTES // (self.batch_size * self.sequence_length * (6 * self.k + 4)))


def stream_identity(position: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`CacheLayout.stream` of a position of `zoo.data.TrainBatches`."""
    identities = {name: part["identity"] for name, part in position.items()}
    return json.loads(json.dumps(identities))  # as the manifest gives it back: no tuples


def layout_difference(saved: CacheLayout, wanted: CacheLayout) -> tuple[str, Any, Any] | None:
    """(field, saved value, wanted value) of the first field that differs, None if there is none. Of streams, those that
    `wanted` names are compared: a process may know a part of them only."""
    there, here = asdict(saved), asdict(wanted)
    streams, own = there.pop("stream"), here.pop("stream")
    for name, value in here.items():
        if there[name] != value:
            return name, there[name], value
    for stream, identity in own.items():
        if stream not in streams:
            return "data.streams", ", ".join(streams), stream
        for name in sorted(streams[stream].keys() | identity.keys()):
            if streams[stream].get(name) != identity.get(name):
                return name, streams[stream].get(name), identity.get(name)
    return None


class TeacherCache:
    """A cache that is read. Raises `UserError` if the folder holds none, or a part of it is damaged."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.layout = _read_manifest(self.folder)
        counts = [_part_steps(self.folder, number) for number in range(_parts(self.folder))]
        self.steps = sum(counts)
        """Steps that it holds, from the first of the stream on."""
        self._open: dict[int, tuple[np.ndarray, ...]] = {}

    def check(self, wanted: CacheLayout, steps: int) -> None:
        """Raises `UserError` if the cache is not the one `wanted` describes, or holds fewer steps than a run has."""
        found = layout_difference(self.layout, wanted)
        if found is not None:
            name, there, here = found
            raise UserError(f"{self.folder} was written with {name}={there!r} and this run has {name}={here!r}")
        if self.steps < steps:
            raise UserError(
                f"{self.folder} holds {self.steps} steps and this run has {steps}: write the others with the command "
                f"that wrote these and --steps {steps}"
            )

    def read(self, step: int, batch: Batch, rows: Sequence[int] | None = None) -> TopK:
        """What the teacher says of the batch of a step, counted from 0: arrays [rows, T, ...].

        Args:
            batch: those rows of it, as numpy arrays.
            rows: which rows of the global batch; None: all.

        Raises:
            UserError: the cache ends before, or was written for other tokens.
        """
        if not 0 <= step < self.steps:
            raise UserError(f"{self.folder} ends at step {self.steps}, step {step + 1} is not in it")
        number, place = divmod(step, self.layout.steps_per_part)
        if number not in self._open:
            self._open = {number: tuple(_load(self.folder, number, name) for name in (*TopK._fields, "rows"))}
        *kept, checksums = self._open[number]
        rows = range(self.layout.batch_size) if rows is None else rows
        chosen = np.asarray(rows)
        for row, found, saved in zip(rows, row_checksums(batch), checksums[place, chosen], strict=True):
            if found != saved:
                raise UserError(
                    f"{self.folder} was written for other tokens than row {row} of step {step + 1} of this run has: "
                    "the data has changed since, or the cache is damaged; write it again"
                )
        return TopK(*(part[place, chosen] for part in kept))


class CacheWriter:
    """A cache that is written, step after step; what was finished by an earlier writer stays and is gone on from."""

    def __init__(self, folder: str | Path, layout: CacheLayout):
        """Raises `UserError` if the folder holds anything else, or a cache of another layout."""
        self.folder, self.layout = Path(folder), layout
        if (self.folder / MANIFEST).is_file():
            found = layout_difference(_read_manifest(self.folder), layout)
            if found is not None:
                name, there, here = found
                raise UserError(f"{folder} holds a cache with {name}={there!r}, not {here!r}: choose another --out")
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(f"{folder} exists and is no cache of a teacher: choose another --out")
        else:
            write_json_atomically(self.folder / MANIFEST, {"format": FORMAT, **asdict(layout)})
        whole = layout.steps_per_part
        self._part = 0
        while _part_steps(self.folder, self._part) == whole:  # a shorter part, the last, is written again
            self._part += 1
        self.first_step = self._part * whole
        """The step that is to be added first."""
        self.position = None if self._part == 0 else _read_marker(self.folder, self._part - 1)["position"]
        """The position in the data after the steps that are there; None: the beginning."""
        self._waiting: list[tuple[TopK, np.ndarray]] = []

    def add(self, kept: TopK, batch: Batch, position: Mapping[str, Any]) -> None:
        """The next step: what the teacher says of a whole batch (numpy), and the position after it."""
        sizes = (self.layout.batch_size, self.layout.sequence_length, self.layout.k)
        if kept.ids.shape != sizes:
            raise ValueError(f"a step of this cache has {sizes} numbers, not {kept.ids.shape}")
        lowered = np.maximum(np.asarray(kept.log_probabilities, np.float32), LEAST_LOG_PROBABILITY)
        numbers: list[Any] = [lowered.astype(np.float16)]
        numbers += [np.asarray(kept.ids, np.int32), np.asarray(kept.log_tail, np.float32)]
        half = TopK(*numbers)
        self._waiting.append((half, row_checksums(batch)))
        if len(self._waiting) == self.layout.steps_per_part:
            self.finish(position)

    def finish(self, position: Mapping[str, Any]) -> None:
        """Writes what waits as a part, the last one if it is not whole. Raises `UserError` if the disk is full."""
        if not self._waiting:
            return
        steps, rows = zip(*self._waiting, strict=True)
        arrays = {name: np.stack([getattr(step, name) for step in steps]) for name in TopK._fields}
        try:
            _marker(self.folder, self._part).unlink(missing_ok=True)
            for name, array in (arrays | {"rows": np.stack(rows)}).items():
                _save(_file(self.folder, self._part, name), array)
            write_json_atomically(_marker(self.folder, self._part), {"steps": len(steps), "position": dict(position)})
        except OSError as error:
            if not disk_is_full(error):
                raise
            raise UserError(f"the disk is full: {self.folder} holds {self._part} whole parts; go on later") from error
        self._part += 1
        self._waiting = []


def row_checksums(batch: Batch) -> np.ndarray:
    """uint32 [rows]: CRC-32 of each row's tokens, targets and segment ids."""
    parts = [np.ascontiguousarray(part, "<i4") for part in (batch.tokens, batch.targets, batch.segment_ids)]
    rows = range(len(parts[0]))
    return np.array([zlib.crc32(b"".join(part[row].tobytes() for part in parts)) for row in rows], np.uint32)


def _file(folder: Path, part: int, name: str) -> Path:
    return folder / f"{part:05}.{name}.npy"


def _marker(folder: Path, part: int) -> Path:
    return folder / f"{part:05}.json"


def _parts(folder: Path) -> int:
    count = 0
    while _marker(folder, count).is_file():
        count += 1
    return count


def _part_steps(folder: Path, part: int) -> int:
    return _read_marker(folder, part)["steps"] if _marker(folder, part).is_file() else 0


def _read_marker(folder: Path, part: int) -> dict[str, Any]:
    path = _marker(folder, part)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found["steps"], int) or not isinstance(found["position"], dict):
            raise ValueError("steps or position are not what they should be")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it, and write the cache's last steps again") from None
    return found


def _read_manifest(folder: Path) -> CacheLayout:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is no cache of a teacher: it holds no {MANIFEST}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("format") != FORMAT:
            raise ValueError("written by another version")
        return CacheLayout(**found)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _load(folder: Path, part: int, name: str) -> np.ndarray:
    path = _file(folder, part, name)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): the cache is damaged, write it again") from None


def _save(path: Path, array: np.ndarray) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
