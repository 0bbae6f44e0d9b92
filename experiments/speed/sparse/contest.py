"""One interleaved run of the sparse contest: who takes part, what they must agree on, and what is measured."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.aim import Aim
from experiments.speed import peers
from experiments.speed.contest import MATMUL_SIZE, Contest, Measurement, measure, require
from experiments.speed.sparse.workload import SparseWorkload
from experiments.speed.worker import Worker
from experiments.speed.workload import LOSS_TOLERANCE

DENSE, DROPLESS, CAPACITY = "zoo dense", "zoo dropless", "zoo capacity"
LEAST_OF_DENSE, LEAST_OF_PEER = 0.75, 2.0
"""Tokens per second of the dropless step that were aimed at, in multiples of the dense step's and of transformers'."""

TUNABLES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
"""Environment of every process alike: where Linux offers pages of 2 MB on request, malloc requests them. Without, XLA's
buffers come anew from the system for every step, 4 KB at a time: 196,000 page faults in a dropless step of the full
size, 0.45 s of 3.0 s of processor time (with: 800, and 0.1 s)."""


@dataclass(frozen=True)
class Contestant:
    """One implementation."""

    name: str
    """Row of the tables."""
    kind: str | None
    """Model of the zoo; None for transformers."""
    mode: str = "eager"
    """"eager" or "compiled", of transformers."""
    experts: str = ""
    """transformers' name of its implementation of the experts."""


CONTESTANTS = (
    Contestant(DENSE, "dense"),
    Contestant(DROPLESS, "dropless"),
    Contestant(CAPACITY, "capacity"),
    Contestant("transformers, eager experts", None, experts="eager"),
    Contestant("transformers, grouped_mm", None, experts="grouped_mm"),
    Contestant("torch.compile, grouped_mm", None, "compiled", "grouped_mm"),
)
"""transformers' third implementation, batched_mm, copies the matrices of every choice: 45 GB at the full size."""


def start(contestant: Contestant, folder: Path, size: str, threads: int, scratch: Path) -> Worker:
    """The contestant's process; transformers loads the parameters of `folder`, which are those of the zoo's seed."""
    log = scratch / f"{contestant.name.replace(' ', '-').replace(',', '')}.log"
    if contestant.kind is not None:
        module, arguments, environment = "zoo_worker", [contestant.kind, size], peers.cpu_environment()
    else:
        module, environment = "torch_worker", peers.torch_environment(threads, scratch)
        arguments = [str(folder), size, contestant.mode, contestant.experts, str(threads)]
    environment = environment | dict([TUNABLES])
    return Worker(contestant.name, f"experiments.speed.sparse.{module}", arguments, environment, log)


def run_sparse_contest(
    workers: dict[str, Worker], workload: SparseWorkload, say: Callable[[str], None]
) -> tuple[Contest, dict[str, dict[str, float]]]:
    """Checks that the same function is trained, then times its step; also what the zoo's routers did in the end."""
    contest = Contest()
    say("first losses, after compilation")
    losses = {}
    for name, worker in workers.items():
        losses[name] = worker.call("losses", steps=workload.checked_steps)
        say(f"  {name}: {', '.join(f'{loss:.4f}' for loss in losses[name])}")
    for name in workers:
        if name in (DENSE, CAPACITY):
            continue  # other functions
        difference = max(abs(a - b) for a, b in zip(losses[name], losses[DROPLESS], strict=True))
        contest.agreement[name] = {"losses": difference}
        require(difference <= LOSS_TOLERANCE, f"{name}: losses {losses[name]} against {losses[DROPLESS]} of the zoo")
    tokens = workload.batch_size * workload.length
    title = f"training step, B = {workload.batch_size}, T = {workload.length}"
    contest.measurements["train"] = measure(workers, title, tokens, workload.rounds, say, "train")
    contest.peak_bytes = {name: worker.call("peak_memory") for name, worker in workers.items()}
    contest.matmul_rates = {name: worker.call("matmul", size=MATMUL_SIZE) for name, worker in workers.items()}
    routing = {name: workers[name].call("routing") for name in (DROPLESS, CAPACITY)}
    return contest, routing


def ratios_to(name: str, measurement: Measurement, of: str = DROPLESS) -> list[float]:
    """Tokens per second of `of`, in multiples of those of `name`, in each round."""
    return [theirs / ours for theirs, ours in zip(measurement.seconds[name], measurement.seconds[of], strict=True)]


def median_interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """Bounds that hold the median with at least this probability, whatever the distribution: the r-th smallest and the
    r-th largest value, with the largest r for which 2 P(Binomial(n, 1/2) < r) <= 1 - level. Few values: their range."""
    ordered, count = sorted(values), len(values)
    rank, below = 0, 0.0
    while rank < count // 2 and 2 * (below + math.comb(count, rank) / 2**count) <= 1 - level:
        below += math.comb(count, rank) / 2**count
        rank += 1
    at = max(rank - 1, 0)
    return ordered[at], ordered[-1 - at]


def written(ratios: list[float]) -> str:
    """ "median (interval)" of ratios."""
    low, high = median_interval(ratios)
    return f"{statistics.median(ratios):.2f}x ({low:.2f} .. {high:.2f})"


def sparse_aims(contest: Contest) -> list[Aim]:
    """Against the dense model, and against the fastest of transformers where it took part; by the median round."""
    measurement = contest.measurements["train"]
    others = [name for name in measurement.seconds if not name.startswith("zoo")]
    goals = [("the dense model of equal active FLOPs", DENSE, LEAST_OF_DENSE)]
    for kind in ("transformers", "torch.compile"):
        rivals = [name for name in others if name.startswith(kind)]
        if rivals:
            best = min(rivals, key=lambda name: statistics.median(measurement.seconds[name]))
            goals.append((best if kind == "torch.compile" else f"the faster of {kind}' ({best})", best, LEAST_OF_PEER))
    aims = []
    for what, name, goal in goals:
        ratios = ratios_to(name, measurement)
        reached = statistics.median(ratios) >= goal
        aims.append(Aim(f"dropless training step against {what}", f"{goal:g}x", written(ratios), reached))
    return aims
