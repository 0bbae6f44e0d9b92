"""python -m experiments.in_context_language.worker: one training run, stage by stage, its answers, and what is kept."""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from experiments.in_context_language.evaluation import Measured, Setting, find_unseen, measure, settings_of
from experiments.in_context_language.lessons import write_lessons
from experiments.in_context_language.scores import Score
from experiments.in_context_language.stages import Run, Stage, Workload, model_of, recipe_of
from experiments.in_context_language.workloads import WORKLOADS
from experiments.kept import read_fields
from experiments.matching import begin_queries_like_keys
from experiments.runs import say, write_json
from experiments.training import train_to_the_end
from zoo.data import Tokenizer, load_tokenizer
from zoo.errors import run_command
from zoo.interop import load, save_run
from zoo.models import build
from zoo.training.metrics import read_metrics

SMOOTHED_STEPS = 20
LANGUAGES_OF_AN_ATTEMPT = 1_000_000
"""More than any has: attempt i of all attempts of all runs begins with language i times this."""
MOST_ATTEMPTS = 100
"""Of all stages of a run together."""


@dataclass(frozen=True)
class StageResult:
    """What one attempt at a stage found."""

    stage: str
    """Which one."""
    attempt: int
    """From 1."""
    documents: int
    """There were to read, each of another language."""
    tokens: int
    """Read."""
    seconds: float
    """Of all training steps together, compilation left out."""
    training: tuple[tuple[int, float], ...]
    """(step, mean loss of the steps since the one before, in nats per token that counts)."""
    found: dict[str, float]
    """What of the stage's test is exact at the end, by direction; of facts all together."""


@dataclass(frozen=True)
class Result:
    """What one run found."""

    run: Run
    """Which one."""
    parameters: int
    """Of the model."""
    stages: tuple[StageResult, ...]
    """All attempts at all stages."""
    measured: tuple[Measured, ...]
    """The translations; none if the run was ended."""
    ended: str = ""
    """Why the run was ended before its last stage; empty: it was not."""


def carry_out(run: Run, workload: Workload, out: Path, folder: Path) -> Result:
    """Trains and measures in `folder`; `out` has the tokenizer. What is done there already is not done again."""
    tokenizer, found, before = load_tokenizer(out / "tokenizer"), list[StageResult](), None
    for stage in workload.stages:
        for attempt in range(1, stage.attempts + 1):
            here = folder / f"{stage.name.replace(' ', '-')}-{attempt}"
            first = (run.seed * MOST_ATTEMPTS + len(found)) * LANGUAGES_OF_AN_ATTEMPT
            done = train_stage(run, workload, stage, attempt, first, out / "tokenizer", before, here)
            found.append(done)
            before = here
            if mean(done.found) >= stage.gate:
                break
        if max(found[-1].found.values()) < stage.gate:
            return Result(run, model_of(workload).num_parameters(), tuple(found), (), _why_ended(stage, found[-1]))
    assert before is not None
    measured = measure_all(load(before).model, tokenizer, workload, folder)
    return Result(run, model_of(workload).num_parameters(), tuple(found), measured)


def train_stage(
    run: Run,
    workload: Workload,
    stage: Stage,
    attempt: int,
    first: int,
    tokenizer: Path,
    before: Path | None,
    here: Path,
) -> StageResult:
    """One attempt at a stage in the folder `here`, with the languages from `first` on. Raises SystemExit(75) if it was
    stopped before its last step."""
    kept = here / "stage.json"
    if kept.is_file():
        return _stage_from(json.loads(kept.read_text()))
    documents, tokens = here.with_suffix(".jsonl"), load_tokenizer(tokenizer)
    if not documents.is_file():
        here.parent.mkdir(parents=True, exist_ok=True)
        write_lessons(stage, tokens, first, documents)
    say(f"{run.name}, {stage.name}, attempt {attempt}")
    begin = here.with_name(f"{here.name}-begin")
    if not begin.is_dir():
        write_beginning(run, workload, stage, before, tokens, begin)
    train_to_the_end(recipe_of(run, workload, stage, documents, tokenizer, begin, here))
    lines = read_metrics(here / "metrics.jsonl")
    with open(documents, encoding="utf-8") as file:
        count = sum(1 for _ in file)
    result = StageResult(
        stage=stage.name,
        attempt=attempt,
        documents=count,
        tokens=int(sum(line["step_tokens"] for line in lines)),
        seconds=float(sum(line["seconds"] for line in lines[1:])),
        training=_smoothed(lines),
        found=find_unseen(load(here).model, tokens, stage, workload.gate_languages),
    )
    say(f"{run.name}, {stage.name}, attempt {attempt}: {stage.tested} found {result.found}")
    write_json(asdict(result), kept)
    documents.unlink()
    shutil.rmtree(begin)
    return result


def write_beginning(
    run: Run, workload: Workload, stage: Stage, before: Path | None, tokenizer: Tokenizer, folder: Path
) -> None:
    """The weights of the attempt before, or new ones, in a model with the stage's window; whole or not at all."""
    model = new_model(workload, run.seed) if before is None else load(before).model
    config = model_of(workload, stage.window)
    made = nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
    unfinished = folder.with_name(f"{folder.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    save_run(nnx.merge(nnx.split(made, nnx.Param)[0], nnx.state(model, nnx.Param)), unfinished, tokenizer=tokenizer)
    unfinished.rename(folder)


def new_model(workload: Workload, seed: int) -> Any:
    """Random weights; queries of global layers are begun like their keys (`Workload.query_like_key`)."""
    model = build(model_of(workload), rngs=nnx.Rngs(seed))
    begin_queries_like_keys(model, workload.query_like_key)
    return model


def measure_all(model: Any, tokenizer: Tokenizer, workload: Workload, folder: Path) -> tuple[Measured, ...]:
    """All settings, each kept as soon as it is there."""
    kept = folder / "measured.json"
    found = [_measured_from(fields) for fields in json.loads(kept.read_text())] if kept.is_file() else []
    for setting in settings_of(workload):
        if setting not in [each.setting for each in found]:
            found.append(measure(model, tokenizer, setting, workload))
            say(f"{setting}: chrF {found[-1].score}, exact {found[-1].score.exact:.0f} %")
            write_json([asdict(each) for each in found], kept)
    return tuple(found)


def _why_ended(stage: Stage, last: StageResult) -> str:
    reached = ", ".join(f"{part:.0%} {direction}" for direction, part in last.found.items())
    return (
        f"after attempt {last.attempt} of the stage {stage.name!r} the model finds {reached} of what is unseen, less "
        f"than {stage.gate:.0%}: it would learn no language. Give the stage more steps or attempts, or "
        "another learning rate (workloads.py)"
    )


def mean(found: Mapping[str, float]) -> float:
    """Of all that was asked."""
    return float(np.mean(list(found.values())))


def read_result(path: Path) -> Result:
    """The inverse of `write_result`; a signature is left out."""
    fields = read_fields(path)
    stages, measured = (tuple(map(make, fields[name])) for name, make in
                        (("stages", _stage_from), ("measured", _measured_from)))  # fmt: skip
    return Result(**fields | {"run": Run(**fields["run"]), "stages": stages, "measured": measured})


def write_result(result: Result, path: Path) -> None:
    """One JSON file, whole or not at all."""
    write_json(asdict(result), path)


def _stage_from(fields: dict) -> StageResult:
    return StageResult(**fields | {"training": tuple(map(tuple, fields["training"]))})


def _measured_from(fields: dict) -> Measured:
    examples = tuple(map(tuple, fields["examples"]))
    setting, score = Setting(**fields["setting"]), Score(**fields["score"])
    return Measured(**fields | {"setting": setting, "score": score, "examples": examples})


def _smoothed(lines: list[dict]) -> tuple[tuple[int, float], ...]:
    groups = [lines[first : first + SMOOTHED_STEPS] for first in range(0, len(lines), SMOOTHED_STEPS)]
    return tuple((group[-1]["step"], float(np.mean([line["loss"] for line in group]))) for group in groups)


def main() -> None:
    """Arguments: a workload's name, the seed, the folder of all results, this one's path. The last run stays."""
    size, seed, out, path = sys.argv[1:]
    folder = Path(path).with_suffix("")
    result = carry_out(Run(int(seed)), WORKLOADS[size], Path(out), folder)
    write_result(result, Path(path))
    last = result.stages[-1]
    for stage in folder.iterdir():
        if stage.is_dir() and stage.name != f"{last.stage.replace(' ', '-')}-{last.attempt}":
            shutil.rmtree(stage)


if __name__ == "__main__":
    run_command(main)
