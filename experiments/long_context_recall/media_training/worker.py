"""python -m experiments.long_context_recall.media_training.worker: one run, stage by stage, and its examination.

Folder of a run: NAME/STAGE-ATTEMPT is a checkpoint that `zoo.load` opens (parameters, tokenizer, how media become
tokens), with STAGE-ATTEMPT.json beside it; the last one is what is examined. What is there is not done again.
"""

import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from experiments.kept import read_fields
from experiments.long_context_recall.media import media_sources
from experiments.long_context_recall.media_training.curriculum import Stage, Workload, model_of
from experiments.long_context_recall.media_training.examination import MediaExamined, examine
from experiments.long_context_recall.media_training.material import make_material
from experiments.long_context_recall.media_training.rows import Layout
from experiments.long_context_recall.media_training.sizes import MEDIA_SIZES, MediaSize
from experiments.long_context_recall.media_training.trainer import recall, train_stage
from experiments.long_context_recall.training.arms import Run
from experiments.long_context_recall.training.examination import Examined
from experiments.runs import say, write_json
from experiments.shared_folder import default_shared
from zoo.data import load_tokenizer, train_tokenizer
from zoo.data.video import time_stamp
from zoo.data.vocabulary import MediaVocabulary
from zoo.errors import run_command
from zoo.interop import load, save_run
from zoo.models import build

WORD_COPIES = 20
"""Of each word in the tokenizer's text, so that each is a token or two."""


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
    row_length: int
    """T of its rows."""
    seconds: float
    """Of all steps, the first left out."""
    training: tuple[tuple[int, float], ...]
    """(step, mean loss of the steps since the one before, in nats per token of the answer)."""
    recall: float
    """Of rows of the stage from validation material: part whose answer is right."""


@dataclass(frozen=True)
class Result:
    """What one run found."""

    run: Run
    """Which one."""
    parameters: int
    """Of the model."""
    trained_length: int
    """Tokens of the longest row."""
    stages: tuple[StageResult, ...]
    """All attempts."""
    examined: tuple[MediaExamined, ...]
    """All cells of the grid."""


def carry_out(run: Run, size: MediaSize, folder: Path) -> Result:
    """Trains in `folder` and examines."""
    arm = size.arm(run.arm)
    shared = default_shared() if size.real else None
    stages = tuple(train(run, arm.workload, shared, folder))
    loaded = load(folder / _name(arm.workload.stages[-1], stages[-1].attempt))
    assert loaded.tokenizer is not None and loaded.media_config is not None
    cells = examine(
        loaded.model, loaded.tokenizer, loaded.media_config, media_sources(shared), arm.grid, folder / "cells"
    )
    config = loaded.config
    return Result(run, config.num_parameters(), config.max_position_embeddings, stages, cells)


def train(run: Run, workload: Workload, shared: Path | None, folder: Path) -> list[StageResult]:
    """All stages; each attempt begins with the weights of the one before and with a seed of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer").is_dir():
        make_tokenizer(workload, folder / "tokenizer")
    tokenizer, layouts = load_tokenizer(folder / "tokenizer"), list[Layout]()
    found: list[StageResult] = []
    before: Path | None = None
    for number, stage in enumerate(workload.stages):
        for attempt in range(1, stage.attempts + 1):
            here = folder / _name(stage, attempt)
            kept = here.with_suffix(".json")
            if not kept.is_file():
                if not layouts:
                    say(f"{run.name}: frames and recordings")
                    layouts = [layout_of(run, workload, tokenizer, shared, part) for part in ("train", "validation")]
                model = new_model(layouts[0], run.seed) if before is None else load(before).model
                shutil.rmtree(here, ignore_errors=True)  # of an attempt that was stopped while it was written
                write_json(asdict(train_attempt(run, workload, number, attempt, model, layouts, here)), kept)
            found.append(stage_from(json.loads(kept.read_text())))
            if before is not None:
                shutil.rmtree(before, ignore_errors=True)
            before = here
            if found[-1].recall >= stage.gate:
                break
    return found


def make_tokenizer(workload: Workload, folder: Path) -> None:
    """Of the task's words, its question and time stamps."""
    words = " ".join([*workload.video.words, *map(str, range(10))])
    words += " zero one two three four five six seven eight nine"
    stamps = " ".join(time_stamp(second) for second in range(0, 6000, 61))
    texts = [f"\nWhat is the secret word? {words}\nWhich keyword is spoken: {words}, {stamps}"] * WORD_COPIES
    train_tokenizer(texts, workload.vocab_size).save(folder)


def layout_of(run: Run, workload: Workload, tokenizer: Any, shared: Path | None, part: Any) -> Layout:
    """Material for training, which is varied, or for looks on the way; the latter is the same for all seeds."""
    sources, training = media_sources(shared, part), part == "train"
    sizes = (workload.items, workload.plain) if training else (workload.test_items, workload.test_items)
    seed = run.seed if training else 0
    return Layout(tokenizer, workload, make_material(workload, sources, *sizes, seed, vary=training))


def new_model(layout: Layout, seed: int) -> Any:
    """Random weights."""
    workload = layout.workload
    words = MediaVocabulary(layout.tokenizer.vocab_size, 0).size
    return build(model_of(workload, words, layout.length(workload.stages[-1])), rngs=nnx.Rngs(seed))


def train_attempt(
    run: Run, workload: Workload, number: int, attempt: int, model: Any, layouts: list[Layout], here: Path
) -> StageResult:
    """One attempt at stage `number`; its checkpoint goes to `here`."""
    stage, (training, validation) = workload.stages[number], layouts
    say(f"{run.name}: stage {number + 1} of {len(workload.stages)}, {stage.name}, attempt {attempt}")
    random = np.random.default_rng([run.seed, 1, number, attempt])
    trained = train_stage(model, training, stage, random, run.seed)
    right = recall(trained.model, validation, stage, stage.test_rows, run.seed)
    say(f"{run.name}: {stage.name}, attempt {attempt}: {right:.1%} of validation rows")
    here.parent.mkdir(parents=True, exist_ok=True)
    save_run(trained.model, here, tokenizer=training.tokenizer, media=workload.media)
    length = training.length(stage)
    return StageResult(
        stage.name, attempt, stage.steps, trained.tokens, length, trained.seconds, trained.losses, right
    )  # fmt: skip


def _name(stage: Stage, attempt: int) -> str:
    return f"{stage.name}-{attempt}"


def read_result(path: Path) -> Result:
    """The inverse of `write_json(asdict(result), path)`."""
    fields = read_fields(path)
    stages, examined = map(stage_from, fields["stages"]), (_cell_from(cell) for cell in fields["examined"])
    return Result(**fields | {"run": Run(**fields["run"]), "stages": tuple(stages), "examined": tuple(examined)})


def _cell_from(fields: dict) -> MediaExamined:
    cell = fields["cell"]
    examined = Examined(**cell | {name: tuple(cell[name]) for name in ("scores", "ranks")})
    return MediaExamined(**fields | {"cell": examined})


def stage_from(fields: dict) -> StageResult:
    """From JSON."""
    return StageResult(**fields | {"training": tuple(map(tuple, fields["training"]))})


def main() -> None:
    """Arguments: the size, the arm, the seed, the folder of runs, and where the result goes. The checkpoint of the last
    stage stays."""
    size, arm, seed, out, path = sys.argv[1:]
    run, began = Run(arm, int(seed)), time.time()
    folder = Path(out) / "runs" / run.name
    write_json(asdict(carry_out(run, MEDIA_SIZES[size], folder)), Path(path))
    say(f"{run.name}: {time.time() - began:.0f} s; its folder is {folder}")


if __name__ == "__main__":
    run_command(main)
