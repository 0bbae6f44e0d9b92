"""python -m experiments.local_global.worker: one training run and its measurements, as JSON."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from experiments.likelihood_vs_position.rows import draw_rows
from experiments.likelihood_vs_position.texts import Texts, read_texts
from experiments.likelihood_vs_position.training import train
from experiments.likelihood_vs_position.worker import write_result
from experiments.local_global.arms import ALL_GLOBAL, WORKLOADS, Run, Workload, model_of, optimizer_of
from experiments.local_global.copying import Copying, copying_of, make_test, score_rows, with_window


@dataclass(frozen=True)
class Result:
    """What one run found."""

    run: Run
    """Which one."""
    windows: dict[str, Copying]
    """By the window of the local layers at inference, in digits; the first one is that of training."""
    rows: int
    """Held-out rows that were measured on."""
    training: tuple[tuple[int, float], ...]
    """(step, mean training loss of the steps since the one before), copies included."""
    step_seconds: tuple[float, ...]
    """Median of each stage."""
    parameters: int
    """Of the model."""
    flops_per_token: float
    """Forward, at the last stage's length."""

    @property
    def copying(self) -> Copying:
        """With the window of training."""
        return next(iter(self.windows.values()))


def carry_out(run: Run, workload: Workload, texts: Texts) -> Result:
    """Trains the model of a run and measures it with every window."""
    test = make_test(texts.held_out, workload.trained_length, workload.rows, workload.copies, texts.bos_id)
    config = model_of(run.arm, workload)
    trained = train(
        config,
        workload.stages,
        optimizer_of(workload),
        lambda stage, rng: draw_rows(texts.train, stage.length, stage.batch_size, rng, texts.bos_id, stage.copies),
        run.seed,
    )
    # The window is nothing to a model without local layers.
    windows = workload.windows[:1] if run.arm == ALL_GLOBAL else workload.windows
    found = {}
    for window in windows:
        scores = score_rows(with_window(trained.model, window), test.rows, workload.rows_at_once)
        found[str(window)] = copying_of(scores, test)
    return Result(
        run=run,
        windows=found,
        rows=len(test.rows),
        training=trained.losses,
        step_seconds=trained.step_seconds,
        parameters=config.num_parameters(),
        flops_per_token=config.flops_per_token(workload.trained_length),
    )


def read_result(path: Path) -> Result:
    """The inverse of `write_result`."""
    fields = json.loads(path.read_text())
    fields |= {"training": tuple(map(tuple, fields["training"])), "step_seconds": tuple(fields["step_seconds"])}
    copying = {
        window: Copying(**each | {"by_offset": tuple(each["by_offset"])}) for window, each in fields["windows"].items()
    }
    return Result(**fields | {"run": Run(**fields["run"]), "windows": copying})


def main() -> None:
    """Arguments: quick or full, the run's arm and seed, the texts' folder, the result's file."""
    size, arm, seed, out, path = sys.argv[1:]
    run = Run(arm, int(seed))
    write_result(carry_out(run, WORKLOADS[size], read_texts(Path(out))), Path(path))


if __name__ == "__main__":
    main()
