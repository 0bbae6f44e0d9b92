"""python -m experiments.gemma2_ablations: Gemma 2's choices of architecture, one changed at a time.

python -m experiments.gemma2_ablations --arms "gemma 2" "no soft-caps" --seeds 0       # a part; the rest another day
python -m experiments.gemma2_ablations --only-report --report docs/benchmarks/DATE-gemma2-ablations.md
python -m experiments.gemma2_ablations --quick
"""

from dataclasses import dataclass
from pathlib import Path

from experiments.choosing import seeds_of
from experiments.gemma2_ablations.study import RESULTS, study
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command


@dataclass(frozen=True)
class Gemma2Ablations:
    """Trains all arms, run by run, and reports. It may be stopped at any time: what is done is not done again."""

    arms: tuple[str, ...] = ()
    """By name; default all of arms.py."""
    seeds: str = ""
    """Of each arm, with commas between them; default 0,1,2."""
    quick: bool = False
    """A minute: two tiny models, a few steps, text that is made here; shows that it works and nothing else."""
    out: Path | None = None
    """Folder of text and logs, which may be thrown away; default runs/gemma2_ablations, with --quick .../quick."""
    results: Path | None = None
    """Folder of the results, one JSON for each run, small enough to be committed: the study goes on from them on any
    machine. Default docs/benchmarks/gemma2-ablations, with --quick a folder in --out."""
    only_report: bool = False
    """Trains nothing: reports what the folder of results has."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file, with the pictures and the table as JSON beside it."""


def main() -> None:
    options = parse_command(Gemma2Ablations, "experiments.gemma2_ablations")
    if options.quick and (options.report is not None or options.only_report):
        raise UserError("--quick measures nothing that could be reported: leave --report and --only-report out")
    out = options.out or Path("runs/gemma2_ablations") / ("quick" if options.quick else "")
    results = options.results or (out / "results" if options.quick else RESULTS)
    name = "quick" if options.quick else "full"
    seeds = seeds_of(options.seeds)
    study(name, out, results, options.arms, seeds, options.report, options.only_report)


if __name__ == "__main__":
    run_command(main)
