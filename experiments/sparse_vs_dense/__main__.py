"""python -m experiments.sparse_vs_dense: a mixture of experts against a dense model of equal active FLOPs."""

import datetime
import functools
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.choosing import command_line
from experiments.runs import run_in_process, say
from experiments.shared_folder import named, training_novels
from experiments.sparse_vs_dense import findings, pictures, report
from experiments.sparse_vs_dense.arms import DENSE, FULL, QUICK, SPARSE, Run, Workload, comparison, recipe_of, sweep
from experiments.sparse_vs_dense.worker import Result, read_result
from zoo.command_line import parse_command
from zoo.data import open_corpus, tokenizer_for
from zoo.errors import UserError, run_command

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SparseVsDense:
    """Trains all arms, run by run, and reports. It may be stopped at any time: what is done is not done again."""

    quick: bool = False
    """A minute: a tiny model, few steps, one seed, the default text; shows that it works and nothing else."""
    out: Path | None = None
    """Folder of the results, one JSON for each run; default runs/sparse_vs_dense, with --quick .../quick."""
    data: tuple[str, ...] = ()
    """Files to train on; default the novels of the folder `shared` where it is, else Python's standard library."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file, with the pictures and all results beside it."""


def main() -> None:
    settings = parse_command(SparseVsDense, "experiments.sparse_vs_dense")
    size = "quick" if settings.quick else "full"
    workload = QUICK if settings.quick else FULL
    out = settings.out or Path("runs/sparse_vs_dense") / ("quick" if settings.quick else "")
    data = settings.data or (() if settings.quick else training_novels())
    (out / "runs").mkdir(parents=True, exist_ok=True)
    source = prepare(out, workload, data)

    def carry_out(runs: list[Run], what: str) -> list[Result]:
        found = []
        for number, run in enumerate(runs, start=1):
            path = out / "runs" / f"{run.name}.json"
            if not path.is_file():
                say(f"{what}, {number} of {len(runs)}: {run.name}")
                train(run, size, path, out / "tokenizer", data)
            found.append(read_result(path))
            say(f"{what}, {number} of {len(runs)}: {run.name}: {found[-1].validation[-1][1]:.4f} nats per token")
        return found

    tried = carry_out(sweep(workload), "learning rate")
    rates = findings.best_rates(tried) or dict.fromkeys((DENSE, SPARSE), workload.learning_rates[0])
    compared = carry_out(comparison(workload, rates), "comparison")
    results = report.Results(
        date=datetime.date.today().isoformat(),
        command=command_line("experiments.sparse_vs_dense"),
        machine=report.describe(),
        source=source,
        workload=workload,
        sweep=tried,
        runs=compared,
    )
    publish(results, out, settings.report)


def prepare(out: Path, workload: Workload, data: tuple[str, ...]) -> str:
    """Trains the tokenizer that all runs share, once; returns what the text is. Raises `UserError` if the folder's runs
    were made with other text or other sizes."""
    recipe = recipe_of(Run(DENSE, 0, 1e-3, 1), workload, data, None, str(out))
    corpus = open_corpus(recipe.data)
    sizes = {name: value for name, value in asdict(workload).items() if name != "seeds"}  # more of them may be added
    described = json.loads(json.dumps({"text": corpus.fingerprint, "workload": sizes}))
    setting = out / "setting.json"
    if not setting.is_file():
        tokenizer_for(corpus, recipe.data).save(out / "tokenizer")
        setting.write_text(json.dumps(described, indent=1) + "\n")
    before = json.loads(setting.read_text())
    for name, value in described.items():
        if before.get(name) != value:
            raise UserError(f"{out} holds runs with another {name}: give another --out, or remove it")
    return functools.reduce(lambda text, entry: text.replace(entry, named(entry)), data, corpus.description)


def train(run: Run, size: str, path: Path, tokenizer: Path, data: tuple[str, ...]) -> None:
    """One run in a process of its own; its output goes to a log beside the result."""
    arguments = [size, json.dumps(asdict(run)), str(path), str(tokenizer), *data]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    run_in_process(run.name, "experiments.sparse_vs_dense.worker", arguments, path.with_suffix(".log"), here)


def publish(results: report.Results, out: Path, to: Path | None) -> None:
    """Tables on the terminal; results and pictures in the output folder, or beside the report if one is asked for."""
    for title, rows in report.tables(results):
        print(f"\n{title}\n{report.as_text(rows)}")
    stem, folder = (to.stem, to.parent) if to else ("sparse-vs-dense", out)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{stem}-{name}.png" for name in pictures.NAMES]
    for name, draw in zip(names, pictures.NAMES.values(), strict=True):
        draw(results.runs, folder / name)
    numbers = folder / f"{stem}.json"
    numbers.write_text(json.dumps(asdict(results)) + "\n")
    written = [numbers, *(folder / name for name in names)]
    if to:
        to.write_text(report.write_report(results, names))
        written.append(to)
    print("\nwrote", ", ".join(map(str, written)))


if __name__ == "__main__":
    run_command(main)
