"""Reads the two listings that libtpu writes of a kernel: its instruction bundles, and which slots each of them fills.

A kernel is a loop over its grid. What `pl.when` guards is a range of bundles that a conditional branch jumps over; such
a range is called a region. Regions are nested: the pipeline's own "is there work in this step" encloses those of the
kernel's body. The same reader serves any Pallas kernel, so that two can be compared.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

DELAY_SLOTS = 4
"""Bundles after a branch that are executed whether it is taken or not."""

_COLUMNS = {
    "matrix": ("MXU", "MATMUL"),
    "vector": ("VALU",),
    "transcendental": ("EUP",),
    "cross_lane": ("XLU",),
    "loads": ("VLOAD",),
    "stores": ("VSTORE",),
    "spill_stores": ("VSTORE:SPILL",),
    "spill_loads": ("VLOAD:FILL",),
}
_LINE = re.compile(r"^ *(0x[0-9a-f]+|0)\s+(LH|LB|LE|PB|PF|CT)?\s*:\s*((?:> ?)*)\{")
_BRANCH = re.compile(r"sbr\.(\w+) +(?:\(!?%p\w+\) +)?(?:target = \$region(\d+))?")
_CONDITION = re.compile(r"sbr\.rel \(!?%p\w+\)")
_MARKER = re.compile(r"(Start|End) region (\d+)")
_EXIT_TEST = re.compile(r"scmp\.ge\.s32\.totalorder %s\w+, (\d+) /\* loop exit test")


class UnreadableSchedule(ValueError):
    """The listing has a form that this reader does not know; guessing would give wrong counts."""


@dataclass(frozen=True)
class Slots:
    """Counts over some bundles, each bundle counted as often as the inner loops around it run."""

    bundles: int
    """Instruction bundles: a lower bound of cycles, since a bundle may wait."""
    matrix: int
    """Slots of the matrix units."""
    vector: int
    """Slots of the vector arithmetic units."""
    transcendental: int
    """exp, tanh, reciprocal, ..."""
    cross_lane: int
    """Slots of the cross-lane units (reductions, transposes)."""
    loads: int
    """Vector loads, those of spilled registers among them."""
    stores: int
    """Vector stores, spills among them."""
    spill_stores: int
    """Vector registers written to memory because too few are left."""
    spill_loads: int
    """Vector registers read back."""
    compares: int
    """Vector comparisons: what a mask costs."""

    def __add__(self, other: "Slots") -> "Slots":
        return Slots(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: "Slots") -> "Slots":
        return Slots(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


ZERO = Slots(*(0 for _ in fields(Slots)))


@dataclass(frozen=True)
class Tile:
    """A region with matrix products: one way to compute a tile of scores."""

    slots: Slots
    """All of the region."""
    matrix_span: int
    """Bundles from the first to the last that has a matrix slot."""


@dataclass(frozen=True)
class KernelSchedule:
    """A compiled kernel: its grid loop, and the regions that a step of it executes or skips."""

    name: str
    """Name of the custom call."""
    trips: int | None
    """Passes of the grid loop on one core, those that only fill or drain the pipeline among them; None where the size
    of the grid is known at run time only."""
    one_core: bool
    """Whether a branch around the loop leaves it to one core where a device has two."""
    total: Slots
    """The whole kernel, every region counted once."""
    matrix_units: int
    """Slots that the matrix units offer per bundle."""
    overhead: Slots
    """What every step executes besides the regions below: index arithmetic, copies' start and end."""
    initialize: Slots
    """Regions of the body before its first region with matrix products: run in the first step of a row."""
    tiles: tuple[Tile, ...]
    """Regions of the body with matrix products, fewest comparisons first: interior, then those with masks."""
    finalize: Slots
    """Regions of the body after the last region with matrix products: run in the last step of a row."""

    @property
    def matrix_use(self) -> float:
        """Part of the matrix slots that the interior tile fills between its first and its last product."""
        tile = self.tiles[0]
        return tile.slots.matrix / (self.matrix_units * tile.matrix_span)

    @property
    def interior_step(self) -> Slots:
        """A step in the middle of a row whose tile needs no mask."""
        return self.overhead + self.tiles[0].slots

    @property
    def masked_step(self) -> Slots:
        """A step in the middle of a row with the dearest of the tiles."""
        return self.overhead + max((tile.slots for tile in self.tiles), key=lambda slots: slots.bundles)

    def mean_step(self, interior: int, masked: int) -> float:
        """Bundles per step of a row of `interior` + `masked` tiles, with its start and its end."""
        row = self.initialize.bundles + self.finalize.bundles
        row += interior * self.interior_step.bundles + masked * self.masked_step.bundles
        return row / (interior + masked)


@dataclass(frozen=True)
class _Bundle:
    text: str
    label: str | None
    depth: int


@dataclass(frozen=True)
class _Region:
    start: int
    stop: int
    slots: Slots
    children: tuple["_Region", ...]


def read_kernel(name: str, bundles_text: str, slots_text: str) -> KernelSchedule:
    """From the texts of `*-final_bundles.txt` and `*-final_hlo-static-per-bundle-utilization.txt`.

    Raises: UnreadableSchedule, where branches, loops or columns are not of the known form.
    """
    bundles = _bundles(bundles_text)
    table, matrix_units = _slot_table(bundles, slots_text)
    loops, ranges = _branches(bundles)
    grid = _grid_loop(bundles, loops, table)
    weights = np.ones(len(bundles), np.int64)
    for start, stop in loops:
        if (start, stop) != grid and grid[0] <= start and stop <= grid[1]:
            trips = _trips(bundles, start, stop)
            if trips is None:
                raise UnreadableSchedule(f"the loop of bundles {start}..{stop - 1} has no constant number of passes")
            weights[start:stop] *= trips

    def count(start: int, stop: int) -> Slots:
        counted = (table[start:stop] * weights[start:stop, None]).sum(0)
        return Slots(*(int(value) for value in counted))

    inside = [(start, stop) for start, stop in ranges if grid[0] <= start and stop <= grid[1]]
    products = grid[0] + np.flatnonzero(table[grid[0] : grid[1], 1])
    first, last = (int(products[0]), int(products[-1])) if len(products) else grid
    body = _body(_nest(inside, count), first, last)
    initialize = _sum(region.slots for region in body if region.stop <= first)
    finalize = _sum(region.slots for region in body if region.start > last)
    tiles = [Tile(region.slots, _span(products, region.start, region.stop)) for region in body if region.slots.matrix]
    if len(products) and not tiles:
        # No branch guards the products: whatever a step in the middle of a row executes is the tile.
        tiles = [Tile(count(*grid) - initialize - finalize, _span(products, *grid))]
    return KernelSchedule(
        name=name,
        trips=_trips(bundles, *grid) if grid in loops else 1,
        one_core=grid in loops and any(start <= grid[0] and grid[1] <= stop for start, stop in ranges),
        total=Slots(*(int(value) for value in table.sum(0))),
        matrix_units=matrix_units,
        overhead=count(*grid) - initialize - _sum(tile.slots for tile in tiles) - finalize,
        initialize=initialize,
        tiles=tuple(sorted(tiles, key=lambda tile: (tile.slots.compares, tile.slots.bundles))),
        finalize=finalize,
    )


def _span(products: np.ndarray, start: int, stop: int) -> int:
    """Bundles from the first to the last product between start and stop."""
    inside = products[(products >= start) & (products < stop)]
    return int(inside[-1] - inside[0] + 1)


def _sum(parts: Iterable[Slots]) -> Slots:
    return sum(parts, ZERO)


def _bundles(text: str) -> list[_Bundle]:
    found: list[list] = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            if int(match[1], 16) != len(found):
                raise UnreadableSchedule(f"bundle {match[1]} follows bundle {len(found) - 1}")
            found.append([[line], match[2], match[3].count(">")])
        elif found:
            found[-1][0].append(line)
    if not found:
        raise UnreadableSchedule("a listing without bundles")
    return [_Bundle("\n".join(lines), label, depth) for lines, label, depth in found]


def _slot_table(bundles: list[_Bundle], text: str) -> tuple[np.ndarray, int]:
    """[bundles, fields of Slots], and how many matrix slots a bundle has."""
    lines = text.splitlines()
    names = [name.strip() for name in lines[1].split(",")]
    rows = [list(map(int, line.split())) for line in lines[4:] if line.strip()]
    if len(rows) != len(bundles):
        raise UnreadableSchedule(f"{len(rows)} rows of slots for {len(bundles)} bundles")
    columns = []
    for field, known in _COLUMNS.items():
        column = next((names.index(name) for name in known if name in names), None)
        if column is None:
            raise UnreadableSchedule(f"no column {' or '.join(known)} for {field}; there are {', '.join(names)}")
        columns.append([row[column] for row in rows])
    compares = [bundle.text.count("= vcmp.") for bundle in bundles]
    table = np.array([[1] * len(bundles), *columns, compares], np.int64).T
    capacity = dict(zip(names, map(int, lines[2].split())))
    return table, next(capacity[name] for name in _COLUMNS["matrix"] if name in capacity)


def _branches(bundles: list[_Bundle]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(start, stop) of every loop, and of every range that a forward branch jumps over."""
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for index, bundle in enumerate(bundles):
        for kind, number in _MARKER.findall(bundle.text):
            (starts if kind == "Start" else ends)[int(number)] = index
    loops: list[tuple[int, int]] = []
    ranges: list[tuple[int, int]] = []
    for index, bundle in enumerate(bundles):
        for kind, target in _BRANCH.findall(bundle.text):
            if kind != "rel" or not target:
                raise UnreadableSchedule(f"bundle {index}: a branch of unknown form: sbr.{kind}")
            number, after = int(target), index + 1 + DELAY_SLOTS
            if number in starts and starts[number] <= index:
                loops.append((starts[number], after))
                continue
            # A jump lands after the region numbered before its target, on a bundle that is labelled as such.
            stop = starts.get(number, ends.get(number - 1, -2) + 1)
            if stop < after or bundles[stop].label not in ("PF", "CT"):
                raise UnreadableSchedule(f"bundle {index}: the target of its branch, region {number}, was not found")
            if not _CONDITION.search(bundle.text):
                raise UnreadableSchedule(f"bundle {index}: an unconditional jump forward")
            ranges.append((after, stop))
    return loops, ranges


def _grid_loop(bundles, loops, table) -> tuple[int, int]:
    """The outermost loop with the matrix products; all bundles if the kernel has no loop."""
    outer = [loop for loop in loops if not any(o != loop and o[0] <= loop[0] and loop[1] <= o[1] for o in loops)]
    if not outer:
        return (0, len(bundles))
    return max(outer, key=lambda loop: (table[loop[0] : loop[1], 1].sum(), loop[1] - loop[0]))


def _trips(bundles: list[_Bundle], start: int, stop: int) -> int | None:
    """Passes of a loop, from the constant of its exit test; None without one."""
    depth = bundles[start].depth
    tests = [
        int(number)
        for bundle in bundles[start:stop]
        if bundle.depth == depth
        for number in _EXIT_TEST.findall(bundle.text)
    ]
    return tests[0] if len(tests) == 1 else None


def _nest(ranges: list[tuple[int, int]], count) -> list[_Region]:
    """The ranges as a tree; a range that overlaps another in part is refused."""
    remaining = sorted(set(ranges), key=lambda r: (r[0], -r[1]))

    def take(limit: int) -> list[_Region]:
        found = []
        while remaining and remaining[0][0] < limit:
            start, stop = remaining.pop(0)
            if stop > limit:
                raise UnreadableSchedule(f"bundles {start}..{stop - 1} overlap another region in part")
            found.append(_Region(start, stop, count(start, stop), tuple(take(stop))))
        return found

    return take(2**62)


def _body(regions: list[_Region], first: int, last: int) -> list[_Region]:
    """The regions of the kernel's own body: below whatever encloses all products and more than these."""
    for region in regions:
        encloses = region.start <= first and last < region.stop
        if encloses and any(c.slots.matrix or c.stop <= first or c.start > last for c in region.children):
            return _body(list(region.children), first, last)
    return regions
