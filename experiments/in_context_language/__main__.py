"""python -m experiments.in_context_language: training on thousands of made-up languages, tested on unseen ones.

python -m experiments.in_context_language --quick
python -m experiments.in_context_language --report docs/benchmarks/DATE-in-context-language.md
python -m experiments.in_context_language --checkpoint CKPT --real kalamang
"""

import datetime
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from experiments.choosing import command_line
from experiments.in_context_language import findings, pictures, real_languages, report
from experiments.in_context_language.baselines import shared_folder
from experiments.in_context_language.spelling import make_tokenizer
from experiments.in_context_language.stages import Run, Workload
from experiments.in_context_language.synthetic import english_texts
from experiments.in_context_language.worker import Result, read_result
from experiments.in_context_language.workloads import WITHOUT_GLOSSES, WORKLOADS
from experiments.runs import run_in_process, say
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class InContextLanguage:
    """Trains on made-up languages, seed by seed, translates unseen ones, and reports. It may be stopped at any time:
    what is done is not done again. With --checkpoint and --real: any model on a real language."""

    quick: bool = False
    """A minute: a tiny model, few steps, one seed; shows that it works and nothing else."""
    without_glosses: bool = False
    """For comparison: words and sentences are translated at once, not glossed first."""
    out: Path | None = None
    """Folder of the results, one JSON for each run; default runs/in_context_language, with --quick .../quick, with
    --without-glosses .../without-glosses."""
    seeds: int | None = None
    """Runs; default 3, with --quick 1."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file, with the pictures and all results beside it."""
    checkpoint: Path | None = None
    """Anything that `zoo.load` takes, to be examined on the language that --real names."""
    real: Literal["kalamang", "lojban"] | None = None
    """A real language; needs the folder `shared`."""
    conditions: tuple[str, ...] = real_languages.SMALL_CONDITIONS
    """What is told of it, see mtob.py: all of these, one after the other."""
    sentences: int | None = None
    """Test sentences of each direction; default all 50."""
    budget: int | None = None
    """Most tokens of a prompt; default what the model has positions for."""
    chat: bool = False
    """Prompts are turns of a conversation, for instruction-tuned models."""
    shared: Path | None = None
    """The folder that holds data/kalamang_grammar_dictionary and data/lojban_cll. Default: $ZOO_SHARED, or `shared`
    beside the repository."""


def main() -> None:
    settings = parse_command(InContextLanguage, "experiments.in_context_language")
    for name in ("seeds", "sentences"):
        if getattr(settings, name) is not None and getattr(settings, name) < 1:
            raise UserError(f"{name} must be at least 1, got {getattr(settings, name)}")
    if (settings.checkpoint is None) != (settings.real is None):
        raise UserError("--checkpoint and --real belong together: a model, and the language that it is examined on")
    if settings.real is not None:
        examine_real(settings)
    else:
        study(settings)


def study(settings: InContextLanguage) -> None:
    """The made-up languages: training, answers, report."""
    size = ("quick" if settings.quick else "full") + (WITHOUT_GLOSSES if settings.without_glosses else "")
    workload = WORKLOADS[size]
    out = settings.out or Path("runs/in_context_language") / size.removeprefix("full").removeprefix("-")
    out = out.resolve()  # a stage that is resumed must find the documents under the same name
    prepare(out, workload)
    seeds, found = settings.seeds or workload.seeds, list[Result]()
    for run in map(Run, range(seeds)):
        path = out / "runs" / f"{run.name}.json"
        if not path.is_file():
            say(f"{run.name}, {run.seed + 1} of {seeds} runs; how it goes on is in {path.with_suffix('.log')}")
            train(run, size, out, path)
        found.append(read_result(path))
        if found[-1].ended:
            say(f"{run.name} was ended: {found[-1].ended}")
    results = report.Results(
        date=datetime.date.today().isoformat(),
        command=command_line("experiments.in_context_language"),
        machine=report.describe(),
        workload=replace(workload, seeds=seeds),
        baselines=findings.baselines_of(workload),
        runs=found,
    )
    publish(results, out, settings.report)


def prepare(out: Path, workload: Workload) -> None:
    """The tokenizer that all runs share. Raises `UserError` if the folder's runs were made with other sizes."""
    (out / "runs").mkdir(parents=True, exist_ok=True)
    described = json.loads(json.dumps({k: v for k, v in asdict(workload).items() if k != "seeds"}))
    setting = out / "setting.json"
    if not setting.is_file():
        make_tokenizer(english_texts()).save(out / "tokenizer")
        setting.write_text(json.dumps(described, indent=1) + "\n")
    before = json.loads(setting.read_text())
    for name, value in described.items():
        if before.get(name) != value:
            raise UserError(f"{out} holds runs with another {name}: give another --out, or remove it")


def train(run: Run, size: str, out: Path, path: Path) -> None:
    """One run in a process of its own; its output goes to a log beside the result."""
    arguments = [size, str(run.seed), str(out), str(path)]
    here = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        # Programs of one seed are compiled once for all seeds.
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(out / "compiled")),
    }
    run_in_process(run.name, "experiments.in_context_language.worker", arguments, path.with_suffix(".log"), here)


def publish(results: report.Results, out: Path, to: Path | None) -> None:
    """Tables on the terminal; results and pictures in the output folder, or beside the report if one is asked for."""
    for title, rows in report.tables(results):
        print(f"\n{title}\n{report.as_text(rows)}")
    stem, folder = (to.stem, to.parent) if to else ("in-context-language", out)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{stem}-{name}.png" for name in pictures.NAMES]
    for name, draw in zip(names, pictures.NAMES.values(), strict=True):
        draw(results, folder / name)
    numbers = folder / f"{stem}.json"
    numbers.write_text(report.as_json(results) + "\n")
    written = [numbers, *(folder / name for name in names)]
    if to:
        to.write_text(report.write_report(results, names))
        written.append(to)
    print("\nwrote", ", ".join(map(str, written)))


def examine_real(settings: InContextLanguage) -> None:
    """A checkpoint on a real language: a table, and all answers as JSON."""
    assert settings.real is not None and settings.checkpoint is not None
    material = real_languages.MATERIALS[settings.real](shared_folder(settings.shared))
    found = real_languages.examine(
        settings.checkpoint,
        material,
        settings.conditions,
        sentences=settings.sentences,
        budget=settings.budget,
        chat=settings.chat,
        say=say,
    )
    rows = real_languages.rows(found, material, settings.sentences)
    print(f"\n{material.language}\n{report.as_text(rows)}")
    out = settings.out or Path("runs/in_context_language/real")
    out.mkdir(parents=True, exist_ok=True)
    name = f"{settings.real}-{settings.checkpoint.resolve().name}"
    path = out / f"{name}.json"
    path.write_text(json.dumps([asdict(each) for each in found], ensure_ascii=False) + "\n")
    if settings.report:
        settings.report.parent.mkdir(parents=True, exist_ok=True)
        title = f"# {material.language}, {settings.checkpoint}, {datetime.date.today().isoformat()}"
        command = command_line("experiments.in_context_language")
        settings.report.write_text(f"{title}\n\n`{command}`\n\n{report.as_markdown(rows)}\n")
    print("\nwrote", path)


if __name__ == "__main__":
    run_command(main)
