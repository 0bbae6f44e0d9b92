"""python -m experiments.gemma2_ablations.worker: one training run and its measurements, as JSON."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from experiments import kept
from experiments.gemma2_ablations.arms import BASE, WORKLOADS, Run, Workload, model_of, optimizer_of
from experiments.gemma2_ablations.texts import fingerprint, probe_rows, test_rows, unigram_loss
from experiments.gemma2_ablations.training import Probe, held_out_loss, losses_by_window, new_model, train
from experiments.likelihood_vs_position.rows import draw_rows
from experiments.likelihood_vs_position.texts import Texts, read_texts
from experiments.runs import say, write_json
from zoo.errors import run_command


@dataclass(frozen=True)
class Result:
    """What one run found."""

    run: Run
    """Which one."""
    made_with: str
    """`digest` of the settings."""
    text: str
    """`fingerprint` of what was trained and measured on."""
    parameters: int
    """Of the model."""
    tokens: int
    """Read in training."""
    unigram_loss: float
    """Nats per held-out token of a model that knows nothing but how frequent tokens are."""
    initial_loss: float
    """Nats per held-out token before training."""
    held_out_loss: float | None
    """The same at the end; None: not a finite number."""
    training: tuple[tuple[int, float], ...]
    """(step, mean training loss of the steps since the one before)."""
    probes: tuple[Probe, ...]
    """The largest logits over training."""
    largest_gradient: float
    """Largest gradient norm of a step."""
    stopped_at: int | None
    """The step that was not finite and ended the run; None: there was none."""
    windows: tuple[tuple[int, float], ...]
    """(window of local layers at inference, nats per held-out token), of the base at the first learning rate; the first
    is the window of training."""
    step_seconds: float
    """Median of a training step."""


def digest(run: Run, workload: Workload) -> str:
    """Of everything that a run comes from, its seed and the text apart."""
    fields = asdict(workload)
    for name in ("arms", "seeds", "learning_rates"):  # which runs there are is no setting of one of them
        del fields[name]
    parts = [fields, asdict(model_of(run.arm, workload)), asdict(optimizer_of(workload)), run.arm, run.learning_rate]
    return kept.digest(parts)


def carry_out(run: Run, workload: Workload, texts: Texts) -> Result:
    """Trains and measures the model of a run."""
    rows, at_once = test_rows(texts, workload), workload.batch_size
    config = model_of(run.arm, workload)
    model = new_model(config, run.seed)
    initial = held_out_loss(model, rows, at_once)
    assert initial is not None
    random = np.random.default_rng([run.seed, 1])
    trained = train(
        model,
        workload,
        run.learning_rate,
        lambda: draw_rows(texts.train, workload.sequence_length, workload.batch_size, random, texts.bos_id),
        probe_rows(rows, workload.probe_rows),
        run.seed,
    )
    with_windows = run.arm == BASE and run.learning_rate == workload.learning_rates[0]
    windows = losses_by_window(trained.model, workload.windows, rows, at_once) if with_windows else ()
    return Result(
        run=run,
        made_with=digest(run, workload),
        text=fingerprint(texts),
        parameters=config.num_parameters(),
        tokens=(trained.stopped_at or workload.steps) * workload.batch_size * workload.sequence_length,
        unigram_loss=unigram_loss(texts, rows, workload.vocab_size),
        initial_loss=initial,
        held_out_loss=windows[0][1] if windows else held_out_loss(trained.model, rows, at_once),
        training=trained.losses,
        probes=trained.probes,
        largest_gradient=trained.largest_gradient,
        stopped_at=trained.stopped_at,
        windows=windows,
        step_seconds=trained.seconds,
    )


def read_result(path: Path) -> Result:
    """The inverse of `write_json(asdict(result), path)`."""
    fields = json.loads(path.read_text())
    pairs = {name: tuple(map(tuple, fields[name])) for name in ("training", "windows")}
    probes = tuple(Probe(**each) for each in fields["probes"])
    return Result(**fields | pairs | {"run": Run(**fields["run"]), "probes": probes})


def main() -> None:
    """Arguments: name of the workload, arm, learning rate, seed, folder of the text, and where the result goes."""
    name, arm, rate, seed, out, path = sys.argv[1:]
    run, began = Run(arm, float(rate), int(seed)), time.time()
    result = carry_out(run, WORKLOADS[name], read_texts(Path(out)))
    write_json(asdict(result), Path(path))
    loss = "not finite" if result.held_out_loss is None else f"{result.held_out_loss:.4f} nats per held-out token"
    say(f"{run.name}: {loss}, {time.time() - began:.0f} s")


if __name__ == "__main__":
    run_command(main)
