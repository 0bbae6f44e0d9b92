"""python -m experiments.continual_multilingual: which languages gain and lose when a model is updated with a few."""

from dataclasses import dataclass
from pathlib import Path

import jax

from experiments import pages
from experiments.continual_multilingual import pictures, report
from experiments.continual_multilingual.sizes import FAMILIES, FULL_SIZE, QUICK_SIZE, family_named, quick_family
from experiments.continual_multilingual.study import RESULTS, Part, study
from experiments.sparse_vs_dense.report import describe
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command


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
    """Trains nothing: reports what the results have; without --family, of the families that have any."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file."""


def main() -> None:
    settings = parse_command(ContinualMultilingual, "experiments.continual_multilingual")
    if settings.quick and settings.report is not None:
        raise UserError("--quick shows that it works and nothing else: leave --report out")
    if settings.quick and not settings.only_report:
        # Most of its time is compilation, and its programs run for a second.
        jax.config.update("jax_disable_most_optimizations", True)
    out = settings.out or Path("runs/continual_multilingual") / ("quick" if settings.quick else "")
    results = settings.results or (out / "results" if settings.quick else RESULTS)
    names = [settings.family] if settings.family else ["tagging"] if settings.quick else [f.name for f in FAMILIES]
    if settings.only_report and not settings.family:
        names = [name for name in names if any((results / name).glob("*-seed-*.json"))] or names
    seeds, machine, parts = settings.seeds or ((0,) if settings.quick else (0, 1, 2)), describe(), list[Part]()
    for name in names:
        family = quick_family(family_named(name)) if settings.quick else family_named(name)
        size, where = QUICK_SIZE if settings.quick else FULL_SIZE, (out / name, results / name)
        parts.append(study(family, size, *where, settings.arms, seeds, only_report=settings.only_report))
    missing = [f"{part.family.name} {name}" for part in parts for name in part.missing]
    pages.publish(
        "study",
        out,
        settings.report,
        tables=report.tables(parts),
        numbers=report.as_json(parts),
        draw=lambda folder, stem: pictures.draw_all(parts, folder, stem),
        page=lambda names: report.write_report(parts, names, machine),
        notes=[f"not done yet: {', '.join(missing)}"] * bool(missing) + [report.WORKS] * settings.quick,
    )


if __name__ == "__main__":
    run_command(main)
