"""python -m experiments.relation_extraction.worker: the pre-training, or one run with its figures, as JSON."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.kept import read_fields
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
from experiments.relation_extraction.trainer import train
from experiments.runs import say, write_json
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
    """Of training."""


def carry_out(run: Run, setting: Setting, corpus: Corpus, out: Path) -> Result:
    """Trains the run's model and measures it; out has vocabulary and pre-trained encoder."""
    arm = arm_named(run.arm)
    if arm.encoder == "linear":
        return _linear(run, setting.size, corpus)
    size = setting.size
    languages = languages_of(one for bag in corpus.train for one in bag.instances)
    if setting.encoder is not None:
        tokenizer = check_folder(Path(setting.encoder), size).tokenizer
    else:
        tokenizer = vocabulary(corpus, size, out)
    marks = marks_of(tokenizer, "the vocabulary")
    encoder = _encoder(arm, setting, tokenizer, out, run.seed)
    network = network_of(arm, encoder, corpus.relations, max(1, len(languages)), run.seed)
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
    layout = layout_of(arm)

    def read(bags: Sequence[Bag]) -> Bags:
        return Bags(bags, corpus.relations, tokenizer, marks, size, languages)

    say(f"{run.name}: {len(corpus.train):,} bags to train on")
    trained = train(network, layout, read(corpus.train), read(corpus.val), corpus.relations, run.seed)
    figures, curve = measured(lambda bags: trained.scored(read(bags)), corpus.test)
    return Result(run, figures, curve, trained.epochs, trained.best, count, trained.seconds)


def _encoder(arm: Arm, setting: Setting, tokenizer, out: Path, seed: int):
    if setting.encoder is not None:
        return from_folder(Path(setting.encoder), setting.size)
    if arm.encoder == "scratch" or not setting.size.mlm_steps:
        return from_scratch(setting.size, tokenizer, seed)
    return from_folder(out / "mlm", setting.size)


def _linear(run: Run, size: Size, corpus: Corpus) -> Result:
    options = (size.linear_penalties, size.linear_least, size.linear_steps)
    model = linear.train(corpus.train, corpus.relations, corpus.val, *options)
    figures, curve = measured(model.scored, corpus.test)
    return Result(run, figures, curve, (), 0, model.weights.size, 0.0)


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


def main() -> None:
    """Arguments: the study's folder and "pretrain"; or the folder, an arm, a seed and where the result goes."""
    out, what, *rest = sys.argv[1:]
    setting = read_setting(Path(out))
    corpus = read_dataset(setting.dataset)
    if what == "pretrain":
        pretrain(corpus, setting.size, Path(out), with_novels=setting.novels)
        return
    seed, path = rest
    write_json(asdict(carry_out(Run(what, int(seed)), setting, corpus, Path(out))), Path(path))


if __name__ == "__main__":
    run_command(main)
