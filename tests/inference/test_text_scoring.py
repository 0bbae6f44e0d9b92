import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import UserError
from zoo.inference import TextScore, score_text, token_log_probabilities
from zoo.inference.text_scoring import windows


class Letters:
    """A tokenizer of one token per character."""

    bos_id = 2

    def encode(self, text: str) -> list[int]:
        return [3 + ord(character) % 90 for character in text]


TEXT = "".join(chr(97 + i * i % 23) for i in range(150))


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 39))
def test_every_token_is_scored_in_exactly_one_window(length, size, overlap):
    overlap = min(overlap, size - 1)
    spans = windows(length, size, overlap)
    scored = [i for start, stop, first in spans for i in range(first, stop)]
    assert scored == list(range(length))
    for start, stop, first in spans:
        assert stop - start <= size
        assert first == 0 or first - start >= overlap
        assert stop - start == min(size, length), "every window is full"


def test_a_text_within_the_context_is_scored_from_its_beginning(model):
    score = score_text(model, Letters(), TEXT[:50])
    rows = np.asarray([[2, *Letters().encode(TEXT[:50])]])
    assert (score.tokens, score.bytes) == (50, 50)
    assert score.log_probability == pytest.approx(float(token_log_probabilities(model, rows).sum()), abs=1e-3)


@pytest.mark.parametrize(("context", "overlap", "batch_size"), [(32, 16, 3), (32, 0, 1), (17, 14, 8), (128, 64, 3)])
def test_a_long_text_is_scored_in_windows(model, context, overlap, batch_size):
    ids = Letters().encode(TEXT)
    expected = 0.0
    for start, stop, first in windows(len(ids), context - 1, overlap):
        scores = token_log_probabilities(model, np.asarray([[2, *ids[start:stop]]]))[0]
        expected += float(scores[first - start :].sum())
    parts: list[float] = []
    score = score_text(
        model, Letters(), TEXT, context=context, overlap=overlap, batch_size=batch_size, on_part=parts.append
    )
    assert score.tokens == len(ids)
    assert score.log_probability == pytest.approx(expected, abs=1e-3)
    assert sum(parts) == pytest.approx(1)


def test_bytes_are_counted_in_utf8(model):
    assert score_text(model, Letters(), "aé€😀").bytes == 1 + 2 + 3 + 4


def test_an_empty_text_scores_nothing(model):
    score = score_text(model, Letters(), "")
    assert (score.tokens, score.bytes) == (0, 0)
    assert math.isnan(score.perplexity)
    assert math.isnan(score.bits_per_byte)


def test_figures_follow_their_definitions():
    score = TextScore(tokens=10, bytes=40, log_probability=-20 * math.log(2))
    assert score.bits_per_byte == pytest.approx(0.5)
    assert score.perplexity == pytest.approx(4)
    assert score.mean_log_probability == pytest.approx(-2 * math.log(2))


def test_scores_of_texts_add_up():
    assert TextScore(1, 2, -3.0) + TextScore(10, 20, -30.0) == TextScore(11, 22, -33.0)


def test_an_overflowing_perplexity_is_infinite():
    assert TextScore(1, 1, -1e6).perplexity == math.inf


@pytest.mark.parametrize("options", [dict(context=1), dict(context=0), dict(context=8, overlap=7), dict(overlap=-1)])
def test_windows_that_score_nothing_are_refused(model, options):
    with pytest.raises(UserError, match="context|overlap"):
        score_text(model, Letters(), TEXT, **options)
