"""What each kernel of a compiled GPU program occupies: registers, spills and shared memory, as ptxas reports them."""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import jax

from zoo.ahead_of_time.gpu import CudaWheelsMissing, GpuTarget, compile_for_gpu

_MATRIX_INSTRUCTIONS = ("tcgen05.mma", "wgmma.mma_async", "mma.sync")


@dataclass(frozen=True)
class KernelFacts:
    """One kernel of a program; sizes in bytes."""

    name: str
    """Its entry point; a Pallas kernel is called like its Python function."""
    grid: tuple[int, int, int]
    """Blocks of threads per dimension."""
    threads: int
    """Threads per block."""
    registers: int
    """Per thread; 255 at most."""
    spill_stores: int
    """Written per thread to local memory, because registers ran out."""
    spill_loads: int
    """Read back per thread."""
    static_shared_memory: int
    """Of a block, fixed in the code."""
    dynamic_shared_memory: int
    """Of a block, asked for at the launch: Triton's."""
    matrix_instructions: dict[str, int]
    """How often the code holds each kind of tensor-core instruction: tcgen05.mma, wgmma.mma_async, mma.sync."""

    @property
    def shared_memory(self) -> int:
        """All shared memory of a block."""
        return self.static_shared_memory + self.dynamic_shared_memory


def compile_with_facts(
    function: Callable, *arguments, target: GpuTarget
) -> tuple[jax.stages.Compiled, tuple[KernelFacts, ...]]:
    """`compile_for_gpu`, and the facts of every kernel that the program launches, in order.

    XLA writes its PTX and its launches to a temporary directory, and ptxas of the CUDA wheels compiles the PTX once
    more: with XLA's own run the report is lost.

    Raises: CudaWheelsMissing; RuntimeError when ptxas refuses the code or XLA's dump is not as expected.
    """
    with tempfile.TemporaryDirectory() as directory:
        compiled = compile_for_gpu(function, *arguments, target=target, compiler_options={"xla_dump_to": directory})
        launches = _launches(Path(directory))
        reports: dict[str, dict] = {}
        for path in Path(directory).glob("*.ptx"):
            code = path.read_text()
            names = re.findall(r"^\.visible \.entry (\w+)\(", code, re.MULTILINE)
            # XLA runs ptxas on its own small kernels too; only those that are launched matter.
            if any(name in launches for name in names):
                reports |= _ptxas_reports(path, target)
                counts = {
                    kind: len(re.findall(rf"^\s*(?:@\S+ )?{kind}\b", code, re.MULTILINE))
                    for kind in _MATRIX_INSTRUCTIONS
                }
                reports |= {name: reports[name] | {"matrix_instructions": counts} for name in names}
    missing = launches.keys() - reports.keys()
    if missing or not launches:
        raise RuntimeError(
            f"no PTX was dumped for kernels {sorted(missing)}: this version of jax names its dump otherwise"
        )
    return compiled, tuple(KernelFacts(name=name, **launch, **reports[name]) for name, launch in launches.items())


def find_ptxas() -> Path:
    """ptxas of the CUDA wheels. Raises CudaWheelsMissing."""
    specification = find_spec("nvidia")
    for folder in () if specification is None else specification.submodule_search_locations or ():
        for path in sorted(Path(folder).glob("*/bin/ptxas")):
            return path
    raise CudaWheelsMissing("ptxas is not installed: `pip install jax-flax-zoo[cuda]`")


def _launches(directory: Path) -> dict[str, dict]:
    """{kernel: grid, threads, dynamic shared memory} of the launches that XLA lists."""
    launches: dict[str, dict] = {}
    pattern = re.compile(r"(\w+) grid: \[(\d+), (\d+), (\d+)\] threads: \[(\d+), 1, 1\]\s+shared_memory: (\d+) bytes")
    for path in sorted(directory.glob("*.thunk_sequence.txt")):
        for name, *numbers in pattern.findall(path.read_text()):
            *grid, threads, shared_memory = map(int, numbers)
            launches[name] = {"grid": tuple(grid), "threads": threads, "dynamic_shared_memory": shared_memory}
    return launches


def _ptxas_reports(path: Path, target: GpuTarget) -> dict[str, dict]:
    """{kernel: registers, spills, static shared memory} of one PTX file."""
    command = [str(find_ptxas()), "-v", f"-arch={target.ptx_target}", str(path), "-o", "/dev/null"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"ptxas refused {path.name} for {target.ptx_target}: {run.stderr.strip()[:400]}")
    reports = {}
    for report in run.stderr.split("Compiling entry function ")[1:]:
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
        registers = re.search(r"Used (\d+) registers", report)
        shared = re.search(r"(\d+) bytes smem", report)
        if spills is None or registers is None:
            raise RuntimeError(f"this version of ptxas reports otherwise: {report[:200]!r}")
        reports[report.split("'")[1]] = {
            "registers": int(registers[1]),
            "spill_stores": int(spills[1]),
            "spill_loads": int(spills[2]),
            "static_shared_memory": int(shared[1]) if shared else 0,
        }
    return reports
