"""python -m experiments.sparse_vs_dense.worker: one training run by `zoo.train`, and what is kept of it, as JSON."""

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from experiments.runs import write_json
from experiments.sparse_vs_dense.arms import FULL, QUICK, Run, model_of, recipe_of
from experiments.training import train_to_the_end
from zoo.training.metrics import read_metrics
from zoo.training.mfu import TRAINING_TO_FORWARD

SMOOTHED_STEPS = 25
"""Training losses are averaged over so many steps."""


@dataclass(frozen=True)
class Result:
    """What one run found."""

    run: Run
    """Which one."""
    validation: tuple[tuple[int, float], ...]
    """(step, nats per token on held-out text)."""
    bits_per_byte: float
    """Of held-out text, at the end."""
    training: tuple[tuple[int, float], ...]
    """(step, mean training loss of the steps since the one before)."""
    tokens_per_step: int
    """Of a batch."""
    tokens_per_second: float
    """Median over the steps."""
    training_flops_per_token: float
    """Forward and backward, the router's included."""
    parameters: int
    """All of them."""
    active_parameters: int
    """Those that one token uses."""
    load: tuple[tuple[float, ...], ...]
    """[layers, experts] part of the choices that each expert got, over the last tenth of the run; empty if dense."""
    largest_load: tuple[tuple[int, float], ...]
    """(step, E times the largest part that an expert got in any layer), smoothed."""
    entropy: tuple[tuple[int, float], ...]
    """(step, the routers' mean entropy in nats), smoothed."""
    dropped: float
    """Part of all choices in training that found no room."""
    router_logsumexp: float
    """Root of the mean of logsumexp(router logits)**2 at the end; 0 where no z-loss reports it."""


def result_of(run: Run, size: str, folder: Path) -> Result:
    """Reads the numbers of a finished run."""
    workload = QUICK if size == "quick" else FULL
    lines = read_metrics(folder / "metrics.jsonl")
    model, last = model_of(run.arm, workload), lines[-1]
    tail = lines[-max(1, len(lines) // 10) :]
    sparse = model.experts is not None
    coefficient = 0.0 if model.experts is None else model.experts.router_z_coefficient
    z = np.mean([line["router_z_loss"] for line in tail]) / coefficient if coefficient else 0.0
    return Result(
        run=run,
        validation=tuple((line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line),
        bits_per_byte=last["validation_bits_per_byte"],
        training=_smoothed(lines, "loss"),
        tokens_per_step=workload.batch_size * workload.sequence_length,
        tokens_per_second=float(np.median([line["step_tokens"] / line["seconds"] for line in lines[1:]])),
        training_flops_per_token=TRAINING_TO_FORWARD * model.flops_per_token(workload.sequence_length),
        parameters=model.num_parameters(),
        active_parameters=model.num_active_parameters(),
        load=tuple(map(tuple, np.mean([line["router_load"] for line in tail], axis=0).tolist())) if sparse else (),
        largest_load=_smoothed(lines, "router_largest_load"),
        entropy=_smoothed(lines, "router_entropy"),
        dropped=float(np.mean([line["router_dropped"] for line in lines])) if sparse else 0.0,
        router_logsumexp=float(np.sqrt(z)),
    )


def _smoothed(lines: list[dict], name: str) -> tuple[tuple[int, float], ...]:
    if name not in lines[-1]:
        return ()
    groups = [lines[first : first + SMOOTHED_STEPS] for first in range(0, len(lines), SMOOTHED_STEPS)]
    return tuple((group[-1]["step"], float(np.mean([line[name] for line in group]))) for group in groups)


def read_result(path: Path) -> Result:
    """The inverse of `write_result`."""
    fields = json.loads(path.read_text())
    pairs = ("validation", "training", "largest_load", "entropy", "load")
    fields |= {name: tuple(map(tuple, fields[name])) for name in pairs}
    return Result(**fields | {"run": Run(**fields["run"])})


def write_result(result: Result, path: Path) -> None:
    """One JSON file, whole or not at all."""
    write_json(asdict(result), path)


def main() -> None:
    """Arguments: quick or full, the run as JSON, the result's path, the tokenizer's folder, the data's paths."""
    size, described, path, tokenizer, *data = sys.argv[1:]
    run, result_path = Run(**json.loads(described)), Path(path)
    folder = result_path.with_suffix("")
    workload = QUICK if size == "quick" else FULL
    train_to_the_end(recipe_of(run, workload, tuple(data), tokenizer, str(folder)))
    write_result(result_of(run, size, folder), result_path)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
