"""The study of media: each arm and seed is trained and examined in a process of its own; tables of what is there.

Two folders, as in `training.study`: `out` may be thrown away, `results` has one small JSON for each finished run, which
can be committed: on another machine the study goes on with what is missing.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path

from experiments import pages
from experiments.choosing import command_line
from experiments.kept import check_made_with, sign
from experiments.long_context_recall.media_training import report
from experiments.long_context_recall.media_training.sizes import MEDIA_SIZES
from experiments.long_context_recall.media_training.worker import read_result
from experiments.long_context_recall.training.arms import Run
from experiments.long_context_recall.training.study import OTHERS, made
from experiments.runs import BENCHMARKS, run_in_process, say, worker_environment
from experiments.shared_folder import default_shared
from experiments.sparse_vs_dense.report import describe
from zoo.errors import UserError

RESULTS = BENCHMARKS / "long-context-recall-media"
"""Where results lie that are committed."""
WORKER = "experiments.long_context_recall.media_training.worker"


def study(
    name: str, out: Path, results: Path, arms: Sequence[str], seeds: Sequence[int], report_to: Path | None, only: bool
) -> None:
    """Trains and examines what is missing, seed by seed, and reports.

    name: of a size. arms: names; none: the size's. seeds: none: the size's. only: report what is there, train nothing.

    Raises:
      UserError: an unknown arm; results of another curriculum, grid or media; a run failed.
    """
    size = MEDIA_SIZES[name]
    for arm in arms:
        size.arm(arm)
    runs = [Run(arm, seed) for seed in tuple(seeds) or size.seeds for arm in arms or size.arms]
    machine = describe()  # before this command puts a load on it
    real = size.real and default_shared() is not None
    results.mkdir(parents=True, exist_ok=True)
    paths = {run.name: results / f"{run.name}.json" for run in runs}
    for run in runs:
        check_made_with(paths[run.name], size.made_with(run.arm, real), OTHERS)
    missing = [] if only else [run for run in runs if not paths[run.name].is_file()]
    for number, run in enumerate(missing, start=1):
        say(f"{number} of {len(missing)}: {run.name}; its log: {made(out) / 'runs' / f'{run.name}.log'}")
        fill(run, name, out, paths[run.name], size.made_with(run.arm, real))
    found = [read_result(path) for path in paths.values() if path.is_file()]
    if not found:
        raise UserError(f"{results} has no result of these arms and seeds: leave --only-report out")
    publish(
        report.MediaStudy(
            date=datetime.date.today().isoformat(),
            command=command_line("experiments.long_context_recall"),
            machine=machine,
            real=real,
            runs=found,
            missing=[run.name for run in runs if not paths[run.name].is_file()],
            only_shows_that_it_works=name == "quick",
        ),
        out,
        report_to,
    )


def fill(run: Run, name: str, out: Path, path: Path, digest: str) -> None:
    """One run in a process of its own."""
    unsigned = out / "runs" / f"{run.name}.json"
    log = unsigned.with_suffix(".log")
    run_in_process(run.name, WORKER, [name, run.arm, str(run.seed), str(out), str(unsigned)], log,
                   worker_environment(out))  # fmt: skip
    sign(unsigned, digest, path)


def publish(found: report.MediaStudy, out: Path, to: Path | None) -> None:
    """Tables on the terminal; a heat map for each arm and all numbers in `out`, or beside the report if one is asked
    for."""
    pages.publish(
        "media",
        made(out),
        to,
        tables=report.tables(found),
        notes=[report.WORKS] if found.only_shows_that_it_works else [],
        numbers=report.as_json(found),
        draw=lambda folder, stem: report.draw_maps(found, folder, stem),
        page=lambda names: report.write_report(found, names),
    )
