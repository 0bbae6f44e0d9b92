"""How fast chips exchange data, and how long a collective takes at that speed.

The times are those of ideal algorithms that keep every link of the axes in question busy; a message that is too small
for that takes one hop's time per hop. What a real program reaches is less.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.ahead_of_time import gpu, tpu


@dataclass(frozen=True)
class Links:
    """The network of one kind of chip. Bytes per second in one direction."""

    link: float
    """One link between two neighbours; on a GPU all of its links to the switch."""
    slow: float
    """Share of one chip of the network between slices or hosts (DCN)."""
    hop_seconds: float
    """Time of the smallest message to the next chip."""
    wrap_at: int | None
    """A dimension of the slice is a ring where its size is a multiple of this; None = of no dimensions, a switch."""


# One way and usable: "How to Scale Your Model" (jax-ml.github.io/scaling-book), chapter TPUs, whose figures are nine
# tenths of cloud.google.com/tpu/docs (v5p: 1,200 GB/s per chip over 6 links and both ways). DCN: the same pages, per
# chip: v5p 50 Gbit/s; v5e 2 x 100 and v6e 4 x 200 Gbit/s per host of 8. Hop: about 1 us, same book.
_LINKS = {
    "v4": Links(4.5e10, 6.25e9, 1e-6, 4),
    "v5e": Links(4.5e10, 3.125e9, 1e-6, 16),
    "v5p": Links(9e10, 6.25e9, 1e-6, 4),
    "v6e": Links(9e10, 12.5e9, 1e-6, 16),
    "TPU7x": Links(9e10, 12.5e9, 1e-6, 4),
    # NVLink, one way: NVIDIA's data sheets (900 GB/s both ways for H100 and H200). Between hosts one 400 Gbit/s port.
    "A100": Links(300e9, 25e9, 2e-6, None),
    "H100": Links(450e9, 50e9, 2e-6, None),
    "H200": Links(450e9, 50e9, 2e-6, None),
    "B200": Links(900e9, 50e9, 2e-6, None),
}


def links_of(target: "tpu.TpuTarget | gpu.GpuTarget") -> Links:
    """The network of a target."""
    return _LINKS[target.name]


class Network:
    """Where the devices of a program stand."""

    def __init__(self, devices: Sequence[Any], links: Links):
        """`devices` in the order of the program's mesh, `mesh.devices.flat`."""
        self.links = links
        self._slices = np.array([getattr(device, "slice_index", None) or 0 for device in devices])
        if links.wrap_at is None:
            self._places = np.arange(len(devices))[:, None]
        else:
            self._places = np.array([device.coords for device in devices])
        self._sizes = self._places.max(0) + 1
        self._devices_per_chip = max(
            1, len(devices) // len(np.unique(np.column_stack([self._places, self._slices]), axis=0))
        )

    def dimensions(self, groups: np.ndarray) -> tuple[str, ...]:
        """What a collective of these groups occupies: "x", "y", "z" of the slice, "DCN"; () inside a chip."""
        spans, crosses = self._spans(groups)
        names = ["switch"] if self.links.wrap_at is None else list("xyz")
        return tuple([name for name, span in zip(names, spans) if span > 1] + ["DCN"] * crosses)

    def seconds(self, kind: str, groups: np.ndarray, in_bytes: float, out_bytes: float) -> float:
        """Time of a collective in which every device gives `in_bytes` and gets `out_bytes`.

        all-gather, reduce-scatter of V bytes over n devices: V (n - 1) / n at the rate of all links of the dimensions
        that the group spans, both ways where a dimension is a whole ring, one way where it is not; all-reduce: twice
        that; all-to-all: v n_d / 8 per link of the longest dimension d (a line: v n_d / 4); permute: the longest way in
        hops times the bytes. A ragged all-to-all counts as one of equal parts. Across slices: the same with the slow
        network.
        """
        size = groups.shape[1]
        spans, crosses = self._spans(groups)
        if size < 2:
            return 0.0
        hops = sum(self._hops(span, dim) for dim, span in enumerate(spans) if span > 1)
        if kind == "collective-permute":
            return self._permute(groups, in_bytes, crosses)
        if kind in ("all-to-all", "ragged-all-to-all"):
            within = max(
                (self._all_to_all(in_bytes, span, dim) for dim, span in enumerate(spans) if span > 1), default=0.0
            )
            return max(within, hops * self.links.hop_seconds) + (in_bytes / self.links.slow if crosses else 0.0)
        whole = max(in_bytes, out_bytes)
        passes = 2 if kind == "all-reduce" else 1
        slices = len(np.unique(self._slices[groups[0]]))
        inside = max(size // slices, 1)
        rate = sum(self._rate(span, dim) for dim, span in enumerate(spans) if span > 1)
        # Between slices every chip exchanges the share that it holds after the reduction within its slice.
        slow = passes * whole / inside * (slices - 1) / slices / self.links.slow if crosses else 0.0
        if not rate:
            return slow
        moved = passes * whole * (inside - 1) / inside
        return max(moved / rate, passes * hops * self.links.hop_seconds) + slow

    @property
    def slices(self) -> np.ndarray:
        """The slice of each device."""
        return self._slices

    def _spans(self, groups: np.ndarray) -> tuple[list[int], bool]:
        """Extent of a group along each dimension of the slice, and whether it crosses slices."""
        places = self._places[groups]  # [groups, devices, dimensions]
        spans = [int(len(np.unique(places[0, :, dim]))) for dim in range(places.shape[2])]
        if groups.shape[1] == 2:  # the pairs of a permute differ from each other
            spans = [int(1 + (places[:, 0, dim] != places[:, 1, dim]).any()) for dim in range(places.shape[2])]
        slices = self._slices[groups]
        return spans, bool((slices != slices[:, :1]).any())

    def _is_ring(self, span: int, dim: int) -> bool:
        wrap, size = self.links.wrap_at, int(self._sizes[dim])
        return wrap is not None and span == size and size % wrap == 0

    def _rate(self, span: int, dim: int) -> float:
        """Bytes per second that a device takes in along a dimension."""
        if self.links.wrap_at is None:
            return self.links.link
        return self.links.link * (2 if self._is_ring(span, dim) else 1) / self._devices_per_chip

    def _hops(self, span: int, dim: int) -> int:
        if self.links.wrap_at is None:
            return 1
        return math.ceil(span / 2) if self._is_ring(span, dim) else span - 1

    def _all_to_all(self, given: float, span: int, dim: int) -> float:
        if self.links.wrap_at is None:
            return given * (span - 1) / span / self.links.link
        share = 8 if self._is_ring(span, dim) else 4
        return given * self._devices_per_chip * span / share / self.links.link

    def _permute(self, pairs: np.ndarray, given: float, crosses: bool) -> float:
        if crosses:
            return given / self.links.slow
        if self.links.wrap_at is None:
            return given / self.links.link + self.links.hop_seconds
        distance = np.abs(self._places[pairs[:, 0]] - self._places[pairs[:, 1]])
        rings = np.array([self._is_ring(int(size), dim) for dim, size in enumerate(self._sizes)])
        distance = np.where(rings, np.minimum(distance, self._sizes - distance), distance)
        hops = int(distance.sum(1).max())
        return hops * (given * self._devices_per_chip / self.links.link + self.links.hop_seconds) if hops else 0.0
