"""The arms of the Gemma 2 ablations are of equal size, logits are looked at before their caps, and verdicts follow from
intervals."""

import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.gemma2_ablations import findings, report, study, texts
from experiments.gemma2_ablations.arms import (
    ARMS,
    BASE,
    DEEP,
    FULL,
    GELU,
    NO_CAPS,
    QUICK,
    SAME_WIDTHS,
    SWEPT,
    WIDE,
    Run,
    Shape,
    model_of,
    optimizer_of,
    runs_of,
)
from experiments.gemma2_ablations.logits import largest_logits
from experiments.gemma2_ablations.training import Probe, finite, new_model, scaled_by, train
from experiments.gemma2_ablations.worker import Result, digest, read_result
from experiments.interval import Interval
from experiments.likelihood_vs_position.texts import Texts
from experiments.runs import write_json
from zoo.errors import UserError
from zoo.models.gemini import GeminiConfig, GeminiLayer
from zoo.nn import Execution, ExpertsConfig, PlainFeedForward
from zoo.training.optimizer import make_optimizer

SMALL = dict(vocab_size=32, embed_dim=8, num_layers=2, num_heads=2, head_dim=4, hidden_dim=12)


def result(arm: str, seed: int, loss: float | None, rate=0.01, logit: float | None = 10.0, **changes) -> Result:
    """An invented run: the frequencies of tokens give 6 nats, random weights 7."""
    windows = ((64, loss), (32, loss + 0.01), (16, loss + 0.1)) if arm == BASE and rate == 0.01 and loss else ()
    made = Result(
        run=Run(arm, rate, seed),
        made_with="x",
        text="y",
        parameters=10**6,
        tokens=1000,
        unigram_loss=6.0,
        initial_loss=7.0,
        held_out_loss=loss,
        training=((50, 5.0),),
        probes=(Probe(0, 2.0, 3.0), Probe(25, logit, 40.0), Probe(50, 5.0, 30.0)),
        largest_gradient=1.0,
        stopped_at=None,
        windows=windows,
        step_seconds=0.1,
    )
    return replace(made, **changes)


def seeds_of(arm: str, losses, **options) -> list[Result]:
    """One invented run a seed."""
    return [result(arm, seed, loss, **options) for seed, loss in enumerate(losses)]


@pytest.mark.parametrize("workload, tolerance", [(FULL, 0.002), (QUICK, 0.006)])
def test_arms_have_equal_parameters(workload, tolerance):
    counts = {arm: model_of(arm, workload).num_parameters() for arm in ARMS}
    more = counts.pop(SAME_WIDTHS)
    base = counts[BASE]
    assert all(abs(count - base) < tolerance * base for count in counts.values()), counts
    shape, heads = workload.base, workload.num_heads
    assert more - base == 2 * shape.num_layers * shape.embed_dim * shape.head_dim * heads // 2
    assert model_of(SAME_WIDTHS, workload).hidden_dim == workload.hidden_dim


def test_each_arm_changes_what_its_name_says_and_nothing_else():
    base = asdict(model_of(BASE, FULL))

    def changed(arm: str) -> set[str]:
        return {name for name, value in asdict(model_of(arm, FULL)).items() if value != base[name]} - {"hidden_dim"}

    assert changed(WIDE) == changed(DEEP) == {"num_layers", "embed_dim", "head_dim"}
    assert changed(NO_CAPS) == {"attn_logit_soft_cap", "final_logit_soft_cap"}
    assert changed(SAME_WIDTHS) == {"num_kv_heads"} and changed(GELU) == {"gated"}
    assert (base["attn_logit_soft_cap"], base["final_logit_soft_cap"]) == (50.0, 30.0)
    assert base["num_heads"] == 2 * base["num_kv_heads"] and FULL.sliding_window * 2 == FULL.sequence_length


def test_runs_go_seed_by_seed_and_only_some_arms_are_trained_at_all_rates():
    runs = runs_of(FULL)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len(runs) == len({run.name for run in runs}) == 3 * (len(ARMS) + 3 * len(SWEPT))
    assert [run.arm for run in runs[: len(ARMS)]] == list(ARMS)
    assert {run.learning_rate for run in runs[: len(ARMS)]} == {FULL.learning_rates[0]}
    assert {run.arm for run in runs if run.learning_rate != FULL.learning_rates[0]} == set(SWEPT)
    assert {run.seed for run in runs_of(FULL, (GELU,), (5,))} == {5}
    with pytest.raises(UserError, match="--arms: 'gemma' is unknown"):
        runs_of(FULL, ("gemma",))
    with pytest.raises(UserError, match="--seeds must be 0 or more"):
        runs_of(FULL, (), (-1,))


def test_a_digest_is_of_the_settings_and_not_of_the_seed_or_of_other_runs():
    one = digest(Run(BASE, 0.01, 0), FULL)
    assert one == digest(Run(BASE, 0.01, 1), replace(FULL, seeds=(7,), arms=(BASE,), learning_rates=(0.01,)))
    others = [digest(Run(BASE, 0.02, 0), FULL), digest(Run(NO_CAPS, 0.01, 0), FULL)]
    assert len({one, *others, digest(Run(BASE, 0.01, 0), replace(FULL, steps=501))}) == 4


def test_plain_feed_forward_is_down_of_gelu_of_up():
    layer = PlainFeedForward(8, 12, execution=Execution(), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    up = x @ np.asarray(layer.up[...], np.float64)
    gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    expected = gelu @ np.asarray(layer.down[...], np.float64)
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)), expected, atol=1e-5)


def test_a_model_without_gates_counts_its_parameters_and_operations():
    plain, gated = GeminiConfig(**SMALL, gated=False), GeminiConfig(**SMALL)
    layer = nnx.eval_shape(lambda: GeminiLayer(plain, 0, execution=Execution(), rngs=nnx.Rngs(0)))
    own = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(layer, nnx.Param)))
    assert plain.num_parameters() == 2 * own + 8 + 32 * 8
    assert gated.flops_per_token(16) - plain.flops_per_token(16) == 2 * 2 * 8 * 12


def test_experts_without_gates_are_refused():
    with pytest.raises(UserError, match=r"model\.gated must be true"):
        GeminiConfig(**SMALL, gated=False, experts=ExpertsConfig(num_experts=2, experts_per_token=1, hidden_dim=8))


def test_logits_are_looked_at_before_their_caps_and_only_where_keys_are_seen():
    config = GeminiConfig(**SMALL, num_kv_heads=1, sliding_window=3, attn_logit_soft_cap=2.0, final_logit_soft_cap=1.0)
    model = new_model(config, 0)
    model.layers[0].attention.query[...] *= 30
    tokens = np.random.default_rng(0).integers(0, 32, (200, 7))

    # The first layer once more, in numpy and float64.
    x = np.asarray(model.embedder.embedding[...], np.float64)[tokens] * 8**0.5
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    weights = {name: np.asarray(getattr(model.layers[0].attention, name)[...], np.float64) for name in ("query", "key")}
    turn = np.exp(1j * np.arange(7)[:, None] * 10_000.0 ** (-np.arange(0, 4, 2) / 4))[None, :, None]
    turned = {}
    for name, weight in weights.items():
        head = np.einsum("btd,dnh->btnh", x, weight)
        turned[name] = (head[..., :2] + 1j * head[..., 2:]) * turn
    scores = np.abs(np.einsum("btnc,bskc->bnts", turned["query"], turned["key"].conj()).real) / 2
    distance = np.arange(7)[:, None] - np.arange(7)
    largest = {reach: scores[..., (distance >= 0) & (distance < reach)].max((1, 2)) for reach in (3, 7)}
    # Rows whose largest logits are of keys that come later, or that are out of the window.
    telling = (scores.max((1, 2, 3)) > largest[7]) & (largest[7] > largest[3])
    tokens = tokens[telling]
    assert len(tokens) > 1 and largest[3][telling].max() > 2.0
    attention, final = largest_logits(*nnx.split(model, nnx.Param), tokens)
    np.testing.assert_allclose(attention[0], largest[3][telling].max(), rtol=1e-4)

    # The output: the capped logits of the model are tanh of these.
    capped = np.abs(np.asarray(model(tokens), np.float64)).max()
    np.testing.assert_allclose(np.tanh(final), capped, rtol=1e-4)
    assert final > 1.0


def test_updates_times_a_rate_are_those_of_an_optimizer_of_that_rate():
    config = replace(optimizer_of(QUICK), clip_norm=0.1)
    params = {"layers": {"w": jnp.arange(4.0).reshape(2, 2), "scale": jnp.ones(2)}}
    gradients = jax.tree.map(lambda leaf: leaf + 0.5, params)
    own = optax.chain(make_optimizer(config, 10, params), scaled_by(0.3))
    usual = make_optimizer(replace(config, learning_rate=0.3), 10, params)
    found = [optimizer.update(gradients, optimizer.init(params), params)[0] for optimizer in (own, usual)]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), *found)
    assert np.abs(found[0]["layers"]["w"]).min() > 0


@pytest.mark.slow
def test_a_step_that_is_not_finite_ends_the_run_with_the_weights_before_it():
    shape = Shape(2, 8, 4)
    tiny = replace(QUICK, base=shape, num_heads=2, hidden_dim=8, vocab_size=16, sequence_length=4, steps=5)
    rows = np.ones((2, 5), np.int32)
    trained = train(new_model(model_of(BASE, tiny), 0), tiny, float("nan"), lambda: rows, rows, 0)
    # The first update makes the weights not-a-number, the second step sees it.
    assert trained.stopped_at == 2 and trained.losses == ()
    assert [each.step for each in trained.probes] == [0, 1] and trained.probes[-1].attention is None


def test_what_is_not_finite_is_none_in_json():
    assert finite(np.float32(2)) == 2.0 and finite(np.inf) is None and finite(np.nan) is None


def test_a_run_that_diverged_counts_as_one_that_has_learnt_nothing():
    assert findings.loss_of(result(BASE, 0, None)) == 7.0 == findings.loss_of(result(BASE, 0, 9.0))
    assert findings.loss_of(result(BASE, 0, 4.0)) == 4.0
    learnt = [result(BASE, 0, 5.9), result(BASE, 0, 6.1), result(BASE, 0, 5.0, stopped_at=3), result(BASE, 0, None)]
    assert [findings.has_learnt(run) for run in learnt] == [True, False, False, False]


def test_the_largest_logit_is_that_of_the_whole_training():
    assert findings.largest(result(BASE, 0, 4.0), "attention") == 10.0
    assert findings.largest(result(BASE, 0, 4.0), "final") == 40.0
    assert findings.largest(result(BASE, 0, 4.0, logit=None), "attention") == float("inf")


def test_differences_are_taken_between_runs_of_one_seed():
    runs = [*seeds_of(BASE, (3.0, 4.0, 5.0)), *seeds_of(NO_CAPS, (3.1, 4.1)), result(NO_CAPS, 7, 0.0)]
    found = findings.paired(runs, BASE, NO_CAPS, 0.01)
    assert found.count == 2 and found.mean == pytest.approx(-0.1) and found.half == pytest.approx(0, abs=1e-9)
    assert findings.paired(runs, BASE, GELU, 0.01) is None


def test_sensitivity_is_the_mean_distance_from_the_best_rate():
    runs = [*seeds_of(BASE, (3.0, 3.2)), *seeds_of(BASE, (3.4, None), rate=0.1), *seeds_of(NO_CAPS, (3.0, 3.0))]
    assert findings.sensitivities(runs, BASE) == pytest.approx({0: 0.2, 1: 1.9})
    assert findings.sensitivities(runs, NO_CAPS) == {}, "no seed has all rates"
    more = [*runs, *seeds_of(NO_CAPS, (3.6,), rate=0.1)]
    assert findings.paired_sensitivity(more, BASE, NO_CAPS).mean == pytest.approx(-0.1)


def test_a_window_costs_what_the_loss_rises_by():
    runs = [*seeds_of(BASE, (3.0, 4.0, 5.0)), *seeds_of(NO_CAPS, (3.0,))]
    assert findings.windows_of(runs) == [64, 32, 16]
    cost = findings.cost_of_window(runs, 16)
    assert cost.count == 3 and cost.mean == pytest.approx(0.1)
    assert findings.cost_of_window(runs, 8) is None


@pytest.mark.parametrize(
    "claim, low, high, expected",
    [
        ("lower", -0.2, -0.1, "reproduced"),
        ("lower", -0.2, 0.1, "undecided"),
        ("lower", 0.1, 0.2, "not reproduced: the other way"),
        ("same", -0.01, 0.02, "reproduced"),
        ("same", -0.01, 0.04, "undecided"),
        ("same", 0.04, 0.06, "not reproduced"),
        ("same", -0.06, -0.04, "not reproduced"),
        ("none", -0.2, -0.1, "lower"),
        ("none", 0.1, 0.2, "higher"),
        ("none", -0.1, 0.2, "cannot be told from none"),
    ],
)
def test_a_verdict_follows_from_the_whole_interval(claim, low, high, expected):
    assert findings.verdict(claim, Interval((low + high) / 2, (high - low) / 2, 3)) == expected
    assert findings.verdict(claim, Interval(low, float("inf"), 1)) == "one seed: undecided"
    assert findings.verdict(claim, None) == "not measured"


def test_a_result_comes_back_from_its_file(tmp_path):
    for run in (result(BASE, 1, 4.0), result(NO_CAPS, 0, None, logit=None, stopped_at=3)):
        write_json(asdict(run), tmp_path / "run.json")
        assert read_result(tmp_path / "run.json") == run


def test_the_report_has_a_line_for_each_ablation_and_says_what_is_missing():
    runs = [*seeds_of(BASE, (3.0, 3.1, 3.2)), *seeds_of(WIDE, (3.2, 3.3, 3.4)), *seeds_of(DEEP, (3.0, 3.11, 3.19)),
            *seeds_of(NO_CAPS, (3.0, 3.1, 3.2), logit=None)]  # fmt: skip
    made = report.Study("2026-11-26", "command", {"processor": "one"}, FULL, runs, ["gelu-lr-0.01-seed-0"])
    text = report.write_report(made, ["a.png"])
    assert "| deep minus wide | nats per token | 52.0 against 50.8 points (table 9) | -0.2000 ± 0.0248 | 3 |" in text
    assert "Not done yet: gelu-lr-0.01-seed-0." in text and "![a.png](a.png)" in text
    lines = {row[0]: row for row in report.tables(made)[0][1]}
    assert lines["GeGLU minus GELU"][-1] == "not measured" and lines["deep minus wide"][-1] == "reproduced"
    assert lines["window W/2 minus W at inference"][-1] == "reproduced"
    assert lines["window W/4 minus W at inference"][-1] == "not reproduced"
    assert lines["with against without soft-caps: largest attention logit"][-1] == "not measured", "it was infinite"
    json.dumps(report.as_json(made), allow_nan=False)
    json.dumps(report.as_json(replace(made, runs=runs[:1])), allow_nan=False)


def test_results_of_other_settings_or_texts_are_refused(tmp_path):
    write_json(asdict(result(BASE, 0, 4.0)), tmp_path / "gemma-2-lr-0.01-seed-0.json")
    with pytest.raises(UserError, match="was made with other settings"):
        study.study("full", tmp_path, tmp_path, (BASE,), (0,), None, True)
    with pytest.raises(UserError, match="has no result of these arms"):
        study.study("full", tmp_path, tmp_path, (GELU,), (0,), None, True)
    with pytest.raises(UserError, match="different texts"):
        study.check_one_text([result(BASE, 0, 4.0), result(BASE, 1, 4.0, text="z")], tmp_path)


def test_a_full_study_without_novels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_SHARED", str(tmp_path))
    with pytest.raises(UserError, match="the study reads novels"):
        texts.prepare(tmp_path, FULL)
    assert not list(tmp_path.iterdir())


def test_pieces_of_a_text_are_the_text_and_end_with_a_line():
    book = "".join(f"line {number}\n" for number in range(3000)) + "the end"
    pieces = list(texts.chunks_of([book, "short"]))
    assert "".join(pieces) == book + "short" and pieces[-1] == "short"
    assert len(pieces) > 3 and all(piece.endswith("\n") for piece in pieces[:-2])


def test_rows_are_measured_on_in_full_number_and_the_frequencies_are_of_the_training_text():
    held_out = np.array([0, 1, 0, 1, 0, 1, 0, 1], np.int32)
    made = Texts(np.array([0, 0, 1, 0, 0, 1], np.int32), (held_out,), 3, "made up")
    rows = texts.test_rows(made, replace(QUICK, sequence_length=2, test_rows=4))
    assert rows.tolist() == [[3, 0, 1]] * 4
    expected = -(np.log(5 / 10) + np.log(3 / 10)) / 2  # counts 4, 2, 0, 0 and one each
    assert texts.unigram_loss(made, rows, 4) == pytest.approx(expected)
    assert texts.probe_rows(rows, 2).shape == (2, 3)
    with pytest.raises(UserError, match="has 4 passages, and 5 are measured on"):
        texts.test_rows(made, replace(QUICK, sequence_length=2, test_rows=5))
    assert texts.fingerprint(made) != texts.fingerprint(replace(made, train=made.train[1:]))
