"""python -m experiments.relation_extraction.linear: a linear bag-of-words model, the baseline that costs a minute.

One logistic regression for each relation (`logistic.py`) on the words of a bag (`features.py`), fitted to multi-hot
labels as PARE is, so that scores of relations can be compared. The penalty is the one with the best AUC on val.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from experiments.relation_extraction.bags import Bag, language_names, multi_hot, size_names
from experiments.relation_extraction.corpus import default_folders, read_corpus
from experiments.relation_extraction.features import Rows, bag_features, sparse, vocabulary
from experiments.relation_extraction.logistic import fit
from experiments.relation_extraction.metrics import (
    STATISTICS,
    Scored,
    area,
    bootstrap,
    by_group,
    curve_of,
    macro_f1,
    precision_at,
)
from experiments.relation_extraction.pictures import draw_curves
from experiments.relation_extraction.reader import Relations
from zoo.command_line import parse_command
from zoo.errors import run_command

PENALTIES = (0.1, 0.3)
"""Tried on val."""
LEAST = 5
"""Bags that a feature must occur in: set so that IndoRE's matrix of weights stays small, not chosen on val."""
STEPS = 40
"""Of L-BFGS: set for the time it takes, not chosen on val."""


@dataclass(frozen=True, eq=False)
class LinearModel:
    """A fitted model."""

    relations: Relations
    """Classes of its scores."""
    columns: Mapping[str, int]
    """Features it knows."""
    weights: Float[np.ndarray, "features relations"]
    """Row 0: biases."""

    def rows(self, bags: Sequence[Bag]) -> Rows:
        """The bags as the model reads them."""
        return sparse(list(bag_features(bags)), self.columns)

    def scored(self, bags: Sequence[Bag]) -> Scored:
        """The bags with a score (log-odds) of every relation."""
        scores = self.rows(bags).times(self.weights)
        return Scored(scores, multi_hot(bags, self.relations), self.relations.positive)


def train(
    bags: Sequence[Bag],
    relations: Relations,
    val: Sequence[Bag] = (),
    penalties: Sequence[float] = PENALTIES,
    least: int = LEAST,
    steps: int = STEPS,
    least_of_mentions: int | None = None,
) -> LinearModel:
    """The model fitted to the bags, with the penalty that has the largest AUC on `val`; ValueError for several
    penalties without `val`. `least`, `least_of_mentions`: as for `features.vocabulary`."""
    if len(penalties) > 1 and not val:
        raise ValueError("a choice of penalties needs bags to choose by")
    features = list(bag_features(bags))
    columns = vocabulary(features, least, least_of_mentions)
    rows, labels = sparse(features, columns), multi_hot(bags, relations)
    del features
    models = [LinearModel(relations, columns, fit(rows, labels, penalty, steps)) for penalty in penalties]
    return models[0] if len(models) == 1 else max(models, key=lambda model: area(curve_of(model.scored(val))))


def table(scored: Scored, groups: Mapping[str, Sequence[str]]) -> str:
    """Markdown: the figures of all bags and of every group, intervals over bags."""
    names = list(STATISTICS)
    lines = [f"| bags | number | {' | '.join(names)} | macro F1 | P@M |", "|---|---|" + "---|" * (len(names) + 2)]
    parts = {"all": scored}
    for kind, of_bags in groups.items():
        parts |= {f"{kind} {name}": part for name, part in by_group(scored, of_bags).items()}
    for name, part in parts.items():
        curve = curve_of(part)
        cells = [str(bootstrap(part))] + [f"{STATISTICS[key](curve):.3f}" for key in names if key != "AUC"]
        ranked = f"{precision_at(curve):.3f}" if curve.taken[-1] >= 300 else "-"
        lines.append(f"| {name} | {len(part)} | {' | '.join(cells)} | {macro_f1(part):.3f} | {ranked} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Linear:
    """Trains the linear model on every corpus and prints its figures on the test bags."""

    data: tuple[Path, ...] = ()
    """Folders of corpora (rel2id.json; train, val, test as .jsonl); default those of the folder `shared`."""
    picture: Path | None = None
    """Also writes the precision-recall curves to this PNG file."""


def main() -> None:
    settings = parse_command(Linear, "experiments.relation_extraction.linear")
    curves = {}
    for folder in settings.data or default_folders():
        corpus = read_corpus(folder)
        scored = train(corpus.train, corpus.relations, corpus.val).scored(corpus.test)
        groups = {"sentences:": size_names(corpus.test)}
        if any(language_names(corpus.test)):
            groups["language:"] = language_names(corpus.test)
        print(f"\n{corpus.name}, {len(corpus.train):,} bags to train on\n\n{table(scored, groups)}", flush=True)
        curves[corpus.name] = curve_of(scored)
    if settings.picture:
        draw_curves(curves, settings.picture, "linear model of words")


if __name__ == "__main__":
    run_command(main)
