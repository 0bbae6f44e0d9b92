"""Eight virtual CPU devices and a compile cache for every test, set before anything imports jax."""

import gc
import logging
import os
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is compilation: without LLVM's optimizations it takes a third less, with the older emitters of
# fused loops, which jaxlib 0.12 no longer has, another third, and as one LLVM module in place of many, each with an
# overhead, another sixth (all measured, in processor time).
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
for flag in FLAGS:
    if flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

# The workers of pytest-xdist, commands that tests start and the next run share a cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# A first example compiles: no deadline. The examples are the same on every machine, so a failure can be repeated.
hypothesis.settings.register_profile("zoo", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("zoo")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was imported stays, and tracing makes many objects but few cycles: looking for them took a
    twelfth of the processor time of the model's tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def find_shared_dir() -> Path | None:
    """The optional folder of larger test data: $ZOO_SHARED, or `shared` beside the repository; None when absent."""
    named = os.environ.get("ZOO_SHARED")
    folder = Path(named) if named else REPOSITORY.parent / "shared"
    return folder.resolve() if folder.is_dir() else None


@pytest.fixture
def run_module(capsys, monkeypatch) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """`python -m MODULE ARGUMENTS...` in this process, which has imported the libraries: a new one takes three seconds
    for that. Gives (exit code, standard output, standard error); a traceback is the test's."""
    absl, hook = logging.getLogger("absl"), sys.unraisablehook
    level = absl.level

    def run(module: str, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
                code = 0
            except SystemExit as stop:
                code = stop.code or 0
        return code, *capsys.readouterr()

    yield run
    absl.setLevel(level)
    sys.unraisablehook = hook


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The optional folder of larger test data; the test is skipped, with the reason, where there is none."""
    folder = find_shared_dir()
    if folder is None:
        pytest.skip("optional test data: no folder `shared` beside the repository and ZOO_SHARED is not set")
    return folder
