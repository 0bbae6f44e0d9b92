"""python -m experiments.quantisation: what packed weights cost in quality, and what they save."""

import datetime
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.choosing import command_line
from experiments.quantisation import pictures, report, seed
from experiments.quantisation.kinds import FULL, INT4, INT8, QUICK, Workload
from experiments.quantisation.programs import measure_memory, measure_speed
from experiments.quantisation.sizes import preset_sizes
from experiments.runs import say
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command


@dataclass(frozen=True)
class Quantisation:
    """Trains small models, packs and scores them, and reports. It may be stopped at any time: a seed that is done is
    not done again."""

    quick: bool = False
    """Half a minute: one small model, few steps; shows that it works and nothing else."""
    out: Path | None = None
    """Folder of the results, one JSON for each seed; default runs/quantisation, with --quick .../quick."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file, with the picture and all results beside it."""


def main() -> None:
    settings = parse_command(Quantisation, "experiments.quantisation")
    workload = QUICK if settings.quick else FULL
    out = settings.out or Path("runs/quantisation") / ("quick" if settings.quick else "")
    machine = report.describe()  # before this command puts a load on it
    out.mkdir(parents=True, exist_ok=True)
    check_setting(out, workload)
    source = seed.train_tokenizer(workload, out / "tokenizer")
    found = []
    for number in range(workload.seeds):
        path = out / f"seed-{number}.json"
        if not path.is_file():
            say(f"seed {number + 1} of {workload.seeds}")
            seed.write_result(seed.run_seed(number, workload, out / f"seed-{number}", out / "tokenizer"), path)
        found.append(seed.read_result(path))
        scores = found[-1].scores
        say(f"seed {number + 1}: perplexity {', '.join(f'{k} {s.perplexity:.3f}' for k, s in scores.items())}")
    say("memory of the decode program")
    memory = measure_memory(workload, (INT8, INT4))
    say("speed of generation")
    speed = measure_speed(workload, (INT8, INT4))
    results = report.Results(
        date=datetime.date.today().isoformat(),
        command=command_line("experiments.quantisation"),
        machine=machine,
        source=source,
        workload=workload,
        seeds=found,
        sizes=preset_sizes(),
        memory=memory,
        speed=speed,
    )
    publish(results, out, settings.report)


def check_setting(out: Path, workload: Workload) -> None:
    """Raises `UserError` if the folder's seeds were made with other sizes."""
    setting, described = out / "setting.json", json.loads(json.dumps(asdict(workload)))
    if not setting.is_file():
        setting.write_text(json.dumps(described, indent=1) + "\n")
    if json.loads(setting.read_text()) != described:
        raise UserError(f"{out} holds seeds of another workload: give another --out, or remove it")


def publish(results: report.Results, out: Path, to: Path | None) -> None:
    """Tables on the terminal; results and picture in the output folder, or beside the report if one is asked for."""
    for title, rows in report.tables(results):
        print(f"\n{title}\n{report.as_text(rows)}")
    stem, folder = (to.stem, to.parent) if to else ("quantisation", out)
    folder.mkdir(parents=True, exist_ok=True)
    picture, numbers = folder / f"{stem}.png", folder / f"{stem}.json"
    pictures.draw(results.seeds, results.memory, picture)
    numbers.write_text(json.dumps(asdict(results)) + "\n")
    written = [numbers, picture]
    if to:
        to.write_text(report.write_report(results, picture.name))
        written.append(to)
    print("\nwrote", ", ".join(map(str, written)))


if __name__ == "__main__":
    run_command(main)
