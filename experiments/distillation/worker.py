"""python -m experiments.distillation.worker: one run by `zoo.train`, and what is kept of it, as JSON.

Folder of a run: runs/NAME in the folder `out`, a run directory that `zoo.train` goes on with. A student's is removed
when its numbers are there; the teacher's stays. caches/seed-N is what the teacher says of the tokens of a seed.
"""

import json
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from experiments.distillation.arms import SCRATCH, TEACHER, Run, arm_named
from experiments.distillation.sizes import SIZES, Size, cache_folder, recipe_of, teacher_folder
from experiments.distillation.texts import Rows, read_prepared, shared_of, training_paths
from experiments.kept import read_fields
from experiments.runs import say, write_json
from experiments.speed.zoo_worker import next_token_batch
from experiments.training import train_to_the_end
from zoo.data import Tokenizer
from zoo.errors import run_command
from zoo.interop import load
from zoo.recipes.teacher import WEIGHTS
from zoo.recipes.teacher_cache import TeacherCache
from zoo.recipes.teacher_scores import cached_recipe, write_cache
from zoo.training.losses import next_token_loss
from zoo.training.metrics import read_metrics
from zoo.training.step import make_eval_step

POINTS = 40
"""Of a training curve, at most."""


@dataclass(frozen=True)
class HeldOut:
    """Loss on one text, with real labels."""

    nats: float
    """Per token."""
    bits_per_byte: float
    """The same sum in bits per byte of text."""
    tokens: int
    """Predicted."""


@dataclass(frozen=True)
class Result:
    """What one run found."""

    run: Run
    """Which one."""
    parameters: int
    """Of its model."""
    steps: int
    """Taken."""
    tokens: int
    """Read in them."""
    held_out: dict[str, HeldOut]
    """After the last step, by the name of the text."""
    validation: tuple[tuple[int, float], ...]
    """(step, nats per token of documents of the training file that are held out)."""
    training: tuple[tuple[int, float], ...]
    """(step, mean cross-entropy with real labels of the steps since the one before)."""
    tail: float | None
    """Probability that the teacher gives to words which the cache's K are not, a mean; None without a cache."""
    sampled: float
    """Part of the steps that learnt from samples of the model."""
    step_seconds: float
    """Median on the clock."""
    teacher: str | None
    """SHA-256 of the teacher's weights; None without one."""
    tokenizer: str
    """SHA-256 of it."""


def carry_out(run: Run, size: Size, out: Path) -> Result:
    """Trains and measures. Raises SystemExit(75) if it was asked to stop before: the same again goes on."""
    paths = training_paths(out, shared_of(size))
    recipe = recipe_of(run, size, paths, out)
    if run.arm != TEACHER and arm_named(run.arm).source == "cache":
        make_cache(run.seed, size, paths, out)
    train_to_the_end(recipe)
    lines = read_metrics(Path(recipe.run_dir) / "metrics.jsonl")
    tokenizer, rows = read_prepared(out)
    model = load(recipe.run_dir).model
    weights = Path(recipe.run_dir) / WEIGHTS
    return Result(
        run=run,
        parameters=recipe.model.num_parameters(),
        steps=recipe.loop.steps,
        tokens=size.tokens_of(run),
        held_out={name: held_out_loss(model, tokenizer, own, size.batch_size) for name, own in rows.items()},
        teacher=json.loads(weights.read_text())["sha256"] if weights.is_file() else None,
        tokenizer=tokenizer.fingerprint,
        **curves(run, lines),
    )


def make_cache(seed: int, size: Size, paths: tuple[str, ...], out: Path) -> TeacherCache:
    """The cache of the tokens of a seed, written once; what was written before it was stopped is kept."""
    # Any run of the seed reads the same stream; the cache is as long as a whole one.
    student = recipe_of(Run(SCRATCH, size.widths[0], seed), size, paths, out)
    folder = cache_folder(out, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return write_cache(cached_recipe(student, teacher_folder(out, size)), size.kept_words, folder)


def curves(run: Run, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of a result that come from the numbers of every step."""
    size = -(-len(lines) // POINTS)
    groups = [lines[first : first + size] for first in range(0, len(lines), size)]
    tails = [line["teacher_tail"] for line in lines if "teacher_tail" in line]
    return {
        "validation": tuple((line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line),
        # A step on samples of the model has no real labels.
        "training": tuple(
            (group[-1]["step"], float(np.mean(real)))
            for group in groups
            if (real := [line["loss"] for line in group if not line.get("on_policy")])
        ),
        "tail": float(np.mean(tails)) if tails else None,
        "sampled": float(np.mean([line.get("on_policy", 0.0) for line in lines])),
        "step_seconds": float(np.median([line["seconds"] for line in lines])),
    }


def held_out_loss(model: Any, tokenizer: Tokenizer, rows: Rows, at_once: int) -> HeldOut:
    """Of rows that begin with <bos>, each by itself; so many of them at once."""
    graphdef, params = nnx.split(model, nnx.Param)
    step, loss, weight = make_eval_step(graphdef, next_token_loss), 0.0, 0.0
    for first in range(0, len(rows), at_once):
        sums = step(params, next_token_batch(rows[first : first + at_once]))
        loss, weight = loss + float(sums.loss), weight + float(sums.weight)
    num_bytes = int(np.asarray(tokenizer.token_bytes())[rows[:, 1:]].sum())
    return HeldOut(loss / weight, loss / math.log(2) / num_bytes, int(weight))


def read_result(path: Path) -> Result:
    """The inverse of `write_json(asdict(result), path)`."""
    fields = read_fields(path)
    fields |= {name: tuple(map(tuple, fields[name])) for name in ("validation", "training")}
    held_out = {name: HeldOut(**each) for name, each in fields["held_out"].items()}
    return Result(**fields | {"run": Run(**fields["run"]), "held_out": held_out})


def fill(run: Run, size: Size, out: Path, path: Path) -> None:
    """Carries out a run and writes its result; a student's weights are removed."""
    began = time.time()
    write_json(asdict(carry_out(run, size, out)), path)
    if run.arm != TEACHER:
        shutil.rmtree(out / "runs" / run.name)
    say(f"{run.name}: {time.time() - began:.0f} s")


def main() -> None:
    """Arguments: the size, the run's arm, width and seed, the folder of runs and texts, and where the result goes."""
    size, arm, width, seed, out, path = sys.argv[1:]
    fill(Run(arm, int(width), int(seed)), SIZES[size], Path(out), Path(path))


if __name__ == "__main__":
    run_command(main)
