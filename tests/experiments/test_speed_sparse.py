"""The sparse contest compares what it says: equal active FLOPs, the same function, ratios within rounds."""

import json
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.speed import contest as speed_contest
from experiments.speed.contest import Contest, Measurement
from experiments.speed.sparse import contest, hardware, report, workload
from experiments.speed.sparse.contest import CAPACITY, DENSE, DROPLESS
from zoo.models import preset
from zoo.training.parameters import flatten_with_names

EAGER, GROUPED, COMPILED = (c.name for c in contest.CONTESTANTS[3:])
TINY = hardware.tiny_workload()


def make_results(dropless: float = 1.0) -> report.SparseResults:
    """Results of two sizes with invented times, as a run would collect them."""
    sizes = [make_size(dropless, size) for size in (workload.FULL, workload.SMALL)]
    return report.SparseResults("2026-11-26", "python -m experiments.speed", {"processor": "one"}, [], sizes)


def make_size(dropless: float = 1.0, size: workload.SparseWorkload = workload.FULL) -> report.SizeResults:
    seconds = {
        DENSE: [0.8, 0.9, 0.8],
        DROPLESS: [dropless, dropless, 2 * dropless],
        CAPACITY: [1.0, 1.1, 1.0],
        EAGER: [3.0, 3.0, 3.0],
        GROUPED: [2.5, 2.5, 2.6],
        COMPILED: [1.9, 1.9, 2.0],
    }
    fact = {"parameters": 4e7, "active_parameters": 2e7, "flops_per_token": 5e7}
    found = Contest(
        measurements={"train": Measurement("training step, B = 1, T = 16", 16, seconds, seconds)},
        peak_bytes=dict.fromkeys(seconds, 10**9),
        matmul_rates=dict.fromkeys(seconds, 2e11),
        agreement={name: {"losses": 1e-6} for name in (DROPLESS, EAGER, GROUPED, COMPILED)},
    )
    return report.SizeResults(
        workload=size,
        facts={"dense": fact, "dropless": fact | {"parameters": 9e7}},
        contest=found,
        routing={DROPLESS: {"largest_load": 1.5, "dropped": 0.0}, CAPACITY: {"largest_load": 1.6, "dropped": 0.1}},
        aims=contest.sparse_aims(found),
    )


def test_the_small_size_has_the_shapes_of_gemini_tiny_pro():
    sparse, tiny = workload.config_of("dropless", workload.SMALL), preset("gemini-tiny-pro")
    for name in ("vocab_size", "embed_dim", "num_layers", "num_heads", "head_dim"):
        assert getattr(sparse, name) == getattr(tiny, name)
    for name in ("num_experts", "experts_per_token", "hidden_dim"):
        assert getattr(sparse.experts, name) == getattr(tiny.experts, name)


@pytest.mark.parametrize("w", [workload.FULL, workload.SMALL], ids=["full", "small"])
def test_the_dense_model_has_the_active_flops_of_the_sparse_one_but_for_the_router(w):
    dense, sparse = (workload.config_of(kind, w) for kind in ("dense", "dropless"))
    router = w.num_layers * w.embed_dim * w.num_experts
    assert sparse.flops_per_token(512) - dense.flops_per_token(512) == 2 * router
    assert sparse.num_active_parameters() - dense.num_parameters() == router
    assert router < 4e-3 * dense.num_parameters()


def test_only_the_feed_forward_differs():
    def shapes(kind):
        params = nnx.split(nnx.eval_shape(lambda: workload.model_of(kind, TINY)), nnx.Param)[1]
        return {name: leaf.shape for name, leaf in flatten_with_names(params).items()}

    dense, sparse = shapes("dense"), shapes("dropless")
    assert sum(np.prod(s) for s in dense.values()) == workload.config_of("dense", TINY).num_parameters()
    assert sum(np.prod(s) for s in sparse.values()) == workload.config_of("dropless", TINY).num_parameters()
    rest = [{name: s for name, s in found.items() if "/mlp/" not in name} for found in (dense, sparse)]
    assert rest[0] == rest[1] and len(rest[0]) < len(dense)
    assert shapes("capacity") == sparse


def test_the_interval_holds_the_median_as_often_as_it_says():
    assert contest.median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    values = [float(n) for n in range(1, 13)]
    assert contest.median_interval(values) == (3.0, 10.0)  # 2 P(Binomial(12, 1/2) < 3) = 0.039
    drawn = np.random.default_rng(0).exponential(size=(2000, 12))
    bounds = [contest.median_interval(list(row)) for row in drawn]
    assert 0.95 <= np.mean([low <= np.log(2) <= high for low, high in bounds]) <= 0.98


def test_aims_are_judged_within_rounds_and_against_the_faster_peer():
    dense, transformers, compiled = make_size().aims
    assert dense.reached and dense.measured.startswith("0.80x")
    assert GROUPED in transformers.what and transformers.reached and transformers.measured.startswith("2.50x")
    assert COMPILED in compiled.what and not compiled.reached
    assert not any(aim.reached for aim in make_size(1.3).aims)


def test_the_ceiling_is_the_step_at_the_highest_rate_of_a_product_by_anybody():
    size = make_size()
    beyond = f"2x is more than arithmetic allows against {EAGER} (1.95x), {GROUPED} (1.63x), {COMPILED} (1.24x)"
    assert beyond in report.write_sparse_report(replace(make_results(), sizes=[size]), "a.png")
    size.contest.matmul_rates[EAGER] *= 2
    least = 3 * 5e7 * 4 * 512 / 4e11
    assert size.least_seconds == pytest.approx(least) and size.ceiling(GROUPED) == pytest.approx(2.5 / least)
    assert "arithmetic allows" not in report.write_sparse_report(replace(make_results(), sizes=[size]), "a.png")


def test_the_report_names_what_falls_short():
    text = report.write_sparse_report(make_results(1.3), "a.png")
    assert "the dense model of equal active FLOPs: 0.62x" in text and "aim 0.75x" in text
    assert "![a.png](a.png)" in text and "choices dropped" in text
    assert "## Mixtral 8x7B's widths" in text and "## The shapes of gemini-tiny-pro" in text
    assert "Nothing" in report.write_sparse_report(make_results(0.5), "a.png")
    json.dumps(asdict(make_results()))


class Fake:
    """A worker whose losses and times are given."""

    def __init__(self, losses, seconds):
        self.losses, self.seconds = losses, seconds

    def call(self, command, **_):
        timing = {"seconds": self.seconds, "processor_seconds": self.seconds}
        routing = {"largest_load": 1.0, "dropped": 0.0}
        answers = {"losses": self.losses, "train": timing, "peak_memory": 1, "matmul": 1.0, "routing": routing}
        return answers[command]


def test_a_peer_that_trains_another_function_is_refused_and_the_other_models_of_the_zoo_are_not():
    workers = {DENSE: Fake([7.0], 1.0), DROPLESS: Fake([5.0], 1.0), CAPACITY: Fake([6.0], 1.0)}
    wanted = replace(TINY, rounds=2)
    found, _ = contest.run_sparse_contest(workers | {EAGER: Fake([5.0001], 3.0)}, wanted, lambda _: None)
    assert found.measurements["train"].seconds[EAGER] == [3.0, 3.0]
    with pytest.raises(speed_contest.Disagreement, match="5.01"):
        contest.run_sparse_contest(workers | {EAGER: Fake([5.01], 3.0)}, wanted, lambda _: None)


def test_the_hardware_script_measures_every_pass_under_both_loads():
    product = hardware.Product(rows=40, inner=16, columns=24, groups=3)
    for load in ("balanced", "uneven"):
        assert hardware.group_sizes(product, load).sum() == 40
    assert hardware.group_sizes(product, "uneven")[0] > 20
    rates = {(r.pass_name, r.load): r for r in hardware.measure_products(product, 1)}
    assert len(rates) == 7
    forward = rates["forward", "uneven"]
    assert forward.error is not None and forward.error < 1e-2  # bfloat16
    assert forward.teraflops == pytest.approx(2 * 40 * 16 * 24 / forward.seconds / 1e12)


@pytest.mark.slow
def test_the_hardware_script_reports_the_mfu_of_a_step():
    step = hardware.measure_step(TINY, 1)
    assert set(step) == {"dense", "dropless"} and all(found["mfu"] > 0 for found in step.values())
    assert all(np.isfinite(found["loss"]) for found in step.values())


@pytest.mark.slow
def test_the_dense_model_is_a_sparse_one_whose_only_expert_it_is():
    one = replace(TINY, num_experts=1, experts_per_token=1)
    dense, sparse = workload.model_of("dense", one), workload.model_of("dropless", one)
    state = nnx.split(sparse, nnx.Param)[1]
    taken = flatten_with_names(state)
    graphdef, params = nnx.split(dense, nnx.Param)
    leaves = [taken[name].reshape(leaf.shape) for name, leaf in flatten_with_names(params).items()]
    dense = nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(params), leaves))
    tokens = one.tokens(1, 16, one.vocab_size)
    np.testing.assert_allclose(dense(tokens), sparse(tokens), atol=1e-5)


@pytest.mark.slow
def test_the_quick_run_measures_the_zoo_alone(repository: Path, tmp_path):
    command = [sys.executable, "-m", "experiments.speed", "--contest", "sparse", "--quick", "--rounds", "2"]
    wanted = ["--out", str(tmp_path), "--report", str(tmp_path / "report.md")]
    subprocess.run([*command, *wanted], cwd=repository, check=True, timeout=600)
    results = json.loads((tmp_path / "sparse.json").read_text())
    (size,) = results["sizes"]
    seconds = size["contest"]["measurements"]["train"]["seconds"]
    assert set(seconds) == {DENSE, DROPLESS, CAPACITY} and statistics.median(seconds[DROPLESS]) > 0
    assert size["routing"][DROPLESS]["dropped"] == 0
    assert (tmp_path / "report.png").exists() and "# Sparse" in (tmp_path / "report.md").read_text()
