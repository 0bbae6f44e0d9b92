"""The comparison of sparse and dense models says what its runs say, and its arms do equal arithmetic."""

import json
from dataclasses import asdict, replace

import pytest

from experiments.interval import interval
from experiments.sparse_vs_dense import arms, findings, report
from experiments.sparse_vs_dense.worker import Result, read_result, write_result


def result(arm: str, seed: int, loss: float, load=((0.125,) * 8,), rate=1e-2) -> Result:
    """An invented run whose held-out loss falls from 5 to `loss`."""
    return Result(
        run=arms.Run(arm, seed, rate, 100),
        validation=((50, 5.0), (100, loss)),
        bits_per_byte=loss / 2,
        training=((100, loss),),
        tokens_per_step=2048,
        tokens_per_second=1000.0,
        training_flops_per_token=1e7,
        parameters=10**6,
        active_parameters=10**6,
        load=() if arm == arms.DENSE else load,
        largest_load=() if arm == arms.DENSE else ((100, 1.0),),
        entropy=() if arm == arms.DENSE else ((100, 2.0),),
        dropped=0.0,
        router_logsumexp=0.0,
    )


def runs(*, sparse=(4.0, 4.01, 3.99), dense=(4.2, 4.21, 4.19)) -> list[Result]:
    """Three seeds of both."""
    return [result(arm, seed, loss) for arm, losses in ((arms.DENSE, dense), (arms.SPARSE, sparse))
            for seed, loss in enumerate(losses)]  # fmt: skip


@pytest.mark.parametrize("workload", [arms.FULL, arms.QUICK])
def test_all_arms_do_the_same_arithmetic_but_for_the_router(workload):
    flops = {arm: arms.model_of(arm, workload).flops_per_token(64) for arm in (arms.DENSE, *arms.CHANGES)}
    router = workload.num_layers * 2 * workload.embed_dim * 8
    assert {value - flops[arms.DENSE] for arm, value in flops.items() if arm != arms.DENSE} == {router}


def test_run_i_of_every_arm_reads_the_same_tokens_in_the_same_order():
    listed = arms.comparison(arms.FULL, {arms.DENSE: 1e-2, arms.SPARSE: 2e-2})
    assert len({run.name for run in listed}) == len(listed) == sum(count for _, count in arms.FULL.seeds)
    first = [arms.recipe_of(run, arms.FULL, (), None, "x") for run in listed if run.seed == 0]
    assert len({str(recipe.data) for recipe in first}) == 1 and len(first) == 5
    assert {recipe.optimizer.learning_rate for recipe in first} == {1e-2, 2e-2}


def test_the_interval_is_students():
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.half == pytest.approx(4.303 / 3**0.5)
    assert interval([1.0]).half == float("inf")


def test_intervals_that_touch_do_not_count_as_ahead():
    assert findings.aims(runs())[0].reached
    assert not findings.aims(runs(sparse=(4.0, 4.3, 4.1)))[0].reached


def test_an_expert_that_gets_too_much_is_found_out():
    uneven = [replace(r, load=((0.5, 0.5) + (0.0,) * 6,)) if r.load else r for r in runs()]
    assert findings.unevenness(uneven[-1]) == 4.0 and findings.idle_experts(uneven[-1]) == 6
    assert [aim.reached for aim in findings.aims(uneven)] == [True, True, False]


def test_the_best_learning_rate_of_each_arm_is_taken():
    tried = [result(arms.DENSE, 0, 4.0, rate=1e-3), result(arms.DENSE, 0, 3.0, rate=2e-3), result(arms.SPARSE, 0, 5.0)]
    assert findings.best_rates(tried) == {arms.DENSE: 2e-3, arms.SPARSE: 1e-2}


def test_the_step_at_which_a_loss_is_reached_lies_between_two_validations():
    assert findings.steps_to_reach(result(arms.DENSE, 0, 4.0), 4.5) == 75
    assert findings.steps_to_reach(result(arms.DENSE, 0, 4.0), 3.0) is None


def test_a_result_comes_back_from_its_file(tmp_path):
    write_result(result(arms.SPARSE, 1, 4.0), tmp_path / "run.json")
    assert read_result(tmp_path / "run.json") == result(arms.SPARSE, 1, 4.0)


def test_the_report_says_what_falls_short():
    made = report.Results("2026-11-25", "command", {"processor": "one"}, "text", arms.QUICK, [], runs())
    assert "Nothing of the aims" in report.write_report(made, [])
    short = replace(made, runs=runs(sparse=(4.5, 4.6, 4.4)))
    text = report.write_report(short, ["a.png"])
    assert "* held-out loss, sparse against dense at equal steps: 4.5000" in text and "![a.png](a.png)" in text
    assert "sparse minus dense, seed by seed: 0.3000" in text
    json.dumps(asdict(made))
