"""The study: each run in a process of its own; the tables are of what is there.

Two folders. `out` has what may be thrown away: tokenizer, text, logs. `results` has one small JSON for each finished
run, which can be committed: on another machine the study goes on with what is missing.
"""

import datetime
import time
from collections.abc import Sequence
from pathlib import Path

from experiments import pages
from experiments.choosing import command_line
from experiments.gemma2_ablations import pictures, report
from experiments.gemma2_ablations.arms import WORKLOADS, Run, runs_of
from experiments.gemma2_ablations.texts import prepare
from experiments.gemma2_ablations.worker import Result, digest, read_result
from experiments.kept import check_made_with
from experiments.runs import BENCHMARKS, run_in_process, say, worker_environment
from experiments.sparse_vs_dense.report import describe
from zoo.errors import UserError

RESULTS = BENCHMARKS / "gemma2-ablations"
"""Where results lie that are committed."""
WORKER = "experiments.gemma2_ablations.worker"


def study(
    name: str, out: Path, results: Path, arms: Sequence[str], seeds: Sequence[int], report_to: Path | None, only: bool
) -> None:
    """Trains and measures what is missing, run by run, and reports.

    name: of a workload. arms: names; none: the workload's. seeds: none: the workload's. only: report what is there,
    train nothing.

    Raises:
      UserError: an unknown arm; results of other settings or of another text; no novels; a run failed.
    """
    workload = WORKLOADS[name]
    runs = runs_of(workload, tuple(arms), tuple(seeds))
    machine = describe()  # before this command puts a load on it
    results.mkdir(parents=True, exist_ok=True)
    paths = {run: results / f"{run.name}.json" for run in runs}
    for run, path in paths.items():
        check_made_with(path, digest(run, workload), "other settings")
    missing = [] if only else [run for run, path in paths.items() if not path.is_file()]
    if missing:
        (out / "logs").mkdir(parents=True, exist_ok=True)
        prepare(out, workload)
    began = time.time()
    for number, run in enumerate(missing):
        each = (time.time() - began) / number if number else 0.0
        left = f", about {each * (len(missing) - number) / 60:.0f} min to go" if number else ""
        say(f"{number + 1} of {len(missing)}{left}: {run.name}")
        fill(run, name, out, paths[run])
    found = [read_result(path) for path in paths.values() if path.is_file()]
    if not found:
        raise UserError(f"{results} has no result of these arms and seeds: leave --only-report out")
    check_one_text(found, results)
    publish(
        report.Study(
            date=datetime.date.today().isoformat(),
            command=command_line("experiments.gemma2_ablations"),
            machine=machine,
            workload=workload,
            runs=found,
            missing=[run.name for run, path in paths.items() if not path.is_file()],
            only_shows_that_it_works=name == "quick",
        ),
        out,
        report_to,
    )


def check_one_text(found: Sequence[Result], results: Path) -> None:
    """Raises `UserError` if results are of different texts or tokenizers, whose losses cannot be compared."""
    for run in found[1:]:
        if run.text != found[0].text:
            raise UserError(
                f"{results}: {run.run.name} and {found[0].run.name} were trained on different texts: remove the "
                "results of one of them"
            )


def fill(run: Run, name: str, out: Path, path: Path) -> None:
    """One run in a process of its own; its log is in `out`."""
    arguments = [name, run.arm, repr(run.learning_rate), str(run.seed), str(out), str(path)]
    run_in_process(run.name, WORKER, arguments, out / "logs" / f"{run.name}.log", worker_environment(out))


def publish(found: report.Study, out: Path, to: Path | None) -> None:
    """Tables on the terminal; pictures and numbers in `out`, or beside the report if one is asked for."""
    pages.publish(
        "gemma2-ablations",
        out,
        to,
        tables=report.tables(found),
        notes=[report.WORKS] if found.only_shows_that_it_works else [],
        numbers=report.as_json(found),
        draw=lambda folder, stem: pictures.draw_all(found.runs, folder, stem),
        page=lambda names: report.write_report(found, names),
    )
