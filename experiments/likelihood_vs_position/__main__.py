"""python -m experiments.likelihood_vs_position: does a longer context make the next token more likely, and how?"""

import datetime
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.choosing import command_line
from experiments.likelihood_vs_position import pictures, report
from experiments.likelihood_vs_position.arms import FULL, QUICK, Run, Workload, runs_of
from experiments.likelihood_vs_position.findings import LEAST_LENGTH
from experiments.likelihood_vs_position.rows import passages
from experiments.likelihood_vs_position.texts import (
    check_setting,
    default_texts,
    encoded,
    keep_setting,
    prepare,
    read_documents,
)
from experiments.likelihood_vs_position.worker import Result, read_result, result_of, write_result
from experiments.runs import BENCHMARKS, run_in_process, say, worker_environment
from experiments.shared_folder import named
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command

RESULTS = BENCHMARKS / "likelihood-vs-position"
WORKER = "experiments.likelihood_vs_position.worker"


@dataclass(frozen=True)
class LikelihoodVsPosition:
    """Trains both models, run by run, or takes a checkpoint, and reports. It may be stopped at any time: what is done
    is not done again."""

    quick: bool = False
    """A minute: tiny models, few steps, one seed, the default text; shows that it works and nothing else."""
    out: Path | None = None
    """Folder of tokenizer, texts, logs and pictures; default runs/likelihood_vs_position, with --quick .../quick, with
    --checkpoint .../NAME-OF-CHECKPOINT."""
    results: Path | None = None
    """Folder of the runs' results, one JSON for each, small enough to be committed: the study goes on from them on any
    machine. Default docs/benchmarks/likelihood-vs-position, with --quick and --checkpoint `runs` in --out."""
    data: tuple[str, ...] = ()
    """Files to train on; default the novels of the folder `shared` where it is, else Python's standard library."""
    held_out: tuple[str, ...] = ()
    """Long texts to measure on; default the long novels of the folder `shared` with its default training text, else 5 %
    of the files to train on."""
    checkpoint: Path | None = None
    """Anything that `zoo.load` takes: is measured on the held-out text, and nothing is trained."""
    length: int | None = None
    """Tokens of a passage; default 16,384, with --quick 1,024."""
    passages: int | None = None
    """Passages to measure on, at most; default 96, with --quick 12."""
    seeds: int | None = None
    """Runs of each model; default 3, with --quick 1."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file, with the picture and all results beside it."""


def main() -> None:
    settings = parse_command(LikelihoodVsPosition, "experiments.likelihood_vs_position")
    if settings.checkpoint is not None and (
        settings.quick or settings.data or settings.seeds is not None or settings.results is not None
    ):
        raise UserError("--checkpoint trains nothing: leave --quick, --data, --seeds and --results out")
    given = {name: getattr(settings, name) for name in ("length", "passages", "seeds")}
    changes = {name: value for name, value in given.items() if value is not None}
    for name, value in changes.items():
        least = LEAST_LENGTH if name == "length" else 1
        if value < least:
            raise UserError(f"--{name} must be at least {least}, got {value}")
    workload = replace(QUICK if settings.quick else FULL, **changes)
    name = "quick" if settings.quick else "" if settings.checkpoint is None else settings.checkpoint.resolve().name
    out = settings.out or Path("runs/likelihood_vs_position") / name
    machine = report.describe()  # before this command puts a load on it
    (out / "runs").mkdir(parents=True, exist_ok=True)
    found = (
        trained(settings, workload, changes, out) if settings.checkpoint is None else loaded(settings, workload, out)
    )
    results = report.Results(
        date=datetime.date.today().isoformat(),
        command=command_line("experiments.likelihood_vs_position"),
        machine=machine,
        draws=workload.draws,
        only_shows_that_it_works=settings.quick,
        **found,
    )
    publish(results, out, settings.report)


def trained(settings: LikelihoodVsPosition, workload: Workload, changes: dict[str, int], out: Path) -> dict[str, Any]:
    """Both arms with all seeds, each run in a process of its own."""
    data, held_out = settings.data, settings.held_out
    if not settings.quick and not data:
        data, held_out = default_texts()[0], held_out or default_texts()[1]
    sizes = {"vocab_size": workload.vocab_size, "most_bytes": workload.train_bytes}
    texts = prepare(out, data, held_out, **sizes, setting={"workload": workload.setting()})
    passages(texts.held_out, workload.length, workload.passages, texts.bos_id)  # refused before anything is trained
    kept = settings.results or (out / "runs" if settings.quick else RESULTS)
    keep_setting(out, kept)
    runs, found = runs_of(workload), list[Result]()
    for number, run in enumerate(runs, start=1):
        path, log = kept / f"{run.name}.json", out / "runs" / f"{run.name}.log"
        if not path.is_file():
            say(f"{number} of {len(runs)}: {run.name}")
            size = "quick" if settings.quick else "full"
            arguments = [size, json.dumps(changes), run.name, str(out), str(path)]
            run_in_process(run.name, WORKER, arguments, log, worker_environment(out))
        found.append(read_result(path))
    return {
        "source": texts.source,
        "trained_length": workload.trained_length,
        "reach": workload.reach,
        "workload": asdict(workload),
        "runs": found,
    }


def loaded(settings: LikelihoodVsPosition, workload: Workload, out: Path) -> dict[str, Any]:
    """A checkpoint, by its own tokenizer."""
    import zoo

    assert settings.checkpoint is not None
    held_out = settings.held_out or default_texts()[1]
    if not held_out:
        raise UserError("--held-out is missing: name long texts, there is no folder `shared` with novels")
    model = zoo.load(settings.checkpoint)
    decoder, tokenizer = model.decoder, model.tokenizer
    if tokenizer is None:
        raise UserError(f"{settings.checkpoint} has no tokenizer: texts cannot be read")
    asked = {"length": workload.length, "passages": workload.passages, "held out": list(held_out)}
    check_setting(out, {"checkpoint": str(settings.checkpoint.resolve()), **asked})
    run = Run(settings.checkpoint.resolve().name, 0)
    path = out / "runs" / f"{run.name}.json"
    if not path.is_file():
        documents = encoded(read_documents(held_out), tokenizer)
        rows, numbers = passages(documents, workload.length, workload.passages, tokenizer.bos_id)
        write_result(result_of(run, decoder, rows, numbers, replace(workload, rows_at_once=1)), path)
    return {
        "source": ", ".join(map(named, held_out)),
        "trained_length": decoder.config.max_position_embeddings,
        "reach": None,
        "workload": None,
        "runs": [read_result(path)],
    }


def publish(results: report.Results, out: Path, to: Path | None) -> None:
    """Tables on the terminal; results and picture in the output folder, or beside the report if one is asked for."""
    found, listed = report.findings_of(results)
    for title, rows in report.tables(results, found, listed):
        print(f"\n{title}\n{report.as_text(rows)}")
    if results.only_shows_that_it_works:
        print(f"\n{report.WORKS}")
    stem, folder = (to.stem, to.parent) if to else ("likelihood-vs-position", out)
    folder.mkdir(parents=True, exist_ok=True)
    picture, numbers = folder / f"{stem}.png", folder / f"{stem}.json"
    pictures.draw(results.runs, found, results.trained_length, results.reach, results.draws, picture)
    numbers.write_text(json.dumps(report.as_json(results, found, listed)) + "\n")
    written = [numbers, picture]
    if to:
        to.write_text(report.write_report(results, found, listed, picture.name))
        written.append(to)
    print("\nwrote", ", ".join(map(str, written)))


if __name__ == "__main__":
    run_command(main)
