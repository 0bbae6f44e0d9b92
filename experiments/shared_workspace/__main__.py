"""python -m experiments.shared_workspace: specialists that speak through a shared workspace against those that speak
pairwise.

python -m experiments.shared_workspace --arms main balls --seeds 0           # a part; the rest another day
python -m experiments.shared_workspace --cost                                # one layer's time and memory instead
python -m experiments.shared_workspace --only-report --report docs/benchmarks/DATE-shared-workspace.md
python -m experiments.shared_workspace --quick
"""

import datetime
from dataclasses import dataclass
from pathlib import Path

from experiments.choosing import command_line, seeds_of
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command


@dataclass(frozen=True)
class SharedWorkspace:
    """Trains all arms, seed by seed, and reports. It may be stopped at any time: a run that is done is not done
    again."""

    quick: bool = False
    """A minute: tiny models, a few steps, one seed, few arms; shows that it works and nothing else."""
    arms: tuple[str, ...] = ()
    """By name, or main, sweep, triangles, balls, pixels for several; default all but pixels (arms.py)."""
    seeds: str = ""
    """Of each arm, with commas between them; default 0,1,2, with --quick 0."""
    cost: bool = False
    """Measures what one layer costs, from 32 to 4,096 specialists, and trains nothing. For a quiet machine."""
    out: Path | None = None
    """Folder of scenes and compiled programs; default runs/shared_workspace, with --quick .../quick."""
    results: Path | None = None
    """Folder of the results, one JSON for each run and one of the costs, small enough to be committed: the study goes
    on from them on any machine. Default docs/benchmarks/shared-workspace, with --quick a folder in --out."""
    only_report: bool = False
    """Runs nothing: reports what the folder of results has."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file, with the pictures and a JSON beside it."""


def main() -> None:
    settings = parse_command(SharedWorkspace, "experiments.shared_workspace")
    if settings.quick and settings.report is not None:
        raise UserError("--quick shows that it works and nothing else: leave --report out")
    if settings.cost and (settings.arms or settings.seeds or settings.only_report):
        raise UserError("--cost trains nothing and measures anew: leave --arms, --seeds and --only-report out")
    from experiments.shared_workspace import report
    from experiments.shared_workspace.study import RESULTS, study
    from experiments.sparse_vs_dense.report import describe

    seeds = seeds_of(settings.seeds)
    machine = describe()  # before this command puts a load on it
    name = "quick" if settings.quick else "full"
    out = settings.out or Path("runs/shared_workspace") / ("quick" if settings.quick else "")
    results = settings.results or (out / "results" if settings.quick else RESULTS)
    options = dict(only_report=settings.only_report, costs=settings.cost)
    found = study(name, out, results, settings.arms, seeds, **options)
    if settings.quick and not settings.cost and not settings.only_report:
        found = study(name, out, results, settings.arms, seeds, only_report=False, costs=True)
    publish(
        report.Study(
            date=datetime.date.today().isoformat(),
            command=command_line("experiments.shared_workspace"),
            machine=machine,
            size=name,
            runs=found.runs,
            missing=found.missing,
            costs=found.costs,
        ),
        out,
        settings.report,
    )


def publish(found, out: Path, to: Path | None) -> None:
    """Tables on the terminal; pictures and numbers in `out`, or beside the report if one is asked for."""
    from experiments import pages
    from experiments.shared_workspace import report, study_pictures

    missing = [f"not done yet: {', '.join(found.missing)}"] if found.missing else []
    pages.publish(
        "study",
        out,
        to,
        tables=report.tables(found),
        notes=missing + ([report.WORKS] if found.size == "quick" else []),
        numbers=report.as_json(found),
        draw=lambda folder, stem: study_pictures.draw_all(found, folder, stem),
        page=lambda names: report.write_report(found, names),
    )


if __name__ == "__main__":
    run_command(main)
