"""python -m experiments.in_context_language: training on thousands of made-up languages, tested on unseen ones.

python -m experiments.in_context_language --quick
python -m experiments.in_context_language --only-report --report docs/benchmarks/DATE-in-context-language.md
python -m experiments.in_context_language --checkpoint CKPT --real kalamang
"""

import datetime
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from experiments.choosing import command_line, seeds_of
from experiments.in_context_language import real_languages
from experiments.in_context_language.baselines import shared_folder
from experiments.in_context_language.study import RESULTS, study
from experiments.in_context_language.workloads import WITHOUT_GLOSSES
from experiments.runs import say
from experiments.speed.report import as_markdown, as_text
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command


@dataclass(frozen=True)
class InContextLanguage:
    """Trains on made-up languages, seed by seed, translates unseen ones, and reports. It may be stopped at any time:
    what is done is not done again. With --checkpoint and --real: any model on a real language."""

    quick: bool = False
    """A minute: a tiny model, few steps, one seed; shows that it works and nothing else."""
    without_glosses: bool = False
    """For comparison: words and sentences are translated at once, not glossed first."""
    out: Path | None = None
    """Folder of what may be thrown away: tokenizer, checkpoints, logs, pictures; default runs/in_context_language, with
    --quick .../quick, with --without-glosses .../without-glosses."""
    seeds: str = ""
    """Runs, as in 0,2; default 0,1,2, with --quick 0."""
    results: Path | None = None
    """Folder of the results that are kept, one JSON for each finished run; default
    docs/benchmarks/in-context-language/full or .../full-without-glosses, with --quick a folder of --out. What is there
    is not done again: on another machine the study goes on with what is missing."""
    only_report: bool = False
    """Trains nothing: tables and pictures of the results that are there."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file, with the pictures and all results beside it."""
    checkpoint: Path | None = None
    """Anything that `zoo.load` takes, to be examined on the language that --real names."""
    real: Literal["kalamang", "lojban"] | None = None
    """A real language; needs the folder `shared`."""
    conditions: tuple[str, ...] = real_languages.SMALL_CONDITIONS
    """What is told of it, see mtob.py: all of these, one after the other."""
    sentences: int | None = None
    """Test sentences of each direction; default all 50."""
    budget: int | None = None
    """Most tokens of a prompt; default what the model has positions for."""
    chat: bool = False
    """Prompts are turns of a conversation, for instruction-tuned models."""
    shared: Path | None = None
    """The folder that holds data/kalamang_grammar_dictionary and data/lojban_cll. Default: $ZOO_SHARED, or `shared`
    beside the repository."""


def main() -> None:
    settings = parse_command(InContextLanguage, "experiments.in_context_language")
    if settings.sentences is not None and settings.sentences < 1:
        raise UserError(f"sentences must be at least 1, got {settings.sentences}")
    if (settings.checkpoint is None) != (settings.real is None):
        raise UserError("--checkpoint and --real belong together: a model, and the language that it is examined on")
    if settings.real is not None:
        if settings.seeds or settings.results is not None or settings.only_report:
            raise UserError("--seeds, --results and --only-report belong to the study: leave them or --real out")
        examine_real(settings)
    else:
        study_of(settings)


def study_of(settings: InContextLanguage) -> None:
    """The made-up languages: training, answers, report."""
    size = ("quick" if settings.quick else "full") + (WITHOUT_GLOSSES if settings.without_glosses else "")
    out = settings.out or Path("runs/in_context_language") / size.removeprefix("full").removeprefix("-")
    results = settings.results or (out / "results" if settings.quick else RESULTS / size)
    seeds = seeds_of(settings.seeds)
    study(size, out, results, seeds, settings.report, settings.only_report)


def examine_real(settings: InContextLanguage) -> None:
    """A checkpoint on a real language: a table, and all answers as JSON."""
    assert settings.real is not None and settings.checkpoint is not None
    material = real_languages.MATERIALS[settings.real](shared_folder(settings.shared))
    found = real_languages.examine(
        settings.checkpoint,
        material,
        settings.conditions,
        sentences=settings.sentences,
        budget=settings.budget,
        chat=settings.chat,
        say=say,
    )
    rows = real_languages.rows(found, material, settings.sentences)
    print(f"\n{material.language}\n{as_text(rows)}")
    out = settings.out or Path("runs/in_context_language/real")
    out.mkdir(parents=True, exist_ok=True)
    name = f"{settings.real}-{settings.checkpoint.resolve().name}"
    path = out / f"{name}.json"
    path.write_text(json.dumps([asdict(each) for each in found], ensure_ascii=False) + "\n")
    if settings.report:
        settings.report.parent.mkdir(parents=True, exist_ok=True)
        title = f"# {material.language}, {settings.checkpoint}, {datetime.date.today().isoformat()}"
        command = command_line("experiments.in_context_language")
        settings.report.write_text(f"{title}\n\n`{command}`\n\n{as_markdown(rows)}\n")
    print("\nwrote", path)


if __name__ == "__main__":
    run_command(main)
