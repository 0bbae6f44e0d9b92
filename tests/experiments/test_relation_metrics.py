"""Metrics of ranked facts against hand-computed cases and against loops over ranks."""

from pathlib import Path

import numpy as np
import pytest

from experiments.relation_extraction.metrics import (
    Ranking,
    Scored,
    area,
    bootstrap,
    bootstrap_difference,
    by_group,
    curve_of,
    macro_f1,
    micro_f1,
    precision_at,
    precision_at_recall,
)
from experiments.relation_extraction.pictures import draw_curves

# Three bags, NA first. Ranked: .9 hit, .8 miss, .7 hit, .6 miss, .5 miss, .4 hit; NA's scores do not matter.
BY_HAND = Scored(
    np.array([[0.99, 0.9, 0.8], [0.1, 0.7, 0.6], [0.95, 0.5, 0.4]]),
    np.array([[0, 1, 0], [0, 1, 0], [1, 0, 1]], bool),
    (1, 2),
)


def random_scored(seed: int, bags: int = 30, relations: int = 5) -> Scored:
    rng = np.random.default_rng(seed)
    labels = rng.random((bags, relations)) < 0.2
    labels[0, 1] = True
    return Scored(rng.normal(size=labels.shape) + labels, labels, (0, 1, 3, 4))


def loops(scored: Scored) -> tuple[list[float], list[float]]:
    """Precision and recall at every rank, as OpenNRE counts them."""
    facts = [(scored.scores[b, r], scored.labels[b, r]) for b in range(len(scored)) for r in scored.positive]
    facts.sort(key=lambda fact: -fact[0])
    total, hits, precision, recall = sum(hit for _, hit in facts), 0, [], []
    for rank, (_, hit) in enumerate(facts, start=1):
        hits += hit
        precision.append(hits / rank)
        recall.append(hits / total)
    return precision, recall


def test_a_case_by_hand() -> None:
    curve = curve_of(BY_HAND)
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3, 1 / 2, 2 / 5, 1 / 2])
    np.testing.assert_allclose(curve.recall, [1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 1])
    # Steps of recall: a third with precisions 1/2 and 2/3, a third with 2/5 and 1/2.
    assert area(curve) == pytest.approx((1 / 2 + 2 / 3) / 6 + (2 / 5 + 1 / 2) / 6)
    assert micro_f1(curve) == pytest.approx(2 * 2 / (3 + 3))
    # At the threshold .7 relation 1 has both of its facts, relation 2 one wrong and none of its own.
    assert macro_f1(BY_HAND) == pytest.approx((1 + 0) / 2)
    assert macro_f1(BY_HAND, 0.4) == pytest.approx((2 * 2 / (3 + 2) + 2 * 1 / (3 + 1)) / 2)
    assert precision_at(curve, (1, 2, 3)) == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    assert precision_at_recall(curve, 1 / 3) == 1 and precision_at_recall(curve, 0.5) == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_and_its_figures_are_those_of_a_loop_over_ranks(seed: int) -> None:
    scored = random_scored(seed)
    curve, (precision, recall) = curve_of(scored), loops(scored)
    np.testing.assert_allclose(curve.precision, precision)
    np.testing.assert_allclose(curve.recall, recall)
    trapezoids = sum((recall[i] - recall[i - 1]) * (precision[i] + precision[i - 1]) / 2 for i in range(1, len(recall)))
    assert area(curve) == pytest.approx(trapezoids)
    assert micro_f1(curve) == pytest.approx(max(2 * p * r / (p + r) if p + r else 0 for p, r in zip(precision, recall)))
    threshold, f1 = curve.thresholds[curve.f1.argmax()], []
    for column in scored.positive:
        said = [score >= threshold for score in scored.scores[:, column]]
        hits = sum(a and b for a, b in zip(said, scored.labels[:, column]))
        found, facts = sum(said), scored.labels[:, column].sum()
        f1.append(2 * hits / (found + facts) if found + facts else 0)
    assert macro_f1(scored) == pytest.approx(sum(f1) / len(f1))


def test_equal_scores_count_the_same_in_every_order() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((20, 3)) < 0.3
    scored = Scored(np.round(rng.random((20, 3)), 1), labels, (0, 1, 2))
    shuffled = scored.where(rng.permutation(20))
    for statistic in (area, micro_f1, lambda curve: precision_at(curve, (7,))):
        assert statistic(curve_of(shuffled)) == pytest.approx(statistic(curve_of(scored)))
    # One score for all facts and a lower one for all else is a perfect model, but for the first of G facts.
    perfect = Scored(labels.astype(float), labels, (0, 1, 2))
    assert area(curve_of(perfect)) == pytest.approx(1 - 1 / labels.sum())
    assert precision_at(curve_of(Scored(np.zeros((20, 3)), labels, (0, 1, 2))), (10,)) == pytest.approx(labels.mean())


def test_weights_are_repeated_bags() -> None:
    scored, weights = random_scored(7, bags=6), np.array([2, 0, 1, 3, 0, 1])
    weighted = Ranking(scored).curve(weights)
    repeated = curve_of(scored.where(np.repeat(np.arange(6), weights)))
    for name in ("taken", "hits", "thresholds", "total"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name))


def test_the_interval_covers_the_value_and_narrows_with_more_bags() -> None:
    few, many = (bootstrap(random_scored(1, bags), samples=100) for bags in (30, 600))
    assert few.low < few.value < few.high and many.low < many.value < many.high
    assert many.high - many.low < (few.high - few.low) / 2
    assert bootstrap(random_scored(1), samples=20) == bootstrap(random_scored(1), samples=20)


def test_a_paired_difference_of_a_model_with_itself_is_zero_and_other_bags_are_refused() -> None:
    scored = random_scored(2)
    same = bootstrap_difference(scored, scored, samples=20)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    better = Scored(scored.scores + 3 * scored.labels, scored.labels, scored.positive)
    assert bootstrap_difference(better, scored, samples=50).low > 0
    with pytest.raises(ValueError, match="same bags"):
        bootstrap_difference(scored, random_scored(3))


def test_groups_are_scored_apart_and_those_without_a_fact_are_left_out() -> None:
    groups = by_group(BY_HAND, ["a", "b", "a"])
    assert {name: len(part) for name, part in groups.items()} == {"a": 2, "b": 1}
    assert micro_f1(curve_of(groups["b"])) == 1
    empty = Scored(BY_HAND.scores, np.eye(3, dtype=bool)[[0, 0, 1]], (1, 2))
    assert list(by_group(empty, ["a", "a", "b"])) == ["b"]


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="no bag has a fact"):
        curve_of(Scored(np.zeros((2, 2)), np.array([[1, 0], [1, 0]], bool), (1,)))
    with pytest.raises(ValueError, match="6 candidates have no rank 300"):
        precision_at(curve_of(BY_HAND))
    with pytest.raises(ValueError, match="finite"):
        Scored(np.array([[np.nan]]), np.array([[True]]), (0,))


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    draw_curves({"a": curve_of(BY_HAND), "b": curve_of(random_scored(0))}, tmp_path / "curves.png", "title")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
