"""Measures compiled TPU programs without a TPU: schedules of their kernels, memory, declared cost.

    python -m zoo.ahead_of_time.tpu_schedule FILE.py:FUNCTION [--target v6e] [--arguments '{"length": 8192}']

FUNCTION(**arguments) returns (function to compile, tuple of jax.ShapeDtypeStruct). libtpu takes its options when it is
loaded, so that every measurement is made by a process of its own; what it dumps is deleted.
"""

import argparse
import glob
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zoo.ahead_of_time.tpu import TARGETS, compile_for_tpu, libtpu_environment, require_libtpu
from zoo.ahead_of_time.tpu_bundles import KernelSchedule, Slots, Tile, read_kernel

_BUNDLES, _SLOTS = "final_bundles", "final_hlo-static-per-bundle-utilization"


@dataclass(frozen=True)
class Case:
    """One program to compile."""

    builder: str
    """`module:function` or `file.py:function`, which returns (function to compile, its arguments)."""
    target: str
    """Name of a `TpuTarget`."""
    arguments: dict = field(default_factory=dict)
    """Keyword arguments of the builder; they travel as JSON."""


@dataclass(frozen=True)
class Measured:
    """What the compiled program of a case holds."""

    kernels: tuple[KernelSchedule, ...]
    """Custom calls, in the order in which they were compiled."""
    temporary_bytes: int
    """Memory besides arguments and results."""
    cost: dict[str, float]
    """XLA's estimate: flops, bytes accessed, ...; for a custom call what the kernel declares."""
    error: str | None = None
    """Why the case could not be compiled or read; all else is then empty."""


def measure(cases: Sequence[Case]) -> list[Measured]:
    """Compiles the cases one after the other in one process. Raises: LibtpuMissing; a case that fails has its error."""
    require_libtpu()
    with tempfile.TemporaryDirectory(prefix="llo-") as dump:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
            **libtpu_environment(),
            "JAX_PLATFORMS": "cpu",
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true "
            f"--xla_jf_dump_llo_pass_label_regex={_BUNDLES}|{_SLOTS}",
            # Compiled programs that come from a cache leave no listing.
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        done = subprocess.run(
            [sys.executable, "-m", "zoo.ahead_of_time.tpu_schedule", "--worker", dump],
            input=json.dumps([asdict(case) for case in cases]),
            env=environment,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"the compiling process failed:\n{done.stderr[-4000:]}")
    return [_from_json(entry) for entry in json.loads(done.stdout.splitlines()[-1])]


def _from_json(entry: dict) -> Measured:
    kernels = []
    for kernel in entry.pop("kernels"):
        for name in ("total", "overhead", "initialize", "finalize"):
            kernel[name] = Slots(**kernel[name])
        kernel["tiles"] = tuple(Tile(Slots(**tile["slots"]), tile["matrix_span"]) for tile in kernel["tiles"])
        kernels.append(KernelSchedule(**kernel))
    return Measured(kernels=tuple(kernels), **entry)


def _measure_here(case: Case, dump: Path) -> Measured:
    try:
        function, arguments = _build(case.builder)(**case.arguments)
        compiled = compile_for_tpu(function, *arguments, target=TARGETS[case.target])
        kernels = read_dump(dump)
    except Exception as error:  # whatever a kernel or the compiler raises belongs to the case
        return Measured((), 0, {}, f"{type(error).__name__}: {error}")
    finally:
        for file in dump.iterdir():
            file.unlink()
    cost = {name: float(value) for name, value in (compiled.cost_analysis() or {}).items() if "{" not in name}
    memory: Any = compiled.memory_analysis()
    return Measured(tuple(kernels), memory.temp_size_in_bytes, cost)


def _build(name: str):
    module_name, _, function = name.rpartition(":")
    if module_name.endswith(".py"):
        return runpy.run_path(module_name)[function]
    return getattr(importlib.import_module(module_name), function)


def read_dump(folder: Path) -> list[KernelSchedule]:
    """The custom calls among the listings of a folder into which libtpu has dumped."""
    kernels = []
    for path in sorted(folder.glob(f"*-{_BUNDLES}.txt")):
        match = re.fullmatch(rf"(\d+-(.+))-\d+-{_BUNDLES}\.txt", path.name)
        text = path.read_text()
        if match is None or not re.search(r"/\* entry bundle: %\S+ = .*custom-call\(", text):
            continue
        (slots,) = folder.glob(f"{glob.escape(match[1])}-*-{_SLOTS}.txt")
        kernels.append(read_kernel(match[2], text, slots.read_text()))
    return kernels


def describe(measured: Measured) -> str:
    """A few lines for the terminal."""
    if measured.error:
        return measured.error
    lines = []
    for kernel in measured.kernels:
        tiles = ", ".join(str(tile.slots.bundles) for tile in kernel.tiles) or "none"
        lines.append(
            f"{kernel.name}: {kernel.trips} trips; bundles: {kernel.total.bundles} in all, overhead "
            f"{kernel.overhead.bundles}, initialize {kernel.initialize.bundles}, tiles {tiles}, finalize "
            f"{kernel.finalize.bundles}"
        )
        if kernel.tiles:
            interior, masked = kernel.interior_step, kernel.masked_step
            lines.append(
                f"  a step: interior {interior.bundles}, masked {masked.bundles}, mean of a row of 7 + 2: "
                f"{kernel.mean_step(7, 2):.0f}; matrix slots filled {kernel.matrix_use:.3f}"
            )
            tile = kernel.tiles[0].slots
            lines.append(
                f"  interior tile: matrix {tile.matrix}, vector {tile.vector}, transcendental {tile.transcendental}, "
                f"cross-lane {tile.cross_lane}, loads {tile.loads}, stores {tile.stores}, spills {tile.spill_stores} / "
                f"{tile.spill_loads}; all spills {kernel.total.spill_stores} / {kernel.total.spill_loads}"
            )
    cost = {name: f"{value:.4g}" for name, value in measured.cost.items() if name in ("flops", "bytes accessed")}
    lines.append(f"temporary {measured.temporary_bytes / 1e6:.1f} MB, declared {cost}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="zoo.ahead_of_time.tpu_schedule", description=__doc__.splitlines()[0])
    parser.add_argument("builder", nargs="?", help="FILE.py:FUNCTION or module:FUNCTION")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=["v6e"])
    parser.add_argument("--arguments", type=json.loads, default={}, help="JSON object for FUNCTION")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        cases = [Case(**entry) for entry in json.load(sys.stdin)]
        results = [asdict(_measure_here(case, options.worker)) for case in cases]
        print(json.dumps(results))
        return
    if options.builder is None:
        parser.error("name what to compile: FILE.py:FUNCTION")
    for target in options.target:
        (measured,) = measure([Case(options.builder, target, options.arguments)])
        print(f"{target}: {describe(measured)}")


if __name__ == "__main__":
    main()
