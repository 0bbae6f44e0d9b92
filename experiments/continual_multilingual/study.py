"""The study of one family: what is missing is done, run by run; the tables are of what is there.

Two folders. `out` has stage-0 models, which may be thrown away. `results` has small JSONs that can be committed: one
for each finished run (all updates of one arm and seed), the choice of rates, and the cost of steps.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.continual_multilingual.arms import Run, arm_named, runs_of
from experiments.continual_multilingual.choice import Choice, choose, read_choice
from experiments.continual_multilingual.corpora import made_up_corpus, read_corpus
from experiments.continual_multilingual.cost import Cost, measure
from experiments.continual_multilingual.languages import groups, nearest
from experiments.continual_multilingual.rows import encoded
from experiments.continual_multilingual.sizes import MADE_UP, Family, Size, digest
from experiments.continual_multilingual.updates import Session, Stage0, Update
from experiments.kept import check_made_with, write_signed
from experiments.runs import REPOSITORY, say
from experiments.shared_folder import default_shared
from zoo.errors import UserError

RESULTS = REPOSITORY / "docs" / "benchmarks" / "continual-multilingual"
"""Where results lie that are committed, a folder for each family."""
OTHERS = "other data or sizes"
"""What results may be of that are refused."""
COST_ROUNDS = 12


@dataclass(frozen=True)
class RunResult:
    """One arm and seed."""

    run: Run
    """Which one."""
    stage0: Stage0
    """The model that was updated."""
    before: dict[str, float]
    """Score of each language before, on test rows."""
    updates: tuple[Update, ...]
    """One for each subset of languages."""
    seconds: float
    """Processor time of all of it, stage 0 included where it was not there."""


@dataclass(frozen=True)
class Part:
    """All that is known of one family."""

    family: Family
    """Which one."""
    groups: dict[str, list[str]]
    """Names of the updated languages, with + between -> group of each language."""
    nearest: dict[str, list[float]]
    """The same -> distance of each language to the nearest updated one."""
    covered: float
    """Part of the test rows whose answer the model is able to give."""
    rows: dict[str, int]
    """Of each split."""
    choice: Choice | None
    """Rates and strengths."""
    costs: list[Cost]
    """Of steps."""
    runs: list[RunResult]
    """What is done."""
    missing: list[str]
    """What is not."""

    @property
    def seconds(self) -> float:
        """Processor time of the choice and of all runs that are done."""
        return sum(run.seconds for run in self.runs) + (self.choice.seconds if self.choice is not None else 0.0)


def study(
    family: Family,
    size: Size,
    out: Path,
    results: Path,
    arms: tuple[str, ...],
    seeds: Sequence[int],
    *,
    only_report: bool,
) -> Part:
    """Trains and measures what is missing, and tells what there is.

    Raises:
      UserError: wrong data or arms; results of other data or sizes; nothing to report.
    """
    runs = runs_of(arms, tuple(seeds))
    corpus = made_up_corpus(family, size) if family.data == MADE_UP else read_corpus(family, size, default_shared())
    made_with = digest(family, size, corpus.fingerprint)
    results.mkdir(parents=True, exist_ok=True)
    paths = {run.name: results / f"{run.name}.json" for run in runs}
    extra = {name: results / f"{name}.json" for name in ("choice", "cost")}
    for path in (*paths.values(), *extra.values()):
        check_made_with(path, made_with, OTHERS)
    data = encoded(family, size, corpus)
    missing = [] if only_report else [run for run in runs if not paths[run.name].is_file()]
    if missing:
        folder = out / made_with
        folder.mkdir(parents=True, exist_ok=True)
        session = Session(family, size, corpus, data)
        choice = choose(session, size, folder, extra["choice"], made_with)
        if not extra["cost"].is_file():
            session.begin(missing[0].seed, folder)
            found = measure(session, session.base, COST_ROUNDS if family.data != MADE_UP else 2)
            write_signed({"costs": [asdict(one) for one in found]}, made_with, extra["cost"])
        for number, run in enumerate(missing, start=1):
            began = time.process_time()
            stage0 = session.begin(run.seed, folder)
            arm = arm_named(run.arm)
            updates = [session.update(arm, each, *choice.of(arm)) for each in range(len(family.subsets))]
            seconds = round(time.process_time() - began, 1)
            result = RunResult(run, stage0, session.scores_before(), tuple(updates), seconds)
            write_signed(asdict(result), made_with, paths[run.name])
            gain = sum(one.dev_after - one.dev_before for one in updates) / len(updates)
            say(f"{family.name}, {number} of {len(missing)}: {run.name}: {100 * gain:+.1f} on the updated languages")
    done = [read_result(path) for path in paths.values() if path.is_file()]
    if not done:
        raise UserError(f"{results} has no result of these arms and seeds: leave --only-report out")
    subsets = {"+".join(names): [family.languages.index(name) for name in names] for names in family.subsets}
    return Part(
        family=family,
        groups={name: groups(corpus.distances, own) for name, own in subsets.items()},
        nearest={name: nearest(corpus.distances, own).tolist() for name, own in subsets.items()},
        covered=data.covered,
        rows={name: len(getattr(data, name)) for name in ("stage0", "new", "dev", "test")},
        choice=read_choice(extra["choice"]) if extra["choice"].is_file() else None,
        costs=read_costs(extra["cost"]) if extra["cost"].is_file() else [],
        runs=done,
        missing=[run.name for run in runs if not paths[run.name].is_file()],
    )


def read_result(path: Path) -> RunResult:
    """The inverse of what the study writes."""
    fields = json.loads(path.read_text())
    return RunResult(
        run=Run(**fields["run"]),
        stage0=Stage0(**fields["stage0"] | {"judged": tuple(fields["stage0"]["judged"])}),
        before=fields["before"],
        updates=tuple(_update(one) for one in fields["updates"]),
        seconds=fields["seconds"],
    )


def _update(fields: dict) -> Update:
    after = {name: tuple(scores) for name, scores in fields["after"].items()}
    return Update(**fields | {"updated": tuple(fields["updated"]), "errors": tuple(fields["errors"]), "after": after})


def read_costs(path: Path) -> list[Cost]:
    """From JSON."""
    return [Cost(**one) for one in json.loads(path.read_text())["costs"]]
