"""Local and global layers: copies are where the loss is measured, and all arms differ in their pattern only."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from flax import nnx

from experiments.likelihood_vs_position.rows import Copies
from experiments.likelihood_vs_position.scoring import TokenScores
from experiments.likelihood_vs_position.texts import Texts
from experiments.likelihood_vs_position.training import Stage
from experiments.likelihood_vs_position.worker import write_result
from experiments.local_global import arms, copying, costs, findings, pictures, report, worker
from experiments.local_global.arms import ALL_GLOBAL, ALL_LOCAL, INTERLEAVED, PATTERNS, Run
from experiments.local_global.copying import FIRST_COUNTED, Copying
from experiments.local_global.worker import Result
from zoo.models import build

TINY = replace(
    arms.QUICK,
    embed_dim=16,
    hidden_dim=32,
    num_heads=1,
    sliding_window=4,
    vocab_size=64,
    stages=(Stage(32, 4, 20, Copies(spans=1, span=8, gap=8)),),
    rows=4,
    rows_at_once=4,
    windows=(4, 2),
)
DOCUMENT = np.random.default_rng(0).integers(3, 64, 2000).astype(np.int32)


def result(arm: str, seed: int, text: float, recall: float, half: float = 0.0) -> Result:
    """An invented run; `half`: nats that half of the window costs."""
    whole = Copying(text, 1.0, 3.0, recall, 0.3, (3.0,) * 4 + (1.0,) * 8)
    windows = {"8": whole, "4": replace(whole, text=text + half)} if arm != ALL_GLOBAL else {"8": whole}
    return Result(Run(arm, seed), windows, 32, ((20, 3.0),), (0.1,), 1000, 1e6)


def results(*, recall: float = 0.9, text: float = 3.0, local: float = 0.3, half: float = 0.0, step: float = 0.5):
    """Three seeds of three arms; what is given is of the 1:1 model and of the all-local one."""
    runs = []
    for seed, noise in enumerate((0.0, 0.001, -0.001)):
        runs.append(result(ALL_GLOBAL, seed, 3.0 + 2 * noise, 0.9))
        runs.append(result(INTERLEAVED, seed, text + noise, recall + noise, half))
        runs.append(result(ALL_LOCAL, seed, 3.1 + noise, local + noise))
    patterns = (ALL_GLOBAL, INTERLEAVED, ALL_LOCAL)
    caches = tuple(costs.CacheSize(arm, 1024, size, size, 10) for arm, size in zip(patterns, (1000, 504, 8)))
    seconds = {arm: (time, time * 1.1) for arm, time in zip(patterns, (1.0, step, step))}
    found = costs.Costs(caches, costs.Times(seconds, seconds))
    return report.Results("2026-11-26", "command", {"processor": "one"}, "text", arms.QUICK, runs, found)


@pytest.mark.parametrize("workload", [arms.FULL, arms.QUICK])
def test_all_arms_have_the_same_parameters_and_copies_lie_beyond_the_local_layers(workload):
    models = {arm: arms.model_of(arm, workload) for arm in arms.arms_of(workload)}
    assert len({model.num_parameters() for model in models.values()}) == 1
    assert workload.copies.gap >= workload.reach and workload.windows[0] == workload.sliding_window
    assert [stage.copies is not None for stage in workload.stages] == [True] * len(workload.stages)
    assert len({run.name for run in arms.runs_of(workload)}) == len(arms.runs_of(workload))


def test_the_full_run_has_all_four_patterns():
    layers = [[arms.model_of(arm, arms.FULL).window(i) is None for i in range(6)] for arm in arms.arms_of(arms.FULL)]
    assert [sum(each) for each in layers] == [6, 3, 1, 0] and list(PATTERNS) == arms.arms_of(arms.FULL)
    assert len(arms.runs_of(arms.FULL)) == 12


def test_copies_are_where_the_loss_is_measured():
    copies = Copies(spans=2, span=8, gap=10)
    test = copying.make_test((DOCUMENT,), 60, 5, copies, bos_id=2)
    tokens = test.rows[:, 1:]
    rows, columns = np.nonzero(test.offset >= 0)
    np.testing.assert_array_equal(tokens[rows, columns], tokens[rows, test.original[rows, columns]])
    assert test.counted.sum() == test.originals.sum() == 5 * 2 * (8 - FIRST_COUNTED)
    assert not (test.originals & ~test.text).any() and (test.text.sum(1) == 44).all()
    # What is right and costs nothing in copies only is found there, and nowhere else.
    scores = TokenScores(np.where(test.counted, 0.0, 5.0), test.counted)
    found = copying.copying_of(scores, test)
    assert (found.copies, found.originals, found.text) == (0.0, 5.0, 5.0)
    assert (found.recall, found.guessed) == (1.0, 0.0)
    assert found.by_offset == (5.0,) * FIRST_COUNTED + (0.0,) * (8 - FIRST_COUNTED)
    np.testing.assert_array_equal(test.rows, copying.make_test((DOCUMENT,), 60, 5, copies, bos_id=2).rows)


def test_another_window_is_the_model_with_that_window():
    config = arms.model_of(INTERLEAVED, TINY)
    model, rows = build(config, rngs=nnx.Rngs(0)), DOCUMENT[: 2 * 25].reshape(2, 25)
    narrow = build(replace(config, sliding_window=2), rngs=nnx.Rngs(0))
    found = copying.score_rows(copying.with_window(model, 2), rows, 2)
    np.testing.assert_array_equal(found.nll, copying.score_rows(narrow, rows, 2).nll)
    # Up to the narrow window there is no difference, after it there is.
    wide = copying.score_rows(model, rows, 2)
    np.testing.assert_allclose(found.nll[:, :2], wide.nll[:, :2], atol=1e-5)
    assert np.abs(found.nll - wide.nll)[:, 3:].max() > 1e-4


@pytest.mark.parametrize("arm", PATTERNS)
def test_the_formula_is_what_the_cache_allocates(arm):
    workload = replace(TINY, num_layers=6)
    for length in (3, 4, 50):
        found = costs.cache_size(arm, workload, length)
        assert found.formula == found.arrays > 0
    local = sum(kind == "local" for kind in PATTERNS[arm] * 6) / len(PATTERNS[arm])
    assert found.arrays == (local * 4 + (6 - local) * 50) * 2 * 32 * 4


def test_a_round_has_all_arms_and_the_first_one_is_left_out():
    order: list[str] = []

    def work(name):
        return lambda: order.append(name) or float(len(order))

    assert costs.in_turn({"a": work("a"), "b": work("b")}, 2) == {"a": (3.0, 5.0), "b": (4.0, 6.0)}
    assert order == ["a", "b"] * 3


def test_the_aims_tell_models_that_copy_from_those_that_do_not():
    def reached(**changes):
        made = results(**changes)
        return [aim.reached for aim in findings.aims(made.runs, made.costs)]

    assert reached() == [True] * 9
    assert reached(recall=0.8) == [False] + [True] * 8
    assert reached(text=3.05) == [True, False] + [True] * 7
    assert reached(recall=0.3) == [False, True, False] + [True] * 6
    assert reached(local=0.5) == [True] * 3 + [False] + [True] * 5
    assert reached(step=1.2) == [True] * 6 + [False] * 2 + [True]
    assert reached(half=0.1) == [True] * 8 + [False]


def test_caches_that_are_not_the_formulas_fall_short():
    made = results()
    wrong = replace(made.costs, caches=tuple(replace(each, arrays=each.arrays + 1) for each in made.costs.caches))
    assert [aim.reached for aim in findings.aims(made.runs, wrong)] == [True] * 4 + [False] + [True] * 4


def test_the_report_says_what_falls_short_and_the_picture_is_drawn(tmp_path):
    assert "Nothing of the aims" in report.write_report(results(), "a.png")
    short = results(half=0.1)
    text = report.write_report(short, "a.png")
    assert "* relative perplexity of text, 1:1, window / 2 at inference: 1.1052 ± 0.0000" in text
    assert "| 1:1 | 3 | 3.0000 ± 0.0025 | 0.0000 ± 0.0025 |" in text and "![a.png](a.png)" in text
    json.dumps(asdict(short))
    pictures.draw(short.runs, short.costs, arms.QUICK, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_tiny_run_learns_and_its_result_comes_back_from_its_file(tmp_path):
    texts = Texts(np.tile(DOCUMENT[:8], 100), (DOCUMENT,), 2, "eight tokens, over and over")
    found = worker.carry_out(Run(INTERLEAVED, 0), TINY, texts)
    assert list(found.windows) == ["4", "2"] and found.rows == 4 and len(found.copying.by_offset) == 8
    assert found.training[0][1] < np.log(64)
    write_result(found, tmp_path / "run.json")
    assert worker.read_result(tmp_path / "run.json") == found


def test_costs_come_back_from_their_file(tmp_path):
    write_result(results().costs, tmp_path / "costs.json")
    assert costs.read_costs(tmp_path / "costs.json") == results().costs
