"""python -m experiments.relation_extraction: PARE and MNRE against heads that read each sentence alone.

python -m experiments.relation_extraction --quick
python -m experiments.relation_extraction --dataset gids --arms PARE attention --seeds 0,1     # a part of the study
python -m experiments.relation_extraction --report docs/benchmarks/DATE-relation-extraction.md
python -m experiments.relation_extraction --dataset FOLDER --encoder bert-base-multilingual-cased
"""

import datetime
import json
from dataclasses import dataclass
from pathlib import Path

from experiments.choosing import command_line, seeds_of
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command


@dataclass(frozen=True)
class RelationExtraction:
    """Trains all arms, run by run, and reports. It may be stopped at any time: what is done is not done again."""

    quick: bool = False
    """A minute: a made-up corpus, tiny models, one seed; shows that it works and nothing else."""
    dataset: tuple[str, ...] = ()
    """gids, indore, relx (of the optional folder `shared`), or folders with rel2id.json and train, val and test as
    .jsonl, .jsonl.gz or .txt (OpenNRE's lines; names may begin with that of the corpus). Default: the three."""
    relations: Path | None = None
    """rel2id.json, where files are named one by one instead of --dataset."""
    train: tuple[str, ...] = ()
    """Files to train on, in that case."""
    val: tuple[str, ...] = ()
    """Files to choose by."""
    test: tuple[str, ...] = ()
    """Files to measure on."""
    encoder: Path | None = None
    """Folder of a BERT with its vocabulary (Hugging Face's format, or a run of zoo.train) to start from, with sizes and
    rates as in the papers. Default: a small one that is trained here."""
    arms: tuple[str, ...] = ()
    """By name, see README.md; default: those that the data set is for."""
    seeds: str = ""
    """Of each arm, with commas between them; default 0,1,2,3,4, with --quick 0."""
    jobs: int = 1
    """Processes that train at a time, of one thread each if there are several."""
    out: Path | None = None
    """Folder of vocabularies, encoders and logs; default runs/relation_extraction, with --quick .../quick."""
    results: Path | None = None
    """Folder with one for each data set, in which each run leaves one JSON, small enough to be committed: the study
    goes on from them on any machine. Default: docs/benchmarks/relation-extraction for the three data sets and our own
    encoder, else a folder in --out."""
    only_report: bool = False
    """Trains nothing: reports what the results have."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file, with the pictures and a JSON beside it."""


def main() -> None:
    settings = parse_command(RelationExtraction, "experiments.relation_extraction")
    from experiments.relation_extraction.report import Study
    from experiments.relation_extraction.study import carry_out, part_of, plan_of, results_of, setting_of
    from experiments.sparse_vs_dense.report import describe

    wanted = datasets_of(settings)
    if settings.quick and (settings.encoder is not None or settings.report is not None):
        raise UserError("--quick makes data and encoder of its own, and no report: leave --encoder and --report out")
    if settings.jobs < 1:
        raise UserError(f"--jobs {settings.jobs}: at least 1")
    seeds = seeds_of(settings.seeds, (0,) if settings.quick else range(5))
    machine = describe()  # before this command puts a load on it
    above = settings.out or Path("runs/relation_extraction") / ("quick" if settings.quick else "")
    plans = []
    for dataset in wanted:
        setting = setting_of(dataset, settings.encoder)
        out = above / (dataset.title if settings.encoder is None else f"{dataset.title}-{settings.encoder.name}")
        results = settings.results / dataset.title if settings.results else results_of(setting, out)
        plans.append(plan_of(setting, out, results, settings.arms, seeds))
    if not settings.only_report:
        carry_out(plans, jobs=settings.jobs, here=settings.quick)
    publish(
        Study(
            date=datetime.date.today().isoformat(),
            command=command_line("experiments.relation_extraction"),
            machine=machine,
            parts=[part_of(plan) for plan in plans],
            only_shows_that_it_works=settings.quick,
        ),
        above,
        settings.report,
    )


def datasets_of(settings: RelationExtraction) -> list:
    """What is to be read. Raises `UserError` for options that exclude each other, and where there is no data."""
    from experiments.relation_extraction.datasets import FOLDERS, MADE_UP, Dataset
    from experiments.shared_folder import default_shared

    files = (settings.relations, settings.train, settings.val, settings.test)
    if sum(map(bool, (settings.quick, settings.dataset, any(files)))) > 1:
        raise UserError("--quick, --dataset, and --relations --train --val --test exclude each other")
    if settings.quick:
        return [Dataset(MADE_UP)]
    if any(files):
        if not all(files):
            raise UserError("files one by one: need all of --relations, --train, --val and --test")
        return [Dataset("files", str(settings.relations), settings.train, settings.val, settings.test)]
    names = settings.dataset
    if not names:
        shared = default_shared()
        names = tuple(name for name, folder in FOLDERS.items() if shared and (shared / "data" / folder).is_dir())
        if not names:
            raise UserError("no folder shared/data: name folders of corpora with --dataset, or set ZOO_SHARED")
    titles = [Dataset(name).title for name in names]
    if len(set(titles)) != len(titles):
        raise UserError(f"--dataset: two of {', '.join(names)} have the same name")
    return [Dataset(name) for name in names]


def publish(found, out: Path, to: Path | None) -> None:
    """Tables on the terminal; pictures and numbers in `out`, or beside the report if one is asked for."""
    from experiments.relation_extraction import report, study_pictures

    stem, folder = (to.stem, to.parent) if to else ("study", out)
    folder.mkdir(parents=True, exist_ok=True)
    pictures, written = [], []
    for part in found.parts:
        for title, rows in report.tables(part):
            print(f"\n{title}\n{report.as_text(rows)}")
        if part.missing:
            print(f"\nnot done yet: {', '.join(part.missing)}")
        names = [f"{stem}-{part.name}-curves.png", f"{stem}-{part.name}-sizes.png"]
        study_pictures.draw_mean_curves(part.runs, folder / names[0], part.name)
        study_pictures.draw_sizes(part.runs, folder / names[1], part.name)
        pictures.append(names)
        written += [folder / name for name in names]
    if found.only_shows_that_it_works:
        print(f"\n{report.WORKS}")
    numbers = folder / f"{stem}.json"
    numbers.write_text(json.dumps(report.as_json(found)) + "\n")
    written.append(numbers)
    if to:
        to.write_text(report.write_report(found, pictures))
        written.append(to)
    print("\nwrote", ", ".join(map(str, written)))


if __name__ == "__main__":
    run_command(main)
