"""How well scores rank facts (pair, relation), as the papers on distant supervision measure it; numpy only.

All pairs times all relations but `NA` are ranked by their score. With h(k) true facts among the first k and G in all,

    precision(k) = h(k) / k,    recall(k) = h(k) / G,    F1(k) = 2 h(k) / (k + G)

`NA` is never ranked; that a bag has no relation shows in the scores of all others. (OpenNRE's evaluation, which PARE
and DiS-ReX use.) Candidates with equal scores form one point of the curve, so that no figure depends on their order;
where all scores differ this is OpenNRE's curve.

A set of bags may be weighted by how often each occurs in it: so are bootstrap samples drawn, without sorting anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class Scored:
    """Bags that a model has scored."""

    scores: Float[np.ndarray, "bags relations"]
    """Of every relation, `NA` included where there is one; larger = surer. Only their order matters."""
    labels: Bool[np.ndarray, "bags relations"]
    """Whether the corpus has the fact."""
    positive: tuple[int, ...]
    """Columns that are ranked: all but `NA`."""

    def __post_init__(self):
        if self.scores.shape != self.labels.shape:
            raise ValueError(f"scores {self.scores.shape} and labels {self.labels.shape} differ in shape")
        if not np.isfinite(self.scores).all():
            raise ValueError("scores must be finite")

    def where(self, chosen: Bool[np.ndarray, "bags"] | Int[np.ndarray, "chosen"]) -> "Scored":
        """Some of the bags."""
        return replace(self, scores=self.scores[chosen], labels=self.labels[chosen])

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall at every different score, from the highest down."""

    taken: Float[np.ndarray, "points"]
    """Candidates with at least this score, k."""
    hits: Float[np.ndarray, "points"]
    """True facts among them, h."""
    thresholds: Float[np.ndarray, "points"]
    """The scores, descending."""
    total: float
    """Facts there are, G."""

    @property
    def precision(self) -> Float[np.ndarray, "points"]:
        """h / k."""
        return self.hits / self.taken

    @property
    def recall(self) -> Float[np.ndarray, "points"]:
        """h / G."""
        return self.hits / self.total

    @property
    def f1(self) -> Float[np.ndarray, "points"]:
        """2 h / (k + G)."""
        return 2 * self.hits / (self.taken + self.total)


class Ranking:
    """The candidates of scored bags, sorted once; curves of the bags, and of samples of them."""

    def __init__(self, scored: Scored):
        columns = list(scored.positive)
        scores, hits = scored.scores[:, columns].ravel(), scored.labels[:, columns].ravel()
        if not hits.any():
            raise ValueError("no bag has a fact: recall is not defined")
        order = np.argsort(-scores, kind="stable")
        self._bag = np.repeat(np.arange(len(scored)), len(columns))[order]
        self._hit, ordered = hits[order].astype(float), scores[order]
        self._last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        self._thresholds = ordered[self._last]

    def curve(self, weights: Float[np.ndarray, "bags"] | Int[np.ndarray, "bags"] | None = None) -> Curve:
        """Of the bags, each taken as often as `weights` says (default once). ValueError if no fact is left."""
        weight = np.ones(len(self._bag)) if weights is None else weights[self._bag].astype(float)
        taken, hits = np.cumsum(weight)[self._last], np.cumsum(weight * self._hit)[self._last]
        if not hits[-1]:
            raise ValueError("no bag has a fact: recall is not defined")
        new = np.diff(taken, prepend=0) > 0
        return Curve(taken[new], hits[new], self._thresholds[new], float(hits[-1]))


def curve_of(scored: Scored) -> Curve:
    """The precision-recall curve. ValueError if there is no fact."""
    return Ranking(scored).curve()


def area(curve: Curve) -> float:
    """Area under precision over recall by the trapezoid rule, from the first candidate to the last.

    OpenNRE takes sklearn.metrics.auc of the curve over ranks, which is this; it is not the average precision. Hits are
    spread evenly over the candidates of the first point, so that a model which gives one score to many loses nothing.
    """
    first = curve.precision[0]
    steps = np.diff(curve.recall)
    before = first * (curve.recall[0] - first / curve.total)
    return float(before + np.sum(steps * (curve.precision[1:] + curve.precision[:-1]) / 2))


def micro_f1(curve: Curve) -> float:
    """The largest F1 on the curve."""
    return float(curve.f1.max())


def macro_f1(scored: Scored, threshold: float | None = None) -> float:
    """Mean over the relations but `NA` of F1 = 2 h / (k + G) at one threshold for all.

    A relation without a fact and without a prediction counts 0, as in OpenNRE.

    Args:
      threshold: what has at least this score is predicted; default the one of the micro F1.
    """
    if threshold is None:
        curve = curve_of(scored)
        threshold = float(curve.thresholds[curve.f1.argmax()])
    columns = list(scored.positive)
    predicted, labels = scored.scores[:, columns] >= threshold, scored.labels[:, columns]
    hits, both = (predicted & labels).sum(0), predicted.sum(0) + labels.sum(0)
    return float(np.mean(2 * hits / np.maximum(both, 1)))


def precision_at(curve: Curve, ranks: Sequence[int] = (100, 200, 300)) -> float:
    """Mean of the precisions of the first M candidates (P@M of the papers: the mean of 100, 200 and 300).

    Of candidates with equal scores around rank M, as many are hits as can be expected.

    ValueError if there are fewer than M candidates.
    """
    if max(ranks) > curve.taken[-1]:
        raise ValueError(f"{curve.taken[-1]:.0f} candidates have no rank {max(ranks)}")
    hits = np.interp(ranks, np.append(0, curve.taken), np.append(0, curve.hits))
    return float(np.mean(hits / np.asarray(ranks)))


def precision_at_recall(curve: Curve, recall: float) -> float:
    """Precision at the first point whose recall is at least this (P@10%R and P@30%R of DiS-ReX)."""
    if not 0 < recall <= 1:
        raise ValueError(f"recall must be in (0, 1], got {recall}")
    # Of 3 facts, three tenths are one, though 0.1 * 3 > 0.3 in floating point.
    return float(curve.precision[np.argmax(curve.hits >= recall * curve.total - 1e-9)])


STATISTICS: dict[str, Callable[[Curve], float]] = {
    "AUC": area,
    "micro F1": micro_f1,
    "P@10%R": lambda curve: precision_at_recall(curve, 0.1),
    "P@30%R": lambda curve: precision_at_recall(curve, 0.3),
}
"""Of a curve, by name."""


@dataclass(frozen=True)
class Estimate:
    """A statistic of the bags, and where it lies in 95 % of the bootstrap samples."""

    value: float
    """Of the bags as they are."""
    low: float
    """2.5 % quantile."""
    high: float
    """97.5 % quantile."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    scored: Scored, statistic: Callable[[Curve], float] = area, samples: int = 1000, seed: int = 0
) -> Estimate:
    """The statistic with its 95 % percentile interval over samples of as many bags, drawn with replacement.

    Bags and not candidates are drawn: the relations of a pair are not independent. The interval is about the bags of
    this test set under one trained model; how much training varies is another question (seeds).
    """
    ranking, rng = Ranking(scored), np.random.default_rng(seed)
    found = [statistic(ranking.curve(drawn)) for drawn in _samples(scored, samples, rng)]
    return Estimate(statistic(ranking.curve()), *np.quantile(found, [0.025, 0.975]).tolist())


def bootstrap_difference(
    first: Scored, second: Scored, statistic: Callable[[Curve], float] = area, samples: int = 1000, seed: int = 0
) -> Estimate:
    """statistic(first) - statistic(second) of the same bags in the same order, both drawn together.

    ValueError if they have not the same facts.
    """
    if not np.array_equal(first.labels, second.labels):
        raise ValueError("a paired difference needs the same bags in the same order")
    one, two, rng = Ranking(first), Ranking(second), np.random.default_rng(seed)
    found = [statistic(one.curve(w)) - statistic(two.curve(w)) for w in _samples(first, samples, rng)]
    return Estimate(statistic(one.curve()) - statistic(two.curve()), *np.quantile(found, [0.025, 0.975]).tolist())


def _samples(scored: Scored, count: int, rng: np.random.Generator):
    """How often each bag is drawn, for every sample; samples without a fact are drawn again."""
    has_fact = scored.labels[:, list(scored.positive)].any(1)
    for _ in range(count):
        while True:
            drawn = np.bincount(rng.integers(len(scored), size=len(scored)), minlength=len(scored))
            if drawn[has_fact].any():
                yield drawn
                break


def by_group(scored: Scored, groups: Sequence[str]) -> dict[str, Scored]:
    """The bags of every group (a language, a size), in alphabetical order; groups without a fact are left out."""
    names = np.asarray(groups)
    parts = {str(name): scored.where(names == name) for name in np.unique(names)}
    return {name: part for name, part in parts.items() if part.labels[:, list(scored.positive)].any()}
