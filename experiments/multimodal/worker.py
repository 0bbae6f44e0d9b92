"""python -m experiments.multimodal.worker: one training run by `zoo.train`, its measurements, and what is kept."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.multimodal.arms import (
    ALL_FOLDERS,
    JOINT,
    READ_FOLDERS,
    SINGLES,
    TEXT_ONLY,
    WORKLOADS,
    Run,
    Workload,
    recipe_of,
)
from experiments.multimodal.drawing import draw
from experiments.multimodal.prepare import Prepared
from experiments.multimodal.tasks import HeldOut, measure
from experiments.runs import write_json
from experiments.training import train_to_the_end
from zoo.data import DataConfig, MediaVocabulary, Tokenizer, load_media_prompt, load_tokenizer
from zoo.inference import ImageOutput, generate, stack_prompts
from zoo.interop import load
from zoo.training.metrics import read_metrics
from zoo.training.run_directory import checkpoints_dir, saved_steps

SMOOTHED_STEPS = 20
EXAMPLES = (("speech/test", 4), ("speech/speaker", 2), ("picture/test", 6), ("video/test", 4), ("pair/test", 4),
            ("statement/test", 2))  # fmt: skip
"""Test documents whose answers are shown, and how many of each."""


@dataclass(frozen=True)
class Result:
    """What one run found."""

    run: Run
    """Which one."""
    measured: dict[str, float]
    """At the end, by name (`tasks`), and "draw/accuracy"."""
    on_the_way: tuple[tuple[int, dict[str, float]], ...]
    """(step, numbers on a part of the test documents)."""
    training: tuple[tuple[int, float], ...]
    """(step, mean loss of the steps since the one before)."""
    documents_per_step: float
    """Of the training documents, on average."""
    tokens_per_step: float
    """Real tokens of a batch, on average."""
    seconds: float
    """Of all training steps together, compilation left out."""
    parameters: int
    """All of them."""
    drawn: tuple[int, ...] = ()
    """Digits that the classifier saw in what was drawn, the same number for each digit, in order."""
    examples: tuple[dict[str, str], ...] = ()
    """Test documents with the model's answers: "folder", "media", "question", "wanted", "given"."""


def folders_tested(arm: str) -> Sequence[str]:
    """The folders whose test documents a run is measured on."""
    return ALL_FOLDERS if arm == JOINT else READ_FOLDERS if arm == TEXT_ONLY else SINGLES[arm]


def carry_out(run: Run, workload: Workload, out: Path, path: Path) -> Result:
    """Trains, measures, and writes what is drawn beside `path`."""
    prepared = Prepared(**json.loads((out / "prepared.json").read_text()))
    folder = path.with_suffix("")
    recipe = recipe_of(run, workload, out, prepared.image_codes, folder)
    train_to_the_end(recipe)
    tokenizer = load_tokenizer(out / "tokenizer")
    # The data of the arm, with room for the media of any document.
    media = replace(recipe.data.media, patches_per_row=256, clips_per_row=2)
    tests = HeldOut(out / "data", tokenizer, replace(recipe.data, media=media), workload.most_test)
    sees, folders = run.arm != TEXT_ONLY, folders_tested(run.arm)
    steps = sorted(saved_steps(checkpoints_dir(folder)))
    some = replace(tests, most=workload.part)
    on_the_way = []
    for step in steps[:-1] if sees else ():
        model = load(checkpoints_dir(folder) / str(step)).model
        on_the_way.append((step, measure(model, some, folders, sees=sees, last=False)))
    model = load(folder).model
    measured = measure(model, tests, folders, sees=sees, last=True)
    drawn: tuple[int, ...] = ()
    if "draw" in folders:
        images, asked, seen = draw(model, tokenizer, out, prepared, workload.drawings, run.seed)
        measured["draw/accuracy"] = float(np.mean(asked == seen))
        drawn = tuple(map(int, seen))
        np.savez_compressed(path.with_suffix(".npz"), images=images)
    lines = read_metrics(folder / "metrics.jsonl")
    documents = sum(_count(Path(name)) for name in recipe.data.paths)
    return Result(
        run=run,
        measured=measured,
        on_the_way=(*on_the_way, (steps[-1], {name: measured[name] for name in measured})),
        training=_smoothed(lines),
        documents_per_step=lines[-1]["epoch"] * documents / lines[-1]["step"],
        tokens_per_step=float(np.mean([line["step_tokens"] for line in lines])),
        seconds=float(sum(line["seconds"] for line in lines[1:])),
        parameters=recipe.model.num_parameters(),
        drawn=drawn,
        examples=_examples(model, tests) if run.arm == JOINT else (),
    )


def _examples(model: Any, tests: HeldOut) -> tuple[dict[str, str], ...]:
    """Answers by greedy generation from prompts with media."""
    found = []
    vocabulary = MediaVocabulary(tests.tokenizer.vocab_size, tests.config.media.image_codes)
    for name, count in EXAMPLES:
        folder = name.split("/")[0]
        records = tests.records(name)[:count]
        prompts = [_prompt(record, tests.data / folder, tests.tokenizer, tests.config) for record in records]
        tokens, mask, media = stack_prompts(
            prompts, tests.tokenizer.pad_id, multiple=64, patch_multiple=64, clip_multiple=2
        )
        ids = generate(
            model,
            tokens,
            mask,
            max_new_tokens=16,
            media=media,
            image_output=ImageOutput(vocabulary),
            stop_tokens=[tests.tokenizer.eos_id],
            pad_id=tests.tokenizer.pad_id,
        )
        for record, row in zip(records, ids, strict=True):
            *shown, question, answer = record["content"]
            found.append(
                {
                    "folder": name,
                    "media": json.dumps(shown),
                    "question": question["text"].strip(),
                    "wanted": answer["text"].strip(),
                    "given": _words(row, tests.tokenizer),
                }
            )
    return tuple(found)


def _prompt(record: dict[str, Any], folder: Path, tokenizer: Tokenizer, config: DataConfig) -> Any:
    """The document up to its answer."""
    return load_media_prompt(record["content"][:-1], tokenizer, config.media, folder)


def _words(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    kept = []
    for token in ids.tolist():
        if token == tokenizer.eos_id:
            break
        kept.append(token)
    return tokenizer.decode(kept).strip()


def _count(path: Path) -> int:
    with open(path, encoding="utf-8") as file:
        return sum(1 for _ in file)


def _smoothed(lines: list[dict]) -> tuple[tuple[int, float], ...]:
    groups = [lines[first : first + SMOOTHED_STEPS] for first in range(0, len(lines), SMOOTHED_STEPS)]
    return tuple((group[-1]["step"], float(np.mean([line["loss"] for line in group]))) for group in groups)


def read_result(path: Path) -> Result:
    """The inverse of `write_result`."""
    fields = json.loads(path.read_text())
    fields |= {name: tuple(map(tuple, fields[name])) for name in ("on_the_way", "training")}
    fields |= {name: tuple(fields[name]) for name in ("drawn", "examples")}
    return Result(**fields | {"run": Run(**fields["run"])})


def write_result(result: Result, path: Path) -> None:
    """One JSON file, whole or not at all."""
    write_json(asdict(result), path)


def main() -> None:
    """Arguments: quick or full, the arm, the seed, the folder of all results, this one's path."""
    size, arm, seed, out, path = sys.argv[1:]
    result = carry_out(Run(arm, int(seed)), WORKLOADS[size], Path(out), Path(path))
    write_result(result, Path(path))
    shutil.rmtree(Path(path).with_suffix(""))


if __name__ == "__main__":
    main()
