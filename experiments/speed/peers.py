"""Who takes part: the zoo, and transformers in eager and compiled form under OpenMP's two waiting policies."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from experiments.speed.worker import Worker

ZOO = "zoo"


@dataclass(frozen=True)
class Peer:
    """One implementation with one setting of its environment."""

    name: str
    """Row of the tables."""
    mode: str | None
    """"eager" or "compiled" for transformers, None for the zoo."""
    waiting: str | None
    """OMP_WAIT_POLICY; None = OpenMP's default."""


PEERS = (
    Peer(ZOO, None, None),
    Peer("transformers eager", "eager", None),
    Peer("transformers eager, active", "eager", "active"),
    Peer("torch.compile", "compiled", None),
    Peer("torch.compile, active", "compiled", "active"),
)


def missing_packages() -> list[str]:
    """Those of the optional packages that the comparison needs and that are not installed."""
    return [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]


def start(peer: Peer, folder: Path, size: str, threads: int, scratch: Path) -> Worker:
    """The peer's process, with the parameters of `folder`; logs and compiled kernels go to `scratch`."""
    log = scratch / f"{peer.name.replace(' ', '-').replace(',', '')}.log"
    if peer.mode is None:
        return Worker(peer.name, "experiments.speed.zoo_worker", [str(folder), size], cpu_environment(), log)
    environment = torch_environment(threads, scratch)
    if peer.waiting is not None:
        environment["OMP_WAIT_POLICY"] = peer.waiting
    arguments = [str(folder), size, peer.mode, str(threads)]
    return Worker(peer.name, "experiments.speed.torch_worker", arguments, environment, log)


def torch_environment(threads: int, scratch: Path) -> dict[str, str]:
    """What torch is started with: as many threads as everybody, compiled kernels in `scratch`, no network."""
    return cpu_environment() | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # a pool of compilers would live on beside the measurements
        "TRANSFORMERS_VERBOSITY": "error",
    }


def cpu_environment() -> dict[str, str]:
    """The caller's environment without what would change how jax uses this CPU (virtual devices divide the cores)."""
    return {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}


def pin_to_cores(threads: int) -> list[int]:
    """Restricts this process and what it starts to the first `threads` cores; returns them."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    return cores
