"""The study: each seed is trained and examined in a process of its own; tables and pictures are of what is there.

Two folders. `out` has what may be thrown away: tokenizer, checkpoints, logs. `results` has one small JSON for each
finished run, which can be committed: on another machine the study goes on with what is missing.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiments import pages
from experiments.choosing import command_line
from experiments.in_context_language import findings, pictures, report
from experiments.in_context_language.spelling import make_tokenizer
from experiments.in_context_language.stages import Run, Workload
from experiments.in_context_language.synthetic import english_texts
from experiments.in_context_language.worker import read_result
from experiments.in_context_language.workloads import WORKLOADS
from experiments.kept import check_made_with, digest, sign
from experiments.runs import BENCHMARKS, run_in_process, say, worker_environment
from zoo.errors import UserError

RESULTS = BENCHMARKS / "in-context-language"
"""Where results lie that are committed, in a folder for each size."""
WORKER = "experiments.in_context_language.worker"


def study(size: str, out: Path, results: Path, seeds: Sequence[int], report_to: Path | None, only: bool) -> None:
    """Trains and examines what is missing, seed by seed, and reports.

    size: name of a workload. seeds: none: the workload's. only: report what is there, train nothing.

    Raises:
      UserError: results or an output folder of other stages or sizes; nothing to report; a run failed.
    """
    workload = WORKLOADS[size]
    machine = report.describe()  # before this command puts a load on it
    runs = [Run(seed) for seed in seeds or range(workload.seeds)]
    out = out.resolve()  # a stage that is resumed must find the documents under the same name
    results.mkdir(parents=True, exist_ok=True)
    paths, made_with = {run.name: results / f"{run.name}.json" for run in runs}, digest(described(workload))
    for path in paths.values():
        check_made_with(path, made_with, "other stages or sizes")
    missing = [] if only else [run for run in runs if not paths[run.name].is_file()]
    if missing:
        prepare(out, workload)
    for number, run in enumerate(missing, start=1):
        unsigned = out / "runs" / f"{run.name}.json"
        log = unsigned.with_suffix(".log")
        say(f"{number} of {len(missing)}: {run.name}; how it goes on is in {log}")
        arguments = [size, str(run.seed), str(out), str(unsigned)]
        run_in_process(run.name, WORKER, arguments, log, worker_environment(out))
        sign(unsigned, made_with, paths[run.name])
    found = [read_result(path) for path in paths.values() if path.is_file()]
    if not found:
        raise UserError(f"{results} has no result of these seeds: leave --only-report out")
    for result in found:
        if result.ended:
            say(f"{result.run.name} was ended: {result.ended}")
    publish(
        report.Results(
            date=datetime.date.today().isoformat(),
            command=command_line("experiments.in_context_language"),
            machine=machine,
            workload=replace(workload, seeds=len(runs)),
            baselines=findings.baselines_of(workload),
            runs=found,
            missing=[run.name for run in runs if not paths[run.name].is_file()],
        ),
        out,
        report_to,
    )


def described(workload: Workload) -> dict[str, Any]:
    """All that a run comes from, its seed apart, as JSON has it."""
    return json.loads(json.dumps({name: value for name, value in asdict(workload).items() if name != "seeds"}))


def prepare(out: Path, workload: Workload) -> None:
    """The tokenizer that all runs share. Raises `UserError` if the folder's checkpoints are of other sizes."""
    (out / "runs").mkdir(parents=True, exist_ok=True)
    wanted, setting = described(workload), out / "setting.json"
    if not setting.is_file():
        make_tokenizer(english_texts()).save(out / "tokenizer")
        setting.write_text(json.dumps(wanted, indent=1) + "\n")
    before = json.loads(setting.read_text())
    for name, value in wanted.items():
        if before.get(name) != value:
            raise UserError(f"{out} holds runs with another {name}: give another --out, or remove it")


def publish(found: report.Results, out: Path, to: Path | None) -> None:
    """Tables on the terminal; pictures and numbers in `out`, or beside the report if one is asked for."""
    pages.publish(
        "in-context-language",
        out,
        to,
        tables=report.tables(found),
        numbers=asdict(found),
        draw=lambda folder, stem: pictures.draw_all(found, folder, stem),
        page=lambda names: report.write_report(found, names),
    )
