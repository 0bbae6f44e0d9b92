"""python -m experiments.continual_multilingual: which languages gain and lose when a model is updated with a few."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import pages
from experiments.choosing import command_line
from experiments.continual_multilingual.arms import ARMS
from experiments.continual_multilingual.findings import FIGURES, summary
from experiments.continual_multilingual.sizes import FAMILIES, FULL_SIZE, QUICK_SIZE, family_named, quick_family
from experiments.continual_multilingual.study import RESULTS, Part, study
from experiments.sparse_vs_dense.report import describe
from experiments.speed.report import Rows
from zoo.command_line import parse_command
from zoo.errors import run_command


@dataclass(frozen=True)
class ContinualMultilingual:
    """Trains all arms, run by run, and reports. It may be stopped at any time: what is done is not done again."""

    family: str = ""
    """tagging, classification or transduction; default all in turn, with --quick tagging."""
    quick: bool = False
    """A minute: tiny models, made-up languages, one seed; shows that it works and nothing else."""
    arms: tuple[str, ...] = ()
    """By name, see README.md; default all."""
    seeds: tuple[int, ...] = ()
    """Default 0 1 2, with --quick 0."""
    out: Path | None = None
    """Folder of stage-0 models; default runs/continual_multilingual, with --quick .../quick."""
    results: Path | None = None
    """Folder of one JSON for each run, with one folder for each family; default docs/benchmarks/continual-multilingual,
    with --quick in --out."""
    only_report: bool = False
    """Trains nothing: reports what the results have."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file."""


def main() -> None:
    settings = parse_command(ContinualMultilingual, "experiments.continual_multilingual")
    out = settings.out or Path("runs/continual_multilingual") / ("quick" if settings.quick else "")
    results = settings.results or (out / "results" if settings.quick else RESULTS)
    names = [settings.family] if settings.family else ["tagging"] if settings.quick else [f.name for f in FAMILIES]
    seeds, machine, parts = settings.seeds or ((0,) if settings.quick else (0, 1, 2)), describe(), list[Part]()
    for name in names:
        family = quick_family(family_named(name)) if settings.quick else family_named(name)
        size, where = QUICK_SIZE if settings.quick else FULL_SIZE, (out / name, results / name)
        parts.append(study(family, size, *where, settings.arms, seeds, only_report=settings.only_report))
    pages.publish(
        "study",
        out,
        settings.report,
        tables=[(part.family.name, table(part)) for part in parts],
        numbers={"runs": {part.family.name: [run.run.name for run in part.runs] for part in parts}},
        draw=lambda folder, stem: [],
        page=lambda names: write_report(parts, machine),
    )


def write_report(parts: Sequence[Part], machine: Mapping[str, str]) -> str:
    """The dated report, Markdown."""
    return pages.write_page(
        [
            f"# Continual multilingual learning, {datetime.date.today().isoformat()}",
            f"`{command_line('experiments.continual_multilingual')}`; claim, arms and protocol are in "
            "[experiments/continual_multilingual](../../experiments/continual_multilingual/README.md). Relative "
            "changes of scores on test rows in per cent, means over subsets with Student's 95 % intervals.",
        ],
        missing=[f"{part.family.name} {name}" for part in parts for name in part.missing],
        tables=[(part.family.name, table(part)) for part in parts],
        pictures=[],
        machine=machine,
    )


def table(part: Part) -> Rows:
    """Arms x figures: relative changes in per cent."""
    rows = [["arm", *FIGURES]]
    for arm in ARMS:
        found = summary(part, arm.name)
        if found:
            cells = [found.get(name) for name in FIGURES]
            rows.append([arm.name, *("-" if c is None else f"{c.mean:.1f} ± {c.half:.1f}" for c in cells)])
    return rows


if __name__ == "__main__":
    run_command(main)
