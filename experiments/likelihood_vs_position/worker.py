"""python -m experiments.likelihood_vs_position.worker: one training run, scored on long passages, as JSON."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from experiments.likelihood_vs_position.arms import WORKLOADS, Run, Workload, model_of, optimizer_of, runs_of
from experiments.likelihood_vs_position.rows import Rows, draw_rows, passages
from experiments.likelihood_vs_position.scoring import score_in_chunks
from experiments.likelihood_vs_position.texts import Texts, read_texts
from experiments.likelihood_vs_position.training import train
from experiments.runs import say, write_json

POINTS_PER_OCTAVE = 4


@dataclass(frozen=True)
class Result:
    """What one run, or one checkpoint, found."""

    run: Run
    """Which one."""
    positions: tuple[int, ...]
    """x: numbers of tokens from the beginning of a passage."""
    sums: tuple[tuple[float, ...], ...]
    """[passages, positions] negative log-likelihood in nats of the first x tokens together."""
    documents: tuple[int, ...]
    """The number of each passage's document."""
    training: tuple[tuple[int, float], ...]
    """(step, mean training loss of the steps since the one before)."""
    step_seconds: tuple[float, ...]
    """Median of each stage."""
    parameters: int
    """Of the model."""


def marks(length: int) -> list[int]:
    """1 .. length, evenly spaced in log x (but for rounding), all powers of two among them."""
    octaves = range(POINTS_PER_OCTAVE * length.bit_length())
    points = {round(2 ** (step / POINTS_PER_OCTAVE)) for step in octaves}
    return sorted({point for point in points if point < length} | {length})


def sums_at(nll: Float[np.ndarray, "passages t"], positions: list[int]) -> Float[np.ndarray, "passages n"]:
    """float64 sums of the first x tokens for each x."""
    return np.cumsum(nll, axis=1, dtype=np.float64)[:, np.array(positions) - 1]


def measure(
    model: Any, rows: Rows, workload: Workload, on_rows: Callable[[int], None] = lambda done: None
) -> Float[np.ndarray, "passages t"]:
    """Negative log-likelihood of every token of the passages, a few passages at a time."""
    found = []
    for first in range(0, len(rows), workload.rows_at_once):
        part = rows[first : first + workload.rows_at_once]
        found.append(score_in_chunks(model, part, chunk=workload.chunk).nll)
        on_rows(first + len(part))
    return np.concatenate(found)


def result_of(
    run: Run, model: Any, rows: Rows, documents: Int[np.ndarray, " passages"], workload: Workload, **training: Any
) -> Result:
    """Scores a model on the passages; `training` is what is known of how it came about."""
    positions = marks(rows.shape[1] - 1)
    nll = measure(model, rows, workload, lambda done: say(f"scored {done} of {len(rows)} passages"))
    return Result(
        run=run,
        positions=tuple(positions),
        # A thousandth of a nat in a sum is nothing in its mean, and keeps the file small.
        sums=tuple(tuple(round(float(value), 3) for value in row) for row in sums_at(nll, positions)),
        documents=tuple(map(int, documents)),
        training=training.get("training", ()),
        step_seconds=training.get("step_seconds", ()),
        parameters=model.config.num_parameters(),
    )


def carry_out(run: Run, workload: Workload, texts: Texts) -> Result:
    """Trains the model of a run and measures it."""
    rows, documents = passages(texts.held_out, workload.length, workload.passages, texts.bos_id)
    trained = train(
        model_of(run.arm, workload),
        workload.stages,
        optimizer_of(workload),
        lambda stage, rng: draw_rows(texts.train, stage.length, stage.batch_size, rng, texts.bos_id, stage.copies),
        run.seed,
    )
    told = {"training": trained.losses, "step_seconds": trained.step_seconds}
    return result_of(run, trained.model, rows, documents, workload, **told)


def read_result(path: Path) -> Result:
    """The inverse of `write_result`."""
    fields = json.loads(path.read_text())
    fields |= {name: tuple(map(tuple, fields[name])) for name in ("sums", "training")}
    fields |= {name: tuple(fields[name]) for name in ("positions", "documents", "step_seconds")}
    return Result(**fields | {"run": Run(**fields["run"])})


def write_result(result: Any, path: Path) -> None:
    """One JSON file, whole or not at all."""
    write_json(asdict(result), path)


def main() -> None:
    """Arguments: quick or full, changes of its fields as JSON, the run's name, the texts' folder, the result's file."""
    size, changes, name, out, path = sys.argv[1:]
    workload = replace(WORKLOADS[size], **json.loads(changes))
    run = next(run for run in runs_of(workload) if run.name == name)
    write_result(carry_out(run, workload, read_texts(Path(out))), Path(path))


if __name__ == "__main__":
    main()
