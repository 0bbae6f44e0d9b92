"""Which rows of a batch a process needs: those that lie on its devices, whatever axes its devices belong to."""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


@dataclass(frozen=True)
class Rows:
    """Some rows of a global batch."""

    batch: Any
    """A pytree of numpy arrays [len(numbers), ...]."""
    numbers: tuple[int, ...]
    """Which rows of the global batch these are, rising."""
    total: int
    """Rows of the global batch."""


def rows_by_process(sharding: NamedSharding, batch_size: int, length: int) -> dict[int, tuple[int, ...]]:
    """For every process the rows of arrays [batch_size, length] of which it holds at least a part, rising."""
    needed: dict[int, set[tuple[int, int]]] = {}
    device: Any
    for device, index in sharding.devices_indices_map((batch_size, length)).items():
        start, stop, _ = index[0].indices(batch_size)
        needed.setdefault(device.process_index, set()).add((start, stop))
    return {process: tuple(sorted(_numbers(ranges))) for process, ranges in sorted(needed.items())}


def _numbers(ranges: Iterable[tuple[int, int]]) -> set[int]:
    return {row for start, stop in ranges for row in range(start, stop)}


def rows_only(sharding: NamedSharding) -> NamedSharding:
    """Divides the first axis as `sharding` does, and no other."""
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))


def to_devices(batch: Any, sharding: NamedSharding) -> Any:
    """A batch as global arrays [B, ...], divided as `sharding` divides [B, T]; what lies in an attribute `media` is
    divided by rows only, since its other axes are not those of the tokens.

    `batch` is a pytree of numpy arrays: all rows of the global batch, the same on every process, or `Rows` of it, among
    which are those that this process's devices hold.
    """
    media_sharding = rows_only(sharding)

    def sharding_of(path: Any) -> NamedSharding:
        return media_sharding if any(getattr(key, "name", None) == "media" for key in path) else sharding

    if not isinstance(batch, Rows):
        return jax.tree_util.tree_map_with_path(
            lambda path, whole: jax.make_array_from_callback(
                whole.shape, sharding_of(path), lambda index: whole[index]
            ),
            batch,
        )

    def place(path: Any, held: Any) -> jax.Array:
        def part(index: Any) -> Any:
            start, stop, _ = index[0].indices(batch.total)
            first = bisect.bisect_left(batch.numbers, start)
            assert batch.numbers[first] == start and batch.numbers[first + stop - start - 1] == stop - 1
            return held[(slice(first, first + stop - start), *index[1:])]

        return jax.make_array_from_callback((batch.total, *held.shape[1:]), sharding_of(path), part)

    return jax.tree_util.tree_map_with_path(place, batch.batch)
