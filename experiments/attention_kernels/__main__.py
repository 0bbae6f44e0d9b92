"""python -m experiments.attention_kernels: the kernels compiled for TPUs and GPUs that are not there, beside splash."""

import datetime
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.attention_kernels import aims, gpu_kernels, hardware, lengths, pictures, report, schedules
from experiments.attention_kernels.correctness import Error
from experiments.attention_kernels.subjects import GEMMA2_9B, GEMMA2_27B, SOFT_CAP
from experiments.speed import machine
from zoo.ahead_of_time.gpu import has_cuda_wheels
from zoo.ahead_of_time.tpu import TARGETS, has_libtpu
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "tokamax")


@dataclass(frozen=True)
class AttentionKernels:
    """Compiles the attention kernels for five TPUs and four GPUs, reads what came out, and times them on a GPU."""

    quick: bool = False
    """Under a minute: one chip, the forward pass, and float64 correctness; also without libtpu."""
    out: Path = Path("runs/attention_kernels")
    """Folder for results.json, and for the pictures of a quick run."""
    report: Path | None = None
    """File of the report (Markdown), pictures beside it; default docs/benchmarks/attention.md, with --quick none."""
    rounds: int = 20
    """Interleaved rounds of the times on a GPU."""

    def __post_init__(self):
        if self.rounds < 1:
            raise UserError(f"rounds must be at least 1, got {self.rounds}")


def main() -> None:
    settings = parse_command(AttentionKernels, "experiments.attention_kernels")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if not has_libtpu() and not settings.quick:
        raise UserError(
            "the kernels are compiled for TPUs by libtpu, which is not installed: `pip install libtpu` (or the extra "
            "`tpu`); --quick does without"
        )
    settings.out.mkdir(parents=True, exist_ok=True)
    results = quick_results(settings) if settings.quick else full_results(settings)
    publish(results, settings)


def quick_results(settings: AttentionKernels) -> report.Results:
    """Correctness in float64, the GPU script in interpret mode, and the forward pass on v6e if libtpu is there."""
    results = empty_results(("float64",))
    say("the script for GPUs, tiny shapes in interpret mode")
    results.times = read_times(run_module(hardware, ["1"], on_cpu=True)["times"])
    if has_libtpu():
        say("v6e, forward pass")
        results.passes = schedules.passes(["v6e"], [GEMMA2_9B.name], [SOFT_CAP], [False])
        results.aims = aims.schedule_aims(results.passes)
    else:
        results.remarks.append(
            "Not compiled for TPUs: libtpu is not installed (`pip install libtpu`, or the extra `tpu`)."
        )
    return results


def full_results(settings: AttentionKernels) -> report.Results:
    """Everything."""
    results = empty_results(("float64", "float32", "bfloat16"))
    targets = list(TARGETS)
    for target in targets:
        say(f"{target}: forward and backward pass, with and without soft-cap")
        shapes = [GEMMA2_9B.name, GEMMA2_27B.name]
        results.passes += schedules.passes([target], shapes, [SOFT_CAP, None], [False, True])
    say("trips and memory against T")
    results.growths = lengths.growths(targets)
    results.memories = lengths.memories()
    say("layers without a window")
    results.global_growths = lengths.global_growths(["v5p", "v6e"])
    say("decode")
    results.decodes = lengths.decodes(targets)
    if has_cuda_wheels():
        say("GPU targets")
        results.gpu_kernels = [gpu_kernels.GpuKernel(**entry) for entry in run_module(gpu_kernels, [], on_cpu=True)]
    else:
        results.remarks.append(
            "GPU targets: not compiled, the CUDA wheels are not installed (`pip install jax-flax-zoo[cuda]`)."
        )
    if gpu_at_hand():
        say("times on the GPU")
        measured = run_module(hardware, [str(settings.rounds)], on_cpu=False)
        results.device = measured["device"]
        results.times, results.windows = read_times(measured["times"]), read_times(measured["windows"])
    results.aims = [
        *aims.schedule_aims(results.passes),
        *aims.growth_aims(results.growths),
        *aims.memory_aims(results.memories),
        *aims.gpu_aims(results.gpu_kernels),
        *aims.hardware_aims(results.times),
    ]
    return results


def empty_results(dtypes: tuple[str, ...]) -> report.Results:
    """Results with the machine's description and the errors in interpret mode."""
    say("correctness in interpret mode")
    from experiments.attention_kernels import correctness

    cores = sorted(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return report.Results(
        date=datetime.date.today().isoformat(),
        command=" ".join(["python -m experiments.attention_kernels", *sys.argv[1:]]),
        machine=machine.describe(cores) | {"versions": versions},
        errors=[Error(**entry) for entry in run_module(correctness, list(dtypes), on_cpu=True)],
    )


def run_module(module, arguments: list[str], *, on_cpu: bool):
    """The last line that `python -m module` prints, as JSON: compilers and a GPU's memory stay out of this process."""
    environment = dict(os.environ)
    environment.pop("XLA_FLAGS", None)  # a parent's virtual devices divide the cores
    if on_cpu:
        environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(
        [sys.executable, "-m", module.__name__, *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def gpu_at_hand() -> bool:
    """Whether jax, in a process of its own, finds a GPU."""
    program = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.split()[-1:] == ["gpu"]


def read_times(entries: list[dict]) -> list[hardware.Time]:
    """From JSON."""
    return [hardware.Time(**entry) for entry in entries]


def publish(results: report.Results, settings: AttentionKernels) -> None:
    """Tables on the terminal, results.json, pictures, and the report of a full run."""
    for title, _, rows in report.tables(results):
        print(f"\n{title}\n{report.as_text(rows)}")
    for remark in results.remarks:
        print(f"\n{remark}")
    if results.device is None:
        print(f"\n{report.NOT_MEASURED}")
    path = settings.report or (None if settings.quick else REPOSITORY / "docs" / "benchmarks" / "attention.md")
    folder = path.parent if path else settings.out
    stem = path.stem if path else "attention"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw(results, folder, stem)
    (settings.out / "results.json").write_text(json.dumps(report.as_json(results), indent=1) + "\n")
    written = [settings.out / "results.json", *(folder / name for name in drawn)]
    if path:
        path.write_text(report.write_report(results, drawn))
        written.append(path)
    print("\nwrote", ", ".join(map(str, written)))


def draw(results: report.Results, folder: Path, stem: str) -> list[str]:
    """Names of the pictures for which there are figures."""
    wanted: list[tuple[str, list, Callable]] = [
        ("bundles", results.passes, pictures.draw_bundles),
        ("memory", results.growths, pictures.draw_memory),
        ("windows", results.windows, pictures.draw_windows),
    ]
    names = []
    for kind, figures, draw_one in wanted:
        if figures:
            names.append(f"{stem}-{kind}.png")
            draw_one(figures, folder / names[-1])
    return names


def say(text: str) -> None:
    """A line of progress."""
    print(f"[{datetime.datetime.now():%H:%M:%S}] {text}", flush=True)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    run_command(main)
