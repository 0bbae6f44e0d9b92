"""python -m experiments.relation_extraction.tuning: rates and epochs, by the area on val; no test bag is read.

Every arm gets the same trials. Two commands with different --arms may run at the same time once the encoder is there.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from experiments.choosing import seeds_of
from experiments.kept import check_made_with, read_fields, write_signed
from experiments.relation_extraction.arms import ATTENTION, AVERAGE, PARE, Run, arms_of
from experiments.relation_extraction.datasets import Dataset, read_dataset, speaks
from experiments.relation_extraction.study import (
    RESULTS,
    made_with,
    needs_pretraining,
    prepare,
    setting_of,
    write_setting_once,
)
from experiments.relation_extraction.worker import Runs
from experiments.runs import say
from experiments.speed.report import Rows, as_text
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command


@dataclass(frozen=True)
class Tuning:
    """Tries rates and epochs on val, trial by trial. It may be stopped at any time: what is done is not done again."""

    dataset: str = "gids"
    """As for the study, one."""
    arms: tuple[str, ...] = (PARE, AVERAGE, ATTENTION)
    """By name; all get the same trials."""
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    """Peak learning rates."""
    head_rates: tuple[float, ...] = (1.0, 5.0)
    """How many times as fast the head learns."""
    epochs: tuple[int, ...] = (4,)
    """Through the training bags; the schedule ends with them, so that each number is a trial of its own."""
    seeds: str = "0"
    """With commas between them."""
    out: Path | None = None
    """The study's folder of this data set, for its encoder; default runs/relation_extraction/DATASET."""
    results: Path | None = None
    """Where each trial leaves a JSON; default docs/benchmarks/relation-extraction/tuning-DATASET."""

    def __post_init__(self):
        for name, least in (("rates", 0.0), ("head_rates", 0.0), ("epochs", 0)):
            values = getattr(self, name)
            if not values or not all(least < value < math.inf for value in values):
                given = " ".join(map(str, values)) or "none"
                raise UserError(f"--{name.replace('_', '-')}: need numbers above 0, got {given}")


@dataclass(frozen=True)
class Trial:
    """What is tried."""

    run: Run
    """Arm and seed."""
    rate: float
    """Peak of the encoder's."""
    head_rate: float
    """The head's, as a multiple."""
    epochs: int
    """How many."""

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.run.name}-rate-{self.rate:g}-head-{self.head_rate:g}-epochs-{self.epochs}"


@dataclass(frozen=True)
class Tried:
    """What came of it."""

    trial: Trial
    """Which one."""
    epochs: tuple[tuple[float, float], ...]
    """(training loss in nats per bag, area on val) of each."""
    seconds: float
    """Processor time."""

    @property
    def area(self) -> float:
        """The best epoch's, which is what the study would keep."""
        return max(area for _, area in self.epochs)


def trials_of(settings: Tuning, arms: Sequence[str], seeds: Sequence[int]) -> list[Trial]:
    """All, those of one arm together."""
    grid = itertools.product(arms, seeds, settings.rates, settings.head_rates, settings.epochs)
    return [Trial(Run(arm, seed), rate, head, epochs) for arm, seed, rate, head, epochs in grid]


def read_tried(path: Path) -> Tried:
    """From JSON."""
    fields = read_fields(path)
    trial = fields["trial"]
    return Tried(Trial(**trial | {"run": Run(**trial["run"])}), tuple(map(tuple, fields["epochs"])), fields["seconds"])


def rows_of(tried: Sequence[Tried]) -> Rows:
    """A trial a row, the best of an arm first."""
    rows = [["arm", "seed", "rate", "head", "epochs", "best area on val", "by epoch", "s"]]
    for one in sorted(tried, key=lambda one: (one.trial.run.arm, -one.area)):
        trial, areas = one.trial, " ".join(f"{area:.3f}" for _, area in one.epochs)
        rows.append([trial.run.arm, str(trial.run.seed), f"{trial.rate:g}", f"{trial.head_rate:g}", str(trial.epochs),
                     f"{one.area:.4f}", areas, f"{one.seconds:.0f}"])  # fmt: skip
    return rows


def tune(settings: Tuning) -> list[Tried]:
    """Trains what is missing. Raises `UserError` as the study does."""
    dataset = Dataset(settings.dataset)
    setting, seeds = setting_of(dataset, None), seeds_of(settings.seeds, (0,))
    out = settings.out or Path("runs/relation_extraction") / dataset.title
    results = settings.results or RESULTS / f"tuning-{dataset.title}"
    corpus, fingerprint = read_dataset(dataset), dataset.fingerprint()
    arms = arms_of(settings.arms, dataset.size, corpus.relations, speaks(corpus), False)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    results.mkdir(parents=True, exist_ok=True)
    write_setting_once(setting, fingerprint, out)
    if any(needs_pretraining(Run(arm, 0), setting) for arm in arms):
        prepare(setting, corpus, out, results)
    unseen = replace(corpus, test=[])
    found = []
    for trial in trials_of(settings, arms, seeds):
        path = results / f"{trial.name}.json"
        tried = replace(setting.size, learning_rate=trial.rate, head_rate=trial.head_rate, epochs=trial.epochs)
        own = replace(setting, size=tried)
        signature = made_with(own, trial.run.arm, fingerprint)
        check_made_with(path, signature, "other data, sizes or novels")
        if not path.is_file():
            say(trial.name)
            trained, _ = Runs(own, unseen, out).train(trial.run)
            write_signed(asdict(Tried(trial, trained.epochs, trained.seconds)), signature, path)
        found.append(read_tried(path))
    return found


def main() -> None:
    print(as_text(rows_of(tune(parse_command(Tuning, "experiments.relation_extraction.tuning")))))


if __name__ == "__main__":
    run_command(main)
