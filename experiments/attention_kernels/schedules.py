"""Figures of compiled TPU kernels: bundles per tile by class and over the band, spills, trips."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.attention_kernels.subjects import SHAPES, WINDOW
from zoo.ahead_of_time.tpu import TARGETS, TpuTarget
from zoo.ahead_of_time.tpu_bundles import KernelSchedule
from zoo.ahead_of_time.tpu_schedule import Case, Measured, measure
from zoo.kernels.local_attention.band import Band

BLOCK = 512
"""Queries and keys of a tile of both contestants."""
OURS, SPLASH = "zoo", "jax splash"
BUILDERS = {OURS: "local", SPLASH: "splash"}
_PIPELINE_STEPS = 2
"""Passes of the grid loop that only fill and drain the pipeline of copies."""


@dataclass(frozen=True)
class Pass:
    """The kernels of a forward or of a backward pass; per tile means per 512 x 512 scores of one head."""

    subject: str
    """Who: `OURS` or `SPLASH`."""
    target: str
    """Chip."""
    shape: str
    """Heads, a key of `SHAPES`."""
    logits_soft_cap: float | None
    """Soft-cap of the scores."""
    backward: bool
    """Which pass; several kernels are added up."""
    interior: float
    """Bundles per tile of a step whose tile needs no mask, the loop's own included."""
    masked: float
    """The same on the diagonal and at the left edge of the window."""
    mean: float
    """Bundles per tile over the 9 tiles of a row of queries, its first and last step's extra work included."""
    spill_stores: float
    """Vector registers spilled per tile, over the same row."""
    matrix_use: tuple[float, ...]
    """Per kernel: filled part of the matrix slots between the first and the last product of the interior tile."""
    peak: float
    """Part of the matrix units' peak if every bundle took one cycle, counting the products that are needed (2 or 5)."""
    naive: tuple[int, ...]
    """Per kernel: all its bundles, every region once."""
    trips: tuple[int, ...]
    """Per kernel: passes of the grid loop on a core."""
    expected_trips: tuple[int, ...]
    """What the formula of the band says."""
    heads_per_tile: int
    """Query heads that share a tile."""
    cores: int
    """Cores of a device that work; v4 and v5p have two."""

    @property
    def device_bundles(self) -> float:
        """Bundles per tile, twice as many if one of two cores is idle: what a device's time goes with."""
        return self.mean * _device_cores(TARGETS[self.target]) / self.cores


def band(length: int, sliding_window: int = WINDOW) -> Band:
    """The band of a causal layer in tiles of 512 x 512."""
    return Band(length, length, BLOCK, BLOCK, True, sliding_window, True)


def row_classes(sliding_window: int = WINDOW) -> tuple[int, int]:
    """(interior tiles, tiles that need a mask) of a row of 512 queries far from the start."""
    first_query = 2 * sliding_window + BLOCK - 2 * sliding_window % BLOCK
    start, stop = band(first_query + BLOCK, sliding_window).key_span(first_query // BLOCK)
    last_query = first_query + BLOCK - 1
    full = [
        block
        for block in range(start, stop + 1)
        if (block + 1) * BLOCK - 1 <= first_query and block * BLOCK > last_query - sliding_window
    ]
    return len(full), stop + 1 - start - len(full)


def expected_trips(length: int, tiles_of_heads: int, cores: int, sliding_window: int = WINDOW) -> int:
    """heads / heads per tile * blocks of queries * widest row of the band / cores, and two to fill and drain."""
    rows = band(length, sliding_window)
    return tiles_of_heads * rows.query_blocks * rows.max_key_blocks // cores + _PIPELINE_STEPS


def declared_flops(shape: str, length: int, backward: bool, sliding_window: int = WINDOW) -> int:
    """4 (with the backward pass 14) * H per score of the tiles that are visited, over all heads."""
    heads = SHAPES[shape]
    scores = band(length, sliding_window).visited_tiles * BLOCK * BLOCK * heads.heads
    return (14 if backward else 4) * heads.head_dim * scores


def case(subject: str, target: str, shape: str, length: int, logits_soft_cap: float | None, backward: bool) -> Case:
    """A program of one of the contestants, with Gemma 2's window."""
    arguments = {"shape": shape, "length": length, "logits_soft_cap": logits_soft_cap, "backward": backward}
    return Case(
        f"experiments.attention_kernels.subjects:{BUILDERS[subject]}", target, {**arguments, "sliding_window": WINDOW}
    )


def summarize(subject: str, compiled: Case, measured: Measured, *, backward: bool) -> Pass:
    """The figures of one of the passes of a program. Raises RuntimeError with the compiler's error."""
    if measured.error:
        raise RuntimeError(f"{subject}, {compiled.target}, {compiled.arguments}: {measured.error}")
    kernels = [kernel for kernel in measured.kernels if is_forward(kernel.name) != backward]
    target, shape = TARGETS[compiled.target], SHAPES[compiled.arguments["shape"]]
    length = compiled.arguments["length"]
    cores = min(1 if kernel.one_core else _device_cores(target) for kernel in kernels)
    # How many heads share a tile is the kernel's choice; the formula must then hold for a divisor of the heads.
    steps = (kernels[0].trips or 0) - _PIPELINE_STEPS
    one_head = expected_trips(length, shape.heads, cores) - _PIPELINE_STEPS
    heads_per_tile = max(round(one_head / steps), 1) if steps > 0 else 1
    interior, masked = row_classes()
    mean = sum(kernel.mean_step(interior, masked) for kernel in kernels) / heads_per_tile
    products = 10 if backward else 4
    return Pass(
        subject=subject,
        target=target.name,
        shape=shape.name,
        logits_soft_cap=compiled.arguments["logits_soft_cap"],
        backward=backward,
        interior=sum(kernel.interior_step.bundles for kernel in kernels) / heads_per_tile,
        masked=sum(kernel.masked_step.bundles for kernel in kernels) / heads_per_tile,
        mean=mean,
        spill_stores=sum(_spills(kernel, interior, masked) for kernel in kernels) / heads_per_tile,
        matrix_use=tuple(kernel.matrix_use for kernel in kernels),
        peak=products * shape.head_dim * BLOCK * BLOCK / target.flops_per_bundle / mean,
        naive=tuple(kernel.total.bundles for kernel in kernels),
        trips=tuple(kernel.trips or 0 for kernel in kernels),
        expected_trips=(expected_trips(length, shape.heads // heads_per_tile, cores),) * len(kernels),
        heads_per_tile=heads_per_tile,
        cores=cores,
    )


def passes(
    targets: Sequence[str], shapes: Sequence[str], soft_caps: Sequence[float | None], directions: Sequence[bool]
) -> list[Pass]:
    """All combinations for both contestants at T = 8,192, each compiled in this call."""
    wanted: list[tuple[str, Case, bool]] = []
    for target in targets:
        for shape in shapes:
            for soft_cap in soft_caps:
                for backward in directions:
                    for subject in (OURS, SPLASH):
                        # Our forward kernel is the same in a program with gradients; splash's then writes more.
                        gradients = backward or (subject == OURS and True in directions)
                        wanted.append((subject, case(subject, target, shape, 8192, soft_cap, gradients), backward))
    cases = [compiled for _, compiled, _ in wanted]
    distinct = [compiled for i, compiled in enumerate(cases) if compiled not in cases[:i]]
    measured = measure(distinct)
    return [
        summarize(subject, compiled, measured[distinct.index(compiled)], backward=backward)
        for subject, compiled, backward in wanted
    ]


def is_forward(name: str) -> bool:
    """Whether a custom call is a forward kernel (both contestants say so in its name)."""
    return "fwd" in name or "forward" in name


def growth(trips: Sequence[int]) -> float:
    """Last over first, without the passes that fill and drain the pipeline."""
    first, *_, last = (n - _PIPELINE_STEPS for n in trips)
    return last / first if first else math.nan


def _device_cores(target: TpuTarget) -> int:
    return target.cores if target.megacore else 1


def _spills(kernel: KernelSchedule, interior: int, masked: int) -> float:
    row = kernel.initialize.spill_stores + kernel.finalize.spill_stores
    row += interior * kernel.interior_step.spill_stores + masked * kernel.masked_step.spill_stores
    return row / (interior + masked)
