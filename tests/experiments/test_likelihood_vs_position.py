"""Likelihood against position: the law that is fitted, where tokens are counted, and that chunks change nothing."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.likelihood_vs_position import arms, findings, pictures, report, rows, texts, training, worker
from experiments.likelihood_vs_position.__main__ import LikelihoodVsPosition, loaded
from experiments.likelihood_vs_position.arms import LONG, WINDOW, Run
from experiments.likelihood_vs_position.fit import fit_power_law, fit_spread, spread
from experiments.likelihood_vs_position.rows import Copies
from experiments.likelihood_vs_position.scoring import score_in_chunks
from experiments.likelihood_vs_position.texts import Texts
from experiments.likelihood_vs_position.training import Stage, batch_of
from experiments.likelihood_vs_position.worker import Result, marks, sums_at
from experiments.long_context_recall.quick_model import quick_model
from experiments.long_context_recall.words import made_up_text
from zoo.errors import UserError
from zoo.inference import token_log_probabilities
from zoo.interop import save_run
from zoo.models import build

X = np.array(marks(4096), float)[16:]
TINY = replace(
    arms.QUICK,
    embed_dim=16,
    hidden_dim=32,
    num_heads=1,
    sliding_window=4,
    vocab_size=64,
    stages=(Stage(16, 2, 25, Copies(spans=1, span=4, gap=4, share=0.5)),),
    length=64,
    passages=3,
    chunk=32,
    rows_at_once=3,
    draws=20,
)
IDS = np.random.default_rng(0).integers(3, 64, 400).astype(np.int32)


def curves(far: float, near: float = 4.0, documents: int = 6, length: int = 1024) -> np.ndarray:
    """Invented negative log-likelihoods that fall from `near` to `far` as x^-0.4, and a little noise."""
    x = np.arange(1, length + 1)
    noise = np.random.default_rng(3).normal(0, 0.02, (documents, length))
    return far + (near - far) * x**-0.4 + noise


def result(arm: str, nll: np.ndarray, seed: int = 0) -> Result:
    positions = marks(nll.shape[1])
    sums = tuple(map(tuple, sums_at(nll, positions).tolist()))
    return Result(Run(arm, seed), tuple(positions), sums, tuple(range(len(nll))), ((20, 3.0),), (0.1,), 1000)


def results(far: float = 2.0, control: float | None = None) -> report.Results:
    """The long model falls to `far`; the control is flat from x = 16 on, or falls to `control`."""
    long = curves(far)
    flat = np.where(np.arange(1024) < 16, long, 3.5) + np.random.default_rng(4).normal(0, 0.02, long.shape)
    window = flat if control is None else curves(control)
    runs = [result(LONG, long), result(WINDOW, window)]
    return report.Results("2026-11-26", "command", {"processor": "one"}, "text", 256, 31, 50, None, runs)


# ---- the law ----


@pytest.mark.parametrize("a, b, c", [(3.0, -0.35, 2.5), (8.0, -1.0, 1.0), (-1.0, -0.2, 4.0), (1.5, -0.05, -0.5)])
def test_the_fit_recovers_known_parameters(a, b, c):
    law = fit_power_law(X, a * X**b + c)
    assert [law.a, law.b, law.c] == pytest.approx([a, b, c], rel=1e-3)
    assert law.r2 == pytest.approx(1, abs=1e-9) and not law.at_bound
    np.testing.assert_allclose(law(X), a * X**b + c, atol=1e-5)


def test_no_other_exponent_has_less_error():
    y = np.log(X) * -0.3 + 5 + np.random.default_rng(0).normal(0, 0.05, len(X))
    law, total = fit_power_law(X, y), np.sum((y - y.mean()) ** 2)
    for b in (law.b * 0.98, law.b * 1.02):
        design = np.stack([X**b, np.ones_like(X)], 1)
        assert np.linalg.lstsq(design, y, rcond=None)[1][0] >= np.sum((y - law(X)) ** 2)
    assert law.r2 == pytest.approx(1 - np.sum((y - law(X)) ** 2) / total)


def test_a_curve_that_is_flat_from_some_position_on_has_the_exponent_minus_one():
    flat = np.where(np.arange(1, 4097) <= 16, 6.0, 3.0)
    law = fit_power_law(X, sums_at(flat[None], X.astype(int).tolist())[0] / X)
    assert law.b == pytest.approx(-1, abs=0.01) and law.c == pytest.approx(3, abs=0.01)


def test_a_constant_has_no_r2_and_too_few_points_are_refused():
    assert fit_power_law(X, np.ones_like(X)).r2 == 0
    with pytest.raises(ValueError, match="at least 4 points from x = 1 on, got 3 from 1 on"):
        fit_power_law(np.array([1.0, 2, 3]), np.ones(3))


def test_the_interval_is_of_documents():
    same = np.tile(3 * X**-0.4 + 2, (5, 1))
    _, found = fit_spread(X, same, draws=10)
    assert found["b"].high - found["b"].low < 1e-6
    law, found = fit_spread(X, same + np.linspace(-0.5, 0.5, 5)[:, None], draws=50)
    assert found["c"].low < law.c < found["c"].high and found["c"].high - found["c"].low > 0.2
    values = np.arange(10.0)
    assert spread(values, 100) == spread(values, 100) and spread(values, 100).value == 4.5


# ---- rows ----


def test_a_copy_is_its_original_and_comes_late_enough():
    text = np.arange(100, 160, dtype=np.int32)
    for seed in range(20):
        row = rows.with_copies(text, Copies(spans=3, span=7, gap=20), np.random.default_rng(seed))
        copied = np.flatnonzero(row.offset >= 0)
        assert len(row.ids) == 81 and len(copied) == 21
        np.testing.assert_array_equal(row.ids[copied], row.ids[row.original[copied]])
        np.testing.assert_array_equal(row.ids[row.offset < 0], text)
        assert (copied - row.original[copied]).min() >= 27
        starts = copied[row.offset[copied] == 0]
        for start in starts:  # in one piece, and so is its original
            np.testing.assert_array_equal(row.offset[start : start + 7], np.arange(7))
            np.testing.assert_array_equal(row.original[start : start + 7], row.original[start] + np.arange(7))
    with pytest.raises(ValueError, match="40 tokens have no room for 3 spans of 7 with a gap of 20"):
        rows.with_copies(text[:40], Copies(spans=3, span=7, gap=20), np.random.default_rng(0))


def test_rows_begin_with_bos_and_only_their_share_has_copies():
    drawn = rows.draw_rows(IDS, 16, 200, np.random.default_rng(0), 2, Copies(1, 4, 4, share=0.5))
    assert drawn.shape == (200, 17) and (drawn[:, 0] == 2).all()
    plain = sum(any((row[1:] == IDS[s : s + 16]).all() for s in range(len(IDS) - 15)) for row in drawn)
    assert 70 < plain < 130
    batch = batch_of(drawn)
    np.testing.assert_array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    with pytest.raises(UserError, match="the training text has 400 tokens, a row has 500"):
        rows.draw_rows(IDS, 500, 1, np.random.default_rng(0), 2)


def test_models_of_one_seed_read_the_same_rows_stage_by_stage(monkeypatch):
    read: list[np.ndarray] = []

    class Recorder:
        def __init__(self, *_):
            self.model = lambda: None

        def step(self, rows: np.ndarray) -> float:
            read.append(rows)
            return 1.0

    monkeypatch.setattr(training, "Trainer", Recorder)

    def rows_of(arm: str, seed: int) -> list[np.ndarray]:
        read.clear()
        stages = (Stage(8, 3, 2), Stage(16, 2, 1))

        def draw(stage: Stage, rng: np.random.Generator) -> np.ndarray:
            return rows.draw_rows(IDS, stage.length, stage.batch_size, rng, 2)

        training.train(arms.model_of(arm, TINY), stages, arms.optimizer_of(TINY), draw, seed)
        return list(read)

    long, window, other = rows_of(LONG, 0), rows_of(WINDOW, 0), rows_of(LONG, 1)
    assert [each.shape for each in long] == [(3, 9), (3, 9), (2, 17)]
    assert all((a == b).all() for a, b in zip(long, window, strict=True)) and (long[0] != other[0]).any()


def test_passages_do_not_overlap_and_come_from_all_documents():
    documents = [np.arange(100), np.arange(1000, 1050), np.arange(2000, 2009)]
    found, numbers = rows.passages(documents, 10, 5, bos_id=7)
    assert found.shape == (5, 11) and (found[:, 0] == 7).all() and numbers.tolist() == [0, 0, 0, 0, 1]
    assert len(np.unique(found[:, 1:])) == 50
    assert len(rows.passages(documents, 10, 100, bos_id=7)[0]) == 15
    with pytest.raises(UserError, match="no document has 200 tokens .*the longest has 100"):
        rows.passages(documents, 200, 5, bos_id=7)


def test_books_of_one_file_are_documents_and_another_text_is_refused(tmp_path):
    paragraphs = list(made_up_text(1, 60_000))
    (tmp_path / "train.txt").write_text("<|book one|>\n" + "\n\n".join(paragraphs))
    (tmp_path / "test.txt").write_text("<|book a|>\nFirst book.\n<|book b|>\nThe second book.\n")
    data, held_out = (str(tmp_path / "train.txt"),), (str(tmp_path / "test.txt"),)
    assert texts.read_documents(held_out) == ["First book.\n", "The second book.\n"]
    sizes = {"vocab_size": 320, "most_bytes": 30_000}
    made = texts.prepare(tmp_path, data, held_out, **sizes, setting={"sizes": 1})
    again = texts.prepare(tmp_path, data, held_out, **sizes, setting={"sizes": 1})
    assert len(made.held_out) == 2 and again.source == made.source and again.bos_id == made.bos_id
    assert str(tmp_path) not in made.source and made.source.endswith(f"measured on {tmp_path.name}/test.txt")
    np.testing.assert_array_equal(made.train, again.train)
    with pytest.raises(UserError, match="holds runs with another sizes"):
        texts.prepare(tmp_path, data, held_out, **sizes, setting={"sizes": 2})
    (tmp_path / "test.txt").write_text("Other")
    with pytest.raises(UserError, match="holds runs with another held-out text"):
        texts.prepare(tmp_path, data, held_out, **sizes, setting={"sizes": 1})


# ---- scoring ----


def test_scores_in_chunks_are_those_of_one_pass():
    model = build(arms.model_of(LONG, TINY), rngs=nnx.Rngs(0))
    tokens = np.stack([rows.with_bos(IDS[i : i + 30], 2) for i in (0, 50)])
    found = score_in_chunks(model, tokens, chunk=7)
    logits = jax.jit(lambda tokens: model(tokens))(tokens[:, :-1])
    whole = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(found.nll, whole, atol=2e-5)
    np.testing.assert_array_equal(found.right, np.argmax(logits, -1) == tokens[:, 1:])


def test_buckets_add_up_to_the_whole():
    nll = np.random.default_rng(0).random((3, 1000))
    found = [result(LONG, nll, 0), result(LONG, nll + 1, 1)]
    for cut in (findings.buckets(found[0].positions), findings.octaves(found[0].positions)):
        assert cut[0][0] == 0 and cut[-1][1] == 1000 and all(a[1] == b[0] for a, b in zip(cut, cut[1:], strict=False))
        total = sum((stop - start) * findings.in_bucket(found, (start, stop)) for start, stop in cut)
        np.testing.assert_allclose(total, nll.sum(1) + 500, rtol=1e-9)
    np.testing.assert_allclose(findings.in_bucket(found[:1], (64, 128)), nll[:, 64:128].mean(1))
    np.testing.assert_allclose(findings.cumulative(found[:1])[:, -1], nll.mean(1))


# ---- findings ----


def test_near_lies_beyond_the_reach_of_the_control():
    assert arms.FULL.reach == 253
    assert findings.near_and_far(marks(16_384), arms.FULL.reach) == ((256, 512), (8192, 16_384))
    assert findings.near_and_far(marks(300), 253) is None


def test_the_control_differs_in_its_layers_only():
    long, window = (arms.model_of(arm, arms.FULL) for arm in (LONG, WINDOW))
    assert long.num_parameters() == window.num_parameters() < 1.0e6
    assert replace(window, layer_types=long.layer_types) == long
    assert [window.window(layer) for layer in range(4)] == [64] * 4 and long.window(3) is None


def test_the_aims_tell_a_falling_model_from_a_flat_one():
    assert [aim.reached for aim in report.findings_of(results())[1]] == [True] * 4
    # A control that falls as well is no control; and then there is nothing that the long model gains with distance.
    assert [aim.reached for aim in report.findings_of(results(control=2.0))[1]] == [True, True, False, False]
    rising = report.findings_of(results(far=5.0))[1]
    assert not rising[0].reached and "but it rises" in rising[0].measured and not rising[1].reached


def test_the_report_says_what_falls_short_and_the_picture_is_drawn(tmp_path):
    good, bad = results(), results(control=2.0)
    assert "Nothing of the aims" in report.write_report(good, *report.findings_of(good), "a.png")
    found, listed = report.findings_of(bad)
    text = report.write_report(bad, found, listed, "a.png")
    assert f"* {WINDOW}: the same: -0." in text and "![a.png](a.png)" in text
    assert "| 257 to 512, beyond the trained length |" in text
    json.dumps(report.as_json(bad, found, listed))
    pictures.draw(bad.runs, found, 256, 31, 20, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_tiny_run_learns_and_its_result_comes_back_from_its_file(tmp_path):
    stream = np.tile(IDS[:8], 100)
    texts_ = Texts(stream, (stream[:200],), 2, "eight tokens, over and over")
    found = worker.carry_out(Run(LONG, 0), TINY, texts_)
    assert found.training[0][1] < np.log(64) and found.positions[-1] == 64 and len(found.sums) == 3
    first, last = (findings.in_bucket([found], bucket).mean() for bucket in ((0, 16), (32, 64)))
    assert last < first < np.log(64) + 0.5
    worker.write_result(found, tmp_path / "run.json")
    assert worker.read_result(tmp_path / "run.json") == found


def test_a_checkpoint_is_measured_by_its_own_tokenizer(tmp_path):
    model, tokenizer, hay = quick_model()
    save_run(model, tmp_path / "checkpoint", tokenizer=tokenizer)
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(hay.paragraphs)[:4000])
    settings = LikelihoodVsPosition(checkpoint=tmp_path / "checkpoint", held_out=(str(book),))
    (tmp_path / "out" / "runs").mkdir(parents=True)
    found = loaded(settings, replace(TINY, passages=1, chunk=64), tmp_path / "out")
    (run,) = found["runs"]
    tokens = np.array([tokenizer.encode(book.read_text(), bos=True)[:65]])
    assert run.sums[0][-1] == pytest.approx(-token_log_probabilities(model, tokens).sum(), rel=1e-4)
    assert found["trained_length"] == 512 and run.run.name == "checkpoint-seed-0"
    with pytest.raises(UserError, match="holds runs with another length"):
        loaded(settings, replace(TINY, length=128), tmp_path / "out")
