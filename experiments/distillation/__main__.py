"""python -m experiments.distillation: students that learn from a teacher against the same students from scratch."""

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import pages
from experiments.choosing import command_line
from experiments.distillation import pictures, report
from experiments.distillation.arms import runs_of
from experiments.distillation.sizes import SIZES
from experiments.distillation.study import RESULTS, study
from experiments.runs import say, write_json
from experiments.sparse_vs_dense.report import describe
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command

CHECKS = ("speed", "resume")


@dataclass(frozen=True)
class Distillation:
    """Trains the teacher and all students, run by run, and reports. It may be stopped at any time: what is done is not
    done again."""

    quick: bool = False
    """A minute: tiny models, few steps, one seed, text made here; shows that it works and nothing else."""
    arms: tuple[str, ...] = ()
    """Names of arms, such as scratch, distilled, "top 8"; default all."""
    seeds: tuple[int, ...] = ()
    """Of the students; default 0 1 2."""
    out: Path | None = None
    """Folder of tokenizer, teacher, caches, checkpoints and logs, which may be thrown away; default runs/distillation,
    with --quick .../quick."""
    results: Path | None = None
    """Folder of one small JSON for each finished run, to be committed; default docs/benchmarks/distillation, with
    --quick a folder of --out."""
    only_report: bool = False
    """Train nothing: report what is there."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file, with the picture and the numbers beside it."""
    speed: bool = False
    """Measure step times instead: student, teacher, online, from a cache, interleaved. Once: the result is kept."""
    rounds: int = 5
    """Of --speed."""
    resume: bool = False
    """Check instead that a run with a teacher, killed and resumed, goes on bit for bit. Once: the result is kept."""

    def __post_init__(self):
        if self.rounds < 1:
            raise UserError(f"--rounds must be at least 1, got {self.rounds}")
        if self.rounds != 5 and not self.speed:
            raise UserError("--rounds is of --speed: leave it out, or say --speed")
        if (self.speed or self.resume) and (self.arms or self.seeds or self.only_report or self.report):
            raise UserError("--speed and --resume train no arm and write no report: leave the other options out")
        if any(not 0 <= seed < 1000 for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds must be different numbers from 0 to 999, got {' '.join(map(str, self.seeds))}")


def main() -> None:
    settings = parse_command(Distillation, "experiments.distillation")
    name = "quick" if settings.quick else "full"
    out = settings.out or Path("runs/distillation") / ("quick" if settings.quick else "")
    results = settings.results or (out / "results" if settings.quick else RESULTS)
    if settings.speed or settings.resume:
        for check in CHECKS:
            if getattr(settings, check):
                run_check(check, name, out, results, settings.rounds)
        return
    machine = describe()  # before this command puts a load on it
    found = study(name, out, results, settings.arms, settings.seeds, settings.only_report)
    size = SIZES[name]
    asked = runs_of(settings.arms or size.arms, size.widths, settings.seeds or size.seeds)
    done = {result.run.name for result in found}
    if not found:
        raise UserError(f"{results} has no result of these arms and seeds: leave --only-report out")
    publish(
        report.Study(
            date=datetime.date.today().isoformat(),
            command=command_line("experiments.distillation"),
            machine=machine,
            size=size,
            runs=found,
            missing=[run.name for run in (size.teacher_run, *asked) if run.name not in done],
            checks=read_checks(results),
            only_shows_that_it_works=settings.quick,
        ),
        out,
        settings.report,
    )


def run_check(check: str, name: str, out: Path, results: Path, rounds: int) -> None:
    """Measures step times, or whether a killed run goes on; keeps the result and says it."""
    path = results / f"{check}.json"
    if path.is_file():
        say(f"{path} is there already: remove it to do it again")
        return
    results.mkdir(parents=True, exist_ok=True)
    date = datetime.date.today().isoformat()
    if check == "speed":
        from experiments.distillation.speed import measure_speed, speed_rows

        found = measure_speed(name, out, rounds, date)
        print(f"\n{report.as_text(speed_rows(found))}\n")
    else:
        from experiments.distillation.resume import check_resume

        found = check_resume(name, out, date)
        say(f"killed and resumed: {'the same bits' if found['same'] else 'not the same'}, {found['arrays']} arrays")
    write_json(found, path)
    say(f"wrote {path}")


def read_checks(results: Path) -> dict[str, Any]:
    """By name, those that were run."""
    paths = {check: results / f"{check}.json" for check in CHECKS}
    return {check: json.loads(path.read_text()) for check, path in paths.items() if path.is_file()}


def publish(found: report.Study, out: Path, to: Path | None) -> None:
    """Tables on the terminal; picture and numbers in `out`, or beside the report if one is asked for."""
    pages.publish(
        "distillation",
        out,
        to,
        tables=report.tables(found),
        notes=[report.WORKS] if found.only_shows_that_it_works else [],
        numbers=report.as_json(found),
        draw=lambda folder, stem: pictures.draw_all(found.runs, folder, stem),
        page=lambda names: report.write_report(found, names),
    )


if __name__ == "__main__":
    run_command(main)
