"""The study: each arm and seed is trained and examined in a process of its own; the tables are of what is there.

Two folders. `out` has what may be thrown away: tokenizer, text, checkpoints, logs. `results` has one small JSON for
each finished run, which can be committed: on another machine the study goes on with what is missing.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path

from experiments import pages
from experiments.choosing import command_line
from experiments.kept import check_made_with, sign
from experiments.long_context_recall.training import pictures, report
from experiments.long_context_recall.training.arms import Run, arm_named, runs_of
from experiments.long_context_recall.training.sizes import SIZES
from experiments.long_context_recall.training.texts import prepare, size_of
from experiments.long_context_recall.training.worker import read_result
from experiments.runs import BENCHMARKS, run_in_process, say, worker_environment
from experiments.shared_folder import default_shared
from experiments.sparse_vs_dense.report import describe
from zoo.errors import UserError

RESULTS = BENCHMARKS / "long-context-recall"
"""Where results lie that are committed."""
WORKER = "experiments.long_context_recall.training.worker"
OTHERS = "another curriculum, grid or text"
"""What results may be of that are refused."""


def study(
    name: str, out: Path, results: Path, arms: Sequence[str], seeds: Sequence[int], report_to: Path | None, only: bool
) -> None:
    """Trains and examines what is missing, run by run, and reports.

    name: of a size. arms: names; none: the size's. seeds: none: the size's. only: report what is there, train nothing.

    Raises:
      UserError: an unknown arm; results of another curriculum, grid or text; a run failed.
    """
    size = SIZES[name]
    runs = runs_of(tuple(arms) or size.arms, tuple(seeds) or size.seeds)
    machine = describe()  # before this command puts a load on it
    shared = default_shared() if size.novels else None
    results.mkdir(parents=True, exist_ok=True)
    paths = {run.name: results / f"{run.name}.json" for run in runs}
    for run in runs:
        check_made_with(paths[run.name], size.made_with(run.arm, shared is not None), OTHERS)
    missing = [] if only else [run for run in runs if not paths[run.name].is_file()]
    if missing:
        prepare(made(out), size.workload, shared)
    for number, run in enumerate(missing, start=1):
        say(f"{number} of {len(missing)}: {run.name}")
        check_weights(run, out)
        fill(run, name, out, paths[run.name], size.made_with(run.arm, shared is not None))
    found = [read_result(path) for path in paths.values() if path.is_file()]
    if not found:
        raise UserError(f"{results} has no result of these arms and seeds: leave --only-report out")
    publish(
        report.Study(
            date=datetime.date.today().isoformat(),
            command=command_line("experiments.long_context_recall"),
            machine=machine,
            text=size_of(out) if (out / "text.npz").is_file() else "as in the results",
            runs=found,
            missing=[run.name for run in runs if not paths[run.name].is_file()],
            only_shows_that_it_works=name == "quick",
        ),
        out,
        report_to,
    )


def made(folder: Path) -> Path:
    """The folder, with its parents."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    return folder


def check_weights(run: Run, out: Path) -> None:
    """Raises `UserError` if an arm's weights are another's that was trained elsewhere."""
    other = arm_named(run.arm).weights_of
    if other is not None and not (out / "runs" / Run(other, run.seed).name).is_dir():
        raise UserError(
            f"{run.name} takes the weights of {Run(other, run.seed).name}, which were trained on another machine: "
            f"leave the arm out, or remove that result, so that it is trained here"
        )


def fill(run: Run, name: str, out: Path, path: Path, digest: str) -> None:
    """One run in a process of its own; its log is in `out`."""
    unsigned = out / "runs" / f"{run.name}.json"
    arguments = [name, run.arm, str(run.seed), str(out), str(unsigned)]
    run_in_process(run.name, WORKER, arguments, unsigned.with_suffix(".log"), worker_environment(out))
    sign(unsigned, digest, path)


def publish(found: report.Study, out: Path, to: Path | None) -> None:
    """Tables on the terminal; pictures and numbers in `out`, or beside the report if one is asked for."""
    pages.publish(
        "study",
        made(out),
        to,
        tables=report.tables(found),
        notes=[report.WORKS] if found.only_shows_that_it_works else [],
        numbers=report.as_json(found),
        draw=lambda folder, stem: pictures.draw_all(found.runs, folder, stem),
        page=lambda names: report.write_report(found, names),
    )
