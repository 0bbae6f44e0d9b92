"""python -m experiments.twin_augmentation: what a twin head adds to a trained classifier of a rare class.

python -m experiments.twin_augmentation --quick
python -m experiments.twin_augmentation --arms "nih resnet" "nih vit" --seeds 0,1     # a part of the study
python -m experiments.twin_augmentation --report docs/benchmarks/DATE-twin-augmentation.md
"""

import datetime
from dataclasses import dataclass
from pathlib import Path

from experiments.choosing import command_line, seeds_of
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command


@dataclass(frozen=True)
class TwinAugmentation:
    """Trains all backbones, fits all heads, and reports. It may be stopped at any time: what is done is not done again.
    No medical device: nothing here may be used to diagnose."""

    quick: bool = False
    """Half a minute: made-up images, a few steps, one seed; shows that it works and nothing else."""
    arms: tuple[str, ...] = ()
    """By name, see README.md ("nih resnet"); default: all."""
    seeds: str = ""
    """Of each arm, with commas between them; default 0,1,2,3,4, with --quick 0."""
    jobs: int = 2
    """Runs at a time, a process of one thread each."""
    out: Path | None = None
    """Folder of logs and compiled programs; default runs/twin_augmentation, with --quick .../quick."""
    results: Path | None = None
    """Folder in which each run leaves one JSON, small enough to be committed: the study goes on from them on any
    machine. Default docs/benchmarks/twin-augmentation, with --quick a folder in --out."""
    only_report: bool = False
    """Trains nothing: reports what the results have."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file, with the pictures and a JSON beside it."""


def main() -> None:
    settings = parse_command(TwinAugmentation, "experiments.twin_augmentation")
    from experiments.sparse_vs_dense.report import describe
    from experiments.twin_augmentation.report import Study
    from experiments.twin_augmentation.study import RESULTS, study

    if settings.quick and settings.report is not None:
        raise UserError("--quick makes no report: leave --report out")
    if settings.jobs < 1:
        raise UserError(f"--jobs {settings.jobs}: at least 1")
    seeds = seeds_of(settings.seeds, (0,) if settings.quick else range(5))
    machine = describe()  # before this command puts a load on it
    out = settings.out or Path("runs/twin_augmentation") / ("quick" if settings.quick else "")
    results = settings.results or (out / "results" if settings.quick else RESULTS)
    size = "quick" if settings.quick else "full"
    runs, missing, leak = study(size, out, results, settings.arms, seeds, only=settings.only_report, jobs=settings.jobs)
    publish(
        Study(
            date=datetime.date.today().isoformat(),
            command=command_line("experiments.twin_augmentation"),
            machine=machine,
            runs=runs,
            missing=missing,
            leak=leak,
            only_shows_that_it_works=settings.quick,
        ),
        out,
        settings.report,
    )


def publish(found, out: Path, to: Path | None) -> None:
    """Tables on the terminal; pictures and numbers in `out`, or beside the report if one is asked for."""
    from experiments import pages
    from experiments.twin_augmentation import pictures, report

    missing = [f"not done yet: {', '.join(found.missing)}"] if found.missing else []
    pages.publish(
        "study",
        out,
        to,
        tables=report.tables(found),
        notes=[*missing, report.WORKS if found.only_shows_that_it_works else report.NO_DEVICE],
        numbers=report.as_json(found),
        draw=lambda folder, stem: pictures.draw_all(found.runs, stem, folder),
        page=lambda names: report.write_report(found, names),
    )


if __name__ == "__main__":
    run_command(main)
