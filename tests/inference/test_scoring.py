import jax
import numpy as np
import pytest

from zoo.errors import UserError
from zoo.inference import scoring, token_log_probabilities, token_logits
from zoo.inference.prompts import left_pad


def random_rows(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 96, length).tolist() for length in lengths]


def right_pad(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    tokens, mask = left_pad(rows)
    shifts = tokens.shape[1] - mask.sum(1)
    return (np.stack([np.roll(x, -shift) for x, shift in zip(array, shifts)]) for array in (tokens, mask))


def log_probabilities(logits: np.ndarray, row: list[int]) -> np.ndarray:
    """The definition, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_softmax[np.arange(len(row) - 1), row[1:]]


@pytest.mark.parametrize(("logits_bytes", "batch_size"), [(2**27, 8), (1, 2), (4 * 96 * 7, 1), (4 * 96 * 40, 2)])
def test_logits_and_scores_are_the_models_in_pieces_of_any_size(
    model, full_logits, monkeypatch, logits_bytes, batch_size
):
    monkeypatch.setattr(scoring, "LOGITS_BYTES", logits_bytes)
    rows = random_rows(21, 21, 21)
    logits = token_logits(model, np.asarray(rows), batch_size=batch_size)
    scores = token_log_probabilities(model, np.asarray(rows), batch_size=batch_size)
    assert logits.dtype == scores.dtype == np.float32
    assert scores.shape == (3, 20)
    for row, row_logits, row_scores in zip(rows, logits, scores, strict=True):
        expected = full_logits(model, row)
        np.testing.assert_allclose(row_logits, expected, atol=1e-5)
        np.testing.assert_allclose(row_scores, log_probabilities(expected, row), atol=2e-5)


@pytest.mark.parametrize("pad", [left_pad, right_pad])
def test_padding_on_either_side_changes_nothing_and_scores_nothing_itself(model, full_logits, pad):
    rows = random_rows(5, 30, 17, 1)
    tokens, mask = pad(rows)
    logits = np.empty((*tokens.shape, 96), np.float32)
    scores = token_log_probabilities(model, tokens, mask, batch_size=3, logits_out=logits)
    assert not scores[scoring.pair_mask(mask) == 0].any()
    for i, row in enumerate(rows):
        expected = full_logits(model, row)
        np.testing.assert_allclose(logits[i][mask[i] == 1], expected, atol=1e-5)
        scored = scores[i][scoring.pair_mask(mask)[i] == 1]
        np.testing.assert_allclose(scored, log_probabilities(expected, row), atol=2e-5)


def test_log_probabilities_sum_to_one_over_the_vocabulary(model):
    prefix = random_rows(10)[0]
    tokens = np.asarray([[*prefix, token] for token in range(96)])
    last = token_log_probabilities(model, tokens, batch_size=96)[:, -1]
    np.testing.assert_allclose(np.exp(last.astype(np.float64)).sum(), 1, atol=1e-5)


def test_logits_never_exist_on_the_device_for_all_positions(model, monkeypatch):
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 4 * 96 * 16)
    programs = scoring._programs(scoring.take_apart(model)[0])
    arrays = scoring.take_apart(model)[1]
    hidden = jax.ShapeDtypeStruct((4, 64, 32), np.float32)
    targets = jax.ShapeDtypeStruct((4, 64), np.int32)
    compiled = programs.log_probabilities.lower(arrays, hidden, targets, chunk=16).compile()
    assert "f32[256,96]" not in compiled.as_text()
    assert "f32[16,96]" in compiled.as_text()


def test_one_token_per_row_has_logits_and_nothing_to_score(model):
    assert token_log_probabilities(model, np.array([[5], [6]])).shape == (2, 0)
    assert token_logits(model, np.array([[5], [6]])).shape == (2, 1, 96)


def test_progress_counts_every_row_once(model):
    counts: list[int] = []
    token_log_probabilities(model, np.asarray(random_rows(*[9] * 5)), batch_size=2, on_rows=counts.append)
    assert counts == [2, 2, 1]


def test_padding_between_tokens_is_refused(model):
    with pytest.raises(UserError, match="between"):
        token_logits(model, np.array([[5, 6, 7]]), np.array([[1, 0, 1]]))
