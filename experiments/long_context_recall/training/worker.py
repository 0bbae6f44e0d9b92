"""python -m experiments.long_context_recall.training.worker: one run, stage by stage, and its examination.

Folder of a run: NAME/STAGE-ATTEMPT is a checkpoint that `zoo.load` opens (parameters and tokenizer), with what was
measured in STAGE-ATTEMPT.json and a digest of all that it comes from in STAGE-ATTEMPT.from; the last one is what the
study examines. What is there is not done again, and what another run has that comes from the same is taken from it.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from experiments.kept import digest, read_fields
from experiments.long_context_recall.haystacks import haystack
from experiments.long_context_recall.training.arms import Arm, Run, arm_named, workload_of
from experiments.long_context_recall.training.curriculum import Stage, Workload, model_of
from experiments.long_context_recall.training.documents import Rows, Wording, batch_of, draw_rows, wording
from experiments.long_context_recall.training.examination import Examined, examine
from experiments.long_context_recall.training.keys import UNSEEN
from experiments.long_context_recall.training.sizes import SIZES, Size
from experiments.long_context_recall.training.texts import passages, read_training
from experiments.long_context_recall.training.trainer import answered, new_model, train_stage, with_window
from experiments.runs import say, write_json
from experiments.shared_folder import default_shared
from zoo.data import Tokenizer
from zoo.errors import run_command
from zoo.interop import load, save_run
from zoo.training.losses import next_token_loss
from zoo.training.step import make_eval_step


@dataclass(frozen=True)
class StageResult:
    """What one attempt at a stage found."""

    stage: str
    """Which one."""
    attempt: int
    """From 1."""
    steps: int
    """Of the attempt."""
    tokens: int
    """Read."""
    seconds: float
    """Of all steps, the first left out."""
    training: tuple[tuple[int, float], ...]
    """(step, mean loss of the steps since the one before, in nats per unit of weight)."""
    recall: dict[str, float]
    """Of rows of the stage with unseen keys, by kind: part of questions whose number is right."""


@dataclass(frozen=True)
class Result:
    """What one run found."""

    run: Run
    """Which one."""
    parameters: int
    """Of the model."""
    trained_length: int
    """Of the last stage."""
    stages: tuple[StageResult, ...]
    """All attempts; none for an arm that takes another one's weights. (Seconds may be those of another run's.)"""
    text_loss: float
    """Nats per token of held-out novels, without needles."""
    examined: tuple[Examined, ...]
    """All cells of the grid."""


def carry_out(run: Run, size: Size, out: Path, folder: Path) -> Result:
    """Trains in `folder` and examines; `out` has tokenizer and text. An arm that takes another one's weights has them
    trained beside `folder`, if they are not there yet."""
    arm = arm_named(run.arm)
    tokenizer, hay = read_training(out)
    trained = arm if arm.weights_of is None else arm_named(arm.weights_of)
    workload, trained_run = workload_of(trained, size.workload), Run(trained.name, run.seed)
    weights = folder if trained is arm else folder.parent / trained_run.name
    stages = tuple(train(trained_run, workload, wording(tokenizer), hay, weights))
    model = examined_model(load(weights / _name(workload.stages[-1], stages[-1].attempt)).model, arm)
    # What other checkpoints are asked about: novels that are not trained on.
    test_text = haystack(tokenizer, default_shared() if size.novels else None)
    kept = folder / "text_loss.json"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        rows = passages(test_text, tokenizer.bos_id, workload.text_passages, workload.text_length)
        write_json(text_loss(model, tokenizer, rows), kept)
    cells = examine(model, tokenizer, test_text, size.grid_of(arm.name), folder / "cells")
    return Result(
        run,
        workload_parameters(workload),
        workload.trained_length,
        stages if trained is arm else (),
        json.loads(kept.read_text()),
        cells,
    )


def train(run: Run, workload: Workload, words: Wording, hay: Any, folder: Path) -> list[StageResult]:
    """All stages; each attempt begins with the weights of the one before and with a seed of its own."""
    found: list[StageResult] = []
    before: Path | None = None
    for number, stage in enumerate(workload.stages):
        for attempt in range(1, stage.attempts + 1):
            here = folder / _name(stage, attempt)
            kept = here.with_suffix(".json")
            if not kept.is_file():
                shutil.rmtree(here, ignore_errors=True)  # of an attempt that was stopped while it was written
                comes_from = _comes_from(run, workload, found, number, attempt)
                other = _done_elsewhere(here, comes_from)
                if other is not None:
                    say(f"{run.name}: {stage.name}, attempt {attempt}: as {other.parent.name} did it")
                    save_run(with_window(load(other).model, workload, stage.window), here, tokenizer=words.tokenizer)
                    result = json.loads(other.with_suffix(".json").read_text())
                else:
                    model = new_model(workload, run.seed) if before is None else load(before).model
                    result = asdict(train_attempt(run, workload, number, attempt, model, words, hay, here))
                write_json(result, kept)
                here.with_suffix(".from").write_text(comes_from)
            found.append(stage_from(json.loads(kept.read_text())))
            before = here
            if not stage.gate or float(np.mean(list(found[-1].recall.values()))) >= stage.gate:
                break
    return found


def _comes_from(run: Run, workload: Workload, done: list[StageResult], number: int, attempt: int) -> str:
    """A digest of what an attempt at stage `number` depends on, the text apart, which runs of a folder share."""
    attempts = [*((stage.stage, stage.attempt) for stage in done), (workload.stages[number].name, attempt)]
    return digest([run.seed, attempts, asdict(replace(workload, stages=workload.stages[: number + 1]))])


def _done_elsewhere(here: Path, comes_from: str) -> Path | None:
    """The checkpoint of another run that comes from the same."""
    for said in sorted(here.parent.parent.glob(f"*/{here.name}.from")):
        if said.read_text() == comes_from:
            return said.with_suffix("")
    return None


def train_attempt(
    run: Run, workload: Workload, number: int, attempt: int, model: Any, words: Wording, hay: Any, here: Path
) -> StageResult:
    """One attempt at stage `number`; its checkpoint goes to `here`."""
    stage = workload.stages[number]
    say(f"{run.name}: stage {number + 1} of {len(workload.stages)}, {stage.name}, attempt {attempt}")
    random = np.random.default_rng([run.seed, 1, number, attempt])
    draw: Callable[[], Rows] = lambda: draw_rows(words, hay, stage, random)  # noqa: E731
    trained = train_stage(model, workload, stage, draw, run.seed, words.tokenizer.pad_id)
    recall: dict[str, float] = {}
    for kind in UNSEEN if stage.needles else ():
        recall[kind] = answered(trained.model, words, hay, stage, (kind,), workload.test_rows, run.seed).recall
    say(f"{run.name}: {stage.name}, attempt {attempt}: recall of " + (
        ", ".join(f"{kind} {part:.1%}" for kind, part in recall.items()) or "nothing"))  # fmt: skip
    here.parent.mkdir(parents=True, exist_ok=True)
    save_run(trained.model, here, tokenizer=words.tokenizer)
    return StageResult(stage.name, attempt, stage.steps, trained.tokens, trained.seconds, trained.losses, recall)


def _name(stage: Stage, attempt: int) -> str:
    return f"{stage.name.replace(' ', '-')}-{attempt}"


def examined_model(model: Any, arm: Arm) -> Any:
    """The same weights under the arm's changes of the config."""
    if not arm.examined:
        return model
    config = replace(model.config, **dict(arm.examined))
    made = nnx.eval_shape(lambda: type(model)(config, execution=model.execution, rngs=nnx.Rngs(0)))
    return nnx.merge(nnx.split(made, nnx.Param)[0], nnx.state(model, nnx.Param))


def text_loss(model: Any, tokenizer: Tokenizer, rows: np.ndarray) -> float:
    """Mean nats per token of passages, each by itself."""
    graphdef, params = nnx.split(model, nnx.Param)
    step, loss, weight = make_eval_step(graphdef, next_token_loss), 0.0, 0.0
    for row in rows:
        ones, none = np.ones((1, len(row)), np.float32), np.zeros((1, len(row)), np.int32)
        sums = step(params, batch_of(Rows(row[None], ones, none), tokenizer.pad_id))
        loss, weight = loss + float(sums.loss), weight + float(sums.weight)
    return loss / weight


def workload_parameters(workload: Workload) -> int:
    """Of the model."""
    return model_of(workload, 1).num_parameters()


def read_result(path: Path) -> Result:
    """The inverse of `write_json(asdict(result), path)`."""
    fields = read_fields(path)
    stages, examined = map(stage_from, fields["stages"]), (_cell_from(cell) for cell in fields["examined"])
    return Result(**fields | {"run": Run(**fields["run"]), "stages": tuple(stages), "examined": tuple(examined)})


def _cell_from(fields: dict) -> Examined:
    return Examined(**fields | {name: tuple(fields[name]) for name in ("scores", "ranks")})


def stage_from(fields: dict) -> StageResult:
    """From JSON."""
    return StageResult(**fields | {"training": tuple(map(tuple, fields["training"]))})


def main() -> None:
    """Arguments: the size, the arm, the seed, the folder of runs and texts, and where the result goes.
    Checkpoints stay."""
    size, arm, seed, out, path = sys.argv[1:]
    run, began = Run(arm, int(seed)), time.time()
    folder = Path(out) / "runs" / run.name
    write_json(asdict(carry_out(run, SIZES[size], Path(out), folder)), Path(path))
    say(f"{run.name}: {time.time() - began:.0f} s; its folder is {folder}")


if __name__ == "__main__":
    run_command(main)
