"""python -m experiments.relation_extraction.worker: the pre-training, or runs with their figures, a JSON each."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.kept import read_fields, write_signed
from experiments.relation_extraction import linear
from experiments.relation_extraction.arms import Arm, Run, Size, arm_named
from experiments.relation_extraction.bags import Bag, language_names, of_language, size_names
from experiments.relation_extraction.corpus import Corpus
from experiments.relation_extraction.datasets import Dataset, read_dataset
from experiments.relation_extraction.encoders import check_folder, from_folder, from_scratch, marks_of
from experiments.relation_extraction.inputs import Bags
from experiments.relation_extraction.metrics import (
    STATISTICS,
    Curve,
    Scored,
    by_group,
    curve_of,
    macro_f1,
    precision_at,
)
from experiments.relation_extraction.neural import layout_of, network_of
from experiments.relation_extraction.pretraining import pretrain, vocabulary
from experiments.relation_extraction.reader import languages_of
from experiments.relation_extraction.trainer import Trained, Training
from experiments.runs import say, write_json
from zoo.data import Tokenizer
from zoo.errors import run_command

RECALLS = tuple(round(0.01 * step, 2) for step in range(1, 101))
"""Where the curves of results are kept."""
ALL, SENTENCES, LANGUAGE = "all", "sentences: ", "language: "
P_AT = (100, 200, 300)


@dataclass(frozen=True)
class Setting:
    """What all runs of a folder have in common."""

    dataset: Dataset
    """The corpus."""
    size: Size
    """Sizes."""
    encoder: str | None = None
    """Folder of a BERT; None: our own."""
    novels: bool = True
    """Whether novels are read in pre-training, where they are there."""


@dataclass(frozen=True)
class Result:
    """What one run found on the test bags."""

    run: Run
    """Which one."""
    figures: dict[str, dict[str, float]]
    """By group of bags ("all", "sentences: 1", "language: en"): AUC, micro F1 and so on, and "bags"."""
    curve: tuple[float, ...]
    """Precision at each of `RECALLS`, of all bags."""
    epochs: tuple[tuple[float, float], ...]
    """(training loss in nats per bag, area on val) of every epoch; none of the linear model."""
    best: int
    """Epoch that was kept, from 1."""
    parameters: int
    """That were trained."""
    seconds: float
    """Processor time of training, of compilation where it was the arm's first run in its process."""


class Runs:
    """Runs of one setting in one process: they share the corpus, its tokens and what is compiled for an arm."""

    def __init__(self, setting: Setting, corpus: Corpus, out: Path):
        """out has vocabulary and pre-trained encoder, where the setting names no folder."""
        self.setting, self.corpus, self.out = setting, corpus, out
        self._bags: dict[str, Bags] = {}
        self._training: dict[Arm, Training] = {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's, or that of the corpus."""
        if self.setting.encoder is not None:
            return check_folder(Path(self.setting.encoder), self.setting.size).tokenizer
        return vocabulary(self.corpus, self.setting.size, self.out)

    @cached_property
    def languages(self) -> list[str]:
        """Of the training sentences."""
        return languages_of(one for bag in self.corpus.train for one in bag.instances)

    def read(self, bags: Sequence[Bag]) -> Bags:
        """Bags as tokens."""
        marks, size = marks_of(self.tokenizer, "the vocabulary"), self.setting.size
        return Bags(bags, self.corpus.relations, self.tokenizer, marks, size, self.languages)

    def part(self, name: str) -> Bags:
        """Train or val, tokenised once."""
        if name not in self._bags:
            self._bags[name] = self.read(getattr(self.corpus, name))
        return self._bags[name]

    def train(self, run: Run) -> tuple[Trained, int]:
        """The run's network after its best epoch, and how many parameters it has."""
        arm, corpus = arm_named(run.arm), self.corpus
        bags = self.part("train")
        encoder = _encoder(arm, self.setting, self.tokenizer, self.out, run.seed)
        shares = bags.labels.mean(0)
        network = network_of(arm, encoder, corpus.relations, max(1, len(self.languages)), run.seed, shares)
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
        if arm not in self._training:
            self._training[arm] = Training(layout_of(arm), bags, self.part("val"), corpus.relations)
        say(f"{run.name}: {len(corpus.train):,} bags to train on")
        return self._training[arm](network, run.seed), count

    def carry_out(self, run: Run) -> Result:
        """Trains the run's model and measures it."""
        if arm_named(run.arm).encoder == "linear":
            return _linear(run, self.setting.size, self.corpus)
        trained, count = self.train(run)
        figures, curve = measured(lambda bags: trained.scored(self.read(bags)), self.corpus.test)
        return Result(run, figures, curve, trained.epochs, trained.best, count, trained.seconds)


def _encoder(arm: Arm, setting: Setting, tokenizer: Tokenizer, out: Path, seed: int):
    if setting.encoder is not None:
        return from_folder(Path(setting.encoder), setting.size)
    if arm.encoder == "scratch" or not setting.size.mlm_steps:
        return from_scratch(setting.size, tokenizer, seed)
    return from_folder(out / "mlm", setting.size)


def _linear(run: Run, size: Size, corpus: Corpus) -> Result:
    began = time.process_time()
    options = (size.linear_penalties, size.linear_least, size.linear_steps)
    model = linear.train(corpus.train, corpus.relations, corpus.val, *options)
    figures, curve = measured(model.scored, corpus.test)
    return Result(run, figures, curve, (), 0, model.weights.size, time.process_time() - began)


def measured(
    scored: Callable[[Sequence[Bag]], Scored], bags: Sequence[Bag]
) -> tuple[dict[str, dict[str, float]], tuple[float, ...]]:
    """(figures of all bags, of bags by size, and by language; precision at `RECALLS`).

    A bag of several languages counts in each of them with its sentences of that language.
    """
    whole = scored(bags)
    groups = {ALL: whole}
    groups |= {SENTENCES + name: part for name, part in by_group(whole, size_names(bags)).items()}
    groups |= {SENTENCES + name: part for name, part in by_group(whole, size_names(bags, (1,))).items()}
    spoken = languages_of(one for bag in bags for one in bag.instances)
    if any(len(bag.languages) > 1 for bag in bags):
        groups |= {LANGUAGE + name: scored(of_language(bags, name)) for name in spoken}
    elif spoken:
        groups |= {LANGUAGE + name: part for name, part in by_group(whole, language_names(bags)).items()}
    return {name: figures_of(part) for name, part in groups.items()}, precisions(curve_of(whole))


def figures_of(scored: Scored) -> dict[str, float]:
    """The figures of the papers by name, and how many bags they are of. P@M only of 300 candidates or more."""
    curve = curve_of(scored)
    found = {name: statistic(curve) for name, statistic in STATISTICS.items()}
    found["macro F1"] = macro_f1(scored)
    if curve.taken[-1] >= max(P_AT):
        found["P@M"] = precision_at(curve, P_AT)
    return {**found, "bags": float(len(scored))}


def precisions(curve: Curve) -> tuple[float, ...]:
    """Precision at the first point of at least each of `RECALLS`."""
    at = np.searchsorted(curve.recall, np.array(RECALLS) - 1e-9)
    return tuple(float(round(value, 4)) for value in curve.precision[np.minimum(at, len(curve.precision) - 1)])


def read_result(path: Path) -> Result:
    """The inverse of `write_json(asdict(result), path)`."""
    fields = read_fields(path)
    fields |= {"curve": tuple(fields["curve"]), "epochs": tuple(map(tuple, fields["epochs"]))}
    return Result(**fields | {"run": Run(**fields["run"])})


def read_setting(out: Path) -> Setting:
    """What `write_setting` wrote."""
    fields = json.loads((out / "setting.json").read_text())
    return Setting(
        **fields | {"dataset": Dataset(**_tuples(fields["dataset"])), "size": Size(**_tuples(fields["size"]))}
    )


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Lists of a JSON object as what they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def write_setting(setting: Setting, out: Path) -> None:
    """For the runs of this folder."""
    write_json(asdict(setting), out / "setting.json")


@dataclass(frozen=True)
class Job:
    """A run that a worker is to do."""

    run: Run
    """Which one."""
    made_with: str
    """What its result is signed with."""
    path: str
    """Where that goes."""


def write_jobs(jobs: Sequence[Job], path: Path) -> None:
    """For `main`."""
    write_json([asdict(job) for job in jobs], path)


def read_jobs(path: Path) -> list[Job]:
    """What `write_jobs` wrote."""
    return [Job(**fields | {"run": Run(**fields["run"])}) for fields in json.loads(path.read_text())]


def carry_out_all(jobs: Sequence[Job], runs: Runs) -> None:
    """Each job in turn; what another command has done in the meantime is not done again."""
    for job in jobs:
        if not Path(job.path).is_file():
            write_signed(asdict(runs.carry_out(job.run)), job.made_with, Path(job.path))


def main() -> None:
    """Arguments: the study's folder and "pretrain"; or the folder and a file of jobs."""
    out, what = sys.argv[1:]
    setting = read_setting(Path(out))
    corpus = read_dataset(setting.dataset)
    if what == "pretrain":
        pretrain(corpus, setting.size, Path(out), with_novels=setting.novels)
    else:
        carry_out_all(read_jobs(Path(what)), Runs(setting, corpus, Path(out)))


if __name__ == "__main__":
    run_command(main)
