"""How long a program's own kernels take: their instruction bundles along the path that is executed.

Every kernel is taken out of the compiled program and compiled alone, in one process for all of them, which writes down
the bundles (`zoo.ahead_of_time.tpu_schedule`). A bundle is one cycle of one core if nothing waits; where the bytes take
longer than the bundles, the bytes count. The readings are kept in a folder of the user's cache.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from zoo.ahead_of_time.costs import hbm_bytes, kernel_cost
from zoo.ahead_of_time.gpu import GpuTarget
from zoo.ahead_of_time.hlo import Computation, Instruction, Program
from zoo.ahead_of_time.kernel_calls import KernelCall, is_kernel, kernel_call
from zoo.ahead_of_time.schedule import KernelSeconds, KernelTime
from zoo.ahead_of_time.tpu import TpuTarget
from zoo.ahead_of_time.tpu_bundles import KernelSchedule
from zoo.ahead_of_time.tpu_schedule import Case, measure
from zoo.planning.topology import Topology, cache_folder

EFFICIENCY = 0.6
"""Share of the peak at which a kernel's declared FLOPs are reckoned where its schedule cannot be read."""

INTERIOR, MASKED = 7, 2
"""Tiles of a row without and with a mask: those of a window of 4,096 keys in blocks of 512."""


def kernel_seconds(topology: Topology, program: Program, *, read_schedules: bool = True) -> KernelSeconds:
    """A function that says how long a kernel of the program takes, and from where it knows."""
    readings: Mapping[str, dict[str, Any]] = {}
    target = topology.target
    if read_schedules and isinstance(target, TpuTarget):
        readings = read_kernels(target, kernels_of(program))

    def time(instruction: Instruction, computation: Computation) -> KernelTime:
        declared = (kernel_cost(instruction) or (0.0, 0.0))[0]
        guess = KernelTime(
            declared / (EFFICIENCY * topology.flops), declared, f"declared FLOPs at {EFFICIENCY:.0%} of the peak"
        )
        if isinstance(target, GpuTarget) or not is_kernel(instruction):
            return guess
        call = kernel_call(computation, instruction)
        reading = readings.get(call.fingerprint)
        if reading is None:
            return guess
        if reading.get("error"):
            return KernelTime(guess.seconds, declared, f"{guess.source}: {reading['error']}")
        found = _from_reading(target, topology, call, reading, declared)
        moved = hbm_bytes(program, computation, instruction) / topology.hbm_bytes_per_second
        return replace(found, seconds=moved, source="its bytes") if moved > found.seconds else found

    return time


def kernels_of(program: Program) -> dict[str, KernelCall]:
    """The different kernels of a program, by fingerprint."""
    found = {}
    for executed in program.walk():
        if is_kernel(executed.instruction):
            call = kernel_call(executed.computation, executed.instruction)
            found[call.fingerprint] = call
    return found


def read_kernels(target: TpuTarget, calls: Mapping[str, KernelCall]) -> dict[str, dict[str, Any]]:
    """What the listings of the kernels say, from the cache or newly compiled."""
    folder = cache_folder() / f"kernels-{target.name}"
    readings: dict[str, dict[str, Any]] = {}
    for fingerprint in calls:
        file = folder / f"{fingerprint}.json"
        if file.is_file():
            readings[fingerprint] = json.loads(file.read_text())
    missing = {fingerprint: call for fingerprint, call in calls.items() if fingerprint not in readings}
    if not missing:
        return readings
    cases = [
        Case(
            "zoo.ahead_of_time.kernel_calls:build",
            target.name,
            {"config": call.config, "operands": call.operands, "results": call.results},
        )
        for call in missing.values()
    ]
    for fingerprint, measured in zip(missing, measure(cases), strict=True):
        if measured.error or len(measured.kernels) != 1:
            reading: dict[str, Any] = {"error": (measured.error or "no listing").splitlines()[0][:200]}
        else:
            reading = _summary(measured.kernels[0])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{fingerprint}.json").write_text(json.dumps(reading))
        readings[fingerprint] = reading
    return readings


def _summary(schedule: KernelSchedule) -> dict[str, Any]:
    return {
        "trips": schedule.trips,
        "one_core": schedule.one_core,
        "matrix_units": schedule.matrix_units,
        "overhead": schedule.overhead.bundles,
        "row": schedule.initialize.bundles + schedule.finalize.bundles,
        "tiles": [[tile.slots.bundles, tile.slots.matrix] for tile in schedule.tiles],
    }


def _from_reading(
    target: TpuTarget, topology: Topology, call: KernelCall, reading: dict[str, Any], declared: float
) -> KernelTime:
    """steps x overhead + executed tiles x tile + rows x (start + end of a row), in bundles of one core.

    Executed tiles: the declared FLOPs over those of a tile; of splash, which declares none, the blocks on or below the
    diagonal; otherwise every step. Of a grid whose size only the run knows (grouped products), the steps are the tiles.
    """
    cores = 2 if target.megacore and not reading["one_core"] else 1
    steps: float = (reading["trips"] or 1) * cores
    tiles = reading["tiles"] or [[0, 0]]
    interior, masked = tiles[0], max(tiles)
    if reading["trips"] is None:
        interior = masked  # the tiles of a grouped product are the first and the others of a sum: no masks
    tile = (INTERIOR * interior[0] + MASKED * masked[0]) / (INTERIOR + MASKED)
    tile_flops = interior[1] / reading["matrix_units"] * target.flops_per_bundle
    source = "its bundles"
    executed = float(steps)
    if reading["trips"] is None and declared and tile_flops:
        executed = steps = declared / tile_flops
    elif declared and tile_flops:
        executed = min(declared / tile_flops, steps)
    elif call.name.startswith("splash"):
        executed = steps * _causal_share(call)
    else:
        source = "its bundles, every step executed"
    rows = executed / (INTERIOR + MASKED)
    bundles = (steps * reading["overhead"] + executed * tile + rows * reading["row"]) / cores
    if target.megacore and reading["one_core"]:
        source += ", on one of two cores"
    return KernelTime(bundles / topology.clock_hz, declared or executed * tile_flops, source)


def _causal_share(call: KernelCall) -> float:
    """Part of a splash grid that lies on or below the diagonal: its first operand has one number per block."""
    _, (_, rows, columns) = call.operands[0]
    queries, keys = call.operands[2][1][-2], call.operands[3][1][-2]
    if rows * columns == 0 or len(call.operands[0][1]) != 3:
        return 1.0
    block_q, block_k = queries / rows, keys / columns
    seen = sum(
        min(columns, math.floor(((row + 1) * block_q - 1 + keys - queries) / block_k) + 1) for row in range(rows)
    )
    return seen / (rows * columns)
