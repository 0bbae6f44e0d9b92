"""python -m experiments.multimodal: one model of text, images, speech and video against one for each of them."""

import datetime
import os
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.choosing import command_line
from experiments.multimodal import pictures, report
from experiments.multimodal.arms import FULL, JOINT, QUICK, Run, Workload, recipe_of, runs_of
from experiments.multimodal.prepare import REPOSITORY, Prepared, environment, prepare
from experiments.multimodal.tasks import HeldOut, majority
from experiments.multimodal.worker import Result, read_result
from experiments.runs import run_in_process, say
from zoo.command_line import parse_command
from zoo.data import load_tokenizer
from zoo.errors import UserError, run_command

NEEDED = ("fsdd", "noto_emoji_32", "nlvr1", "mnist_t10k", "wikitext2_valid_test")
"""Folders of real data in the optional folder `shared`."""


@dataclass(frozen=True)
class Multimodal:
    """Trains all models, run by run, and reports. It may be stopped at any time: what is done is not done again."""

    quick: bool = False
    """A minute: tiny models, few steps, one seed, drawn data; shows that it works and nothing else."""
    out: Path | None = None
    """Folder of the results, one JSON for each run; default runs/multimodal, with --quick .../quick."""
    shared: Path | None = None
    """The folder with data/fsdd and the others; default ../shared where it is there, else drawn and sounded data."""
    seeds: int | None = None
    """Runs of each model; default 3, with --quick 1."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file, with the pictures and all results beside it."""


def main() -> None:
    settings = parse_command(Multimodal, "experiments.multimodal")
    size = "quick" if settings.quick else "full"
    workload = QUICK if settings.quick else FULL
    if settings.seeds is not None:
        if settings.seeds < 1:
            raise UserError(f"seeds must be at least 1, got {settings.seeds}")
        workload = replace(workload, seeds=settings.seeds)
    out = settings.out or Path("runs/multimodal") / ("quick" if settings.quick else "")
    shared = _shared(settings)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    prepared = prepare(out, size, workload, shared, say)
    runs, found = runs_of(workload), list[Result]()
    for number, run in enumerate(runs, start=1):
        path = out / "runs" / f"{run.name}.json"
        if not path.is_file():
            say(f"{number} of {len(runs)}: {run.name}")
            train(run, size, out, path)
        found.append(read_result(path))
    results = report.Results(
        date=datetime.date.today().isoformat(),
        command=command_line("experiments.multimodal"),
        machine=report.describe(),
        workload=workload,
        prepared=prepared,
        majority=majority(_tests(out, workload, prepared)),
        runs=found,
    )
    publish(results, out, settings.report)


def _shared(settings: Multimodal) -> Path | None:
    if settings.quick:
        return None
    named = settings.shared or (Path(os.environ["ZOO_SHARED"]) if "ZOO_SHARED" in os.environ else None)
    folder = named or REPOSITORY.parent / "shared"
    missing = [name for name in NEEDED if not (folder / "data" / name).is_dir()]
    if missing and named is not None:
        raise UserError(f"{folder}: no folder data/{missing[0]}; experiments/multimodal/README.md says what is needed")
    return None if missing else folder


def _tests(out: Path, workload: Workload, prepared: Prepared) -> HeldOut:
    recipe = recipe_of(Run(JOINT, 0), workload, out, prepared.image_codes, out)
    return HeldOut(out / "data", load_tokenizer(out / "tokenizer"), recipe.data, workload.most_test)


def train(run: Run, size: str, out: Path, path: Path) -> None:
    """One run in a process of its own; its output goes to a log beside the result."""
    arguments = [size, run.arm, str(run.seed), str(out), str(path)]
    # Programs of one seed are compiled once for all seeds.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(out / "compiled"), **environment()}
    run_in_process(run.name, "experiments.multimodal.worker", arguments, path.with_suffix(".log"), cache)


def publish(results: report.Results, out: Path, to: Path | None) -> None:
    """Tables on the terminal; results and pictures in the output folder, or beside the report if one is asked for."""
    for title, rows in report.tables(results):
        print(f"\n{title}\n{report.as_text(rows)}")
    stem, folder = (to.stem, to.parent) if to else ("multimodal", out)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{stem}-{name}.png" for name in pictures.NAMES]
    for name, draw in zip(names, pictures.NAMES.values(), strict=True):
        draw(results, out, folder / name)
    numbers = folder / f"{stem}.json"
    numbers.write_text(report.as_json(results) + "\n")
    written = [numbers, *(folder / name for name in names)]
    if to:
        to.write_text(report.write_report(results, names))
        written.append(to)
    print("\nwrote", ", ".join(map(str, written)))


if __name__ == "__main__":
    run_command(main)
