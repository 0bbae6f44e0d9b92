"""What the figures were taken on, and how fast its memory is."""

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")


def describe(cores: list[int]) -> dict[str, str]:
    """Processor, cores in use, memory, system, versions and the commit of this repository."""
    return {
        "processor": _processor(),
        "cores": f"{len(cores)} of {os.cpu_count()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "commit": _commit(),
        "load before the run": load(),
    }


def load() -> str:
    """Processes that ran or wanted to, on average over the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def read_bandwidth(threads: int, num_bytes: int, repeats: int = 7) -> float:
    """Bytes per second at which `threads` threads read `num_bytes` (a maximum over an array), fastest time."""
    array = np.ones(num_bytes // 4, np.float32)
    return _fastest(threads, repeats, lambda part: array[part].max(), array.size) * array.nbytes


def copy_bandwidth(threads: int, num_bytes: int, repeats: int = 7) -> float:
    """Bytes read plus bytes written per second by `threads` threads that copy an array of `num_bytes`."""
    source = np.ones(num_bytes // 4, np.float32)
    target = np.zeros_like(source)

    def copy(part: slice) -> None:
        target[part] = source[part]

    return _fastest(threads, repeats, copy, source.size) * 2 * source.nbytes


def _fastest(threads: int, repeats: int, work: Callable[[slice], object], size: int) -> float:
    """Repetitions per second, from the fastest; numpy lets go of the interpreter in these functions."""
    bounds = [size * i // threads for i in range(threads + 1)]
    parts = [slice(*pair) for pair in zip(bounds, bounds[1:])]
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(work, parts))
            seconds.append(time.perf_counter() - start)
    return 1 / min(seconds)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    vectors = [name for name in ("avx2", "avx512f", "amx_tile") if name in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(vectors) or 'no AVX'})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    return commit + (
        " with uncommitted changes" if git("status", "--porcelain", "--", ":/zoo", ":/experiments") else ""
    )
