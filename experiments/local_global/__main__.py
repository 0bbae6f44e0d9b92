"""python -m experiments.local_global: what becomes of long-range copies when some layers, or all, see a window only."""

import datetime
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from experiments.choosing import command_line
from experiments.likelihood_vs_position.texts import default_texts, keep_setting, prepare
from experiments.local_global import pictures, report
from experiments.local_global.arms import FULL, QUICK, runs_of
from experiments.local_global.copying import make_test
from experiments.local_global.costs import read_costs
from experiments.local_global.worker import Result, read_result
from experiments.runs import BENCHMARKS, run_in_process, say, worker_environment
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command

RESULTS = BENCHMARKS / "local-global"


@dataclass(frozen=True)
class LocalGlobal:
    """Trains all models, run by run, and reports. It may be stopped at any time: what is done is not done again."""

    quick: bool = False
    """A minute: tiny models, few steps, one seed, the default text; shows that it works and nothing else."""
    out: Path | None = None
    """Folder of tokenizer, texts, logs and pictures; default runs/local_global, with --quick .../quick."""
    results: Path | None = None
    """Folder of the runs' results, one JSON for each, small enough to be committed: the study goes on from them on any
    machine. Default docs/benchmarks/local-global, with --quick `runs` in --out."""
    data: tuple[str, ...] = ()
    """Files to train on; default the novels of the folder `shared` where it is, else Python's standard library."""
    held_out: tuple[str, ...] = ()
    """Texts to measure on; default the long novels of the folder `shared` with its default training text, else 5 % of
    the files to train on."""
    seeds: int | None = None
    """Runs of each model; default 3, with --quick 1."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file, with the picture and all results beside it."""


def main() -> None:
    settings = parse_command(LocalGlobal, "experiments.local_global")
    workload = QUICK if settings.quick else FULL
    if settings.seeds is not None:
        if settings.seeds < 1:
            raise UserError(f"--seeds must be at least 1, got {settings.seeds}")
        workload = replace(workload, seeds=settings.seeds)
    size = "quick" if settings.quick else "full"
    out = settings.out or Path("runs/local_global") / ("quick" if settings.quick else "")
    machine = report.describe()  # before this command puts a load on it
    (out / "runs").mkdir(parents=True, exist_ok=True)
    data, held_out = settings.data, settings.held_out
    if not settings.quick and not data:
        data, held_out = default_texts()[0], held_out or default_texts()[1]
    sizes = {"vocab_size": workload.vocab_size, "most_bytes": workload.train_bytes}
    texts = prepare(out, data, held_out, **sizes, setting={"workload": workload.setting()})
    # Refused before anything is trained, if there is too little of it.
    make_test(texts.held_out, workload.trained_length, workload.rows, workload.copies, texts.bos_id)
    kept = settings.results or (out / "runs" if settings.quick else RESULTS)
    keep_setting(out, kept)
    runs, found = runs_of(workload), list[Result]()
    for number, run in enumerate(runs, start=1):
        path = kept / f"{run.name}.json"
        if not path.is_file():
            say(f"{number} of {len(runs)}: {run.name}")
            in_process(out, path, "worker", [size, run.arm, str(run.seed), str(out), str(path)])
        found.append(read_result(path))
        say(f"{run.name}: text {found[-1].copying.text:.4f} nats per token, recall {found[-1].copying.recall:.4f}")
    costs = kept / "costs.json"
    if not costs.is_file():
        say("caches and times")
        in_process(out, costs, "costs", [size, str(costs)])
    results = report.Results(
        date=datetime.date.today().isoformat(),
        command=command_line("experiments.local_global"),
        machine=machine,
        source=texts.source,
        workload=workload,
        runs=found,
        costs=read_costs(costs),
        only_shows_that_it_works=settings.quick,
    )
    publish(results, out, settings.report)


def in_process(out: Path, path: Path, module: str, arguments: list[str]) -> None:
    """A module of this folder in a process of its own, its output in a log beside its result."""
    name = f"experiments.local_global.{module}"
    run_in_process(path.stem, name, arguments, out / "runs" / f"{path.stem}.log", worker_environment(out))


def publish(results: report.Results, out: Path, to: Path | None) -> None:
    """Tables on the terminal; results and picture in the output folder, or beside the report if one is asked for."""
    for title, rows in report.tables(results):
        print(f"\n{title}\n{report.as_text(rows)}")
    if results.only_shows_that_it_works:
        print(f"\n{report.WORKS}")
    stem, folder = (to.stem, to.parent) if to else ("local-global", out)
    folder.mkdir(parents=True, exist_ok=True)
    picture, numbers = folder / f"{stem}.png", folder / f"{stem}.json"
    pictures.draw(results.runs, results.costs, results.workload, picture)
    numbers.write_text(json.dumps(asdict(results)) + "\n")
    written = [numbers, picture]
    if to:
        to.write_text(report.write_report(results, picture.name))
        written.append(to)
    print("\nwrote", ", ".join(map(str, written)))


if __name__ == "__main__":
    run_command(main)
