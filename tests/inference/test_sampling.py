import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import UserError
from zoo.inference import Sampling, sample

DRAWS = 20_000


def draw_frequencies(logits, sampling: Sampling) -> np.ndarray:
    """How often each token is drawn, of `DRAWS` rows with the same logits and different keys."""
    keys = jax.random.split(jax.random.key(0), DRAWS)
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (DRAWS, len(logits)))
    drawn = np.asarray(jax.jit(sample, static_argnums=2)(rows, keys, sampling))
    return np.bincount(drawn, minlength=len(logits)) / DRAWS


def expected_distribution(logits, sampling: Sampling) -> np.ndarray:
    """The definition, token by token, in float64."""
    logits = np.asarray(logits, np.float64) / sampling.temperature
    order = np.argsort(-logits, kind="stable")[: sampling.top_k]
    weights = np.exp(logits[order] - logits.max())
    weights /= weights.sum()
    if sampling.top_p is not None:
        kept, mass = 0, 0.0
        while mass < sampling.top_p - 1e-9 and kept < len(weights):
            mass += weights[kept]
            kept += 1
        order, weights = order[:kept], weights[:kept] / weights[:kept].sum()
    result = np.zeros(len(logits))
    result[order] = weights
    return result


LOGITS = [2.0, -1.0, 1.5, 0.0, 0.5, -3.0, 1.0, -0.5]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.5),
        Sampling(2.0, top_k=3),
        Sampling(1.0, top_k=1),
        Sampling(1.0, top_k=100),
        Sampling(1.0, top_p=0.7),
        Sampling(1.0, top_p=1.0),
        Sampling(1.0, top_p=0.01),
        Sampling(0.8, top_k=5, top_p=0.8),
    ],
    ids=str,
)
def test_tokens_are_drawn_with_the_probabilities_of_the_definition(sampling):
    expected = expected_distribution(LOGITS, sampling)
    measured = draw_frequencies(LOGITS, sampling)
    assert set(np.flatnonzero(measured)) <= set(np.flatnonzero(expected))
    standard_error = np.sqrt(expected * (1 - expected) / DRAWS)
    np.testing.assert_array_less(np.abs(measured - expected), 5 * standard_error + 1e-9)


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.95, 4)])
def test_the_nucleus_is_the_smallest_set_that_reaches_p_and_holds_the_crossing_token(top_p, kept):
    probabilities = [0.5, 0.3, 0.12, 0.08]
    measured = draw_frequencies(np.log(probabilities), Sampling(1.0, top_p=top_p))
    assert np.flatnonzero(measured).tolist() == list(range(kept))


def test_equal_logits_keep_exactly_k_tokens():
    assert np.flatnonzero(draw_frequencies([0.0] * 8, Sampling(1.0, top_k=3))).tolist() == [0, 1, 2]


def test_temperature_zero_takes_the_most_probable_token_and_the_lowest_id_of_equals():
    logits = jnp.asarray([[0.0, 3.0, 3.0], [5.0, -1.0, 2.0]])
    assert sample(logits, None, Sampling()).tolist() == [1, 0]
    assert sample(logits, None, Sampling()).dtype == jnp.int32


def test_a_tiny_temperature_is_greedy_and_does_not_overflow():
    keys = jax.random.split(jax.random.key(0), 2)
    logits = jnp.asarray([[30.0, -30.0, 29.9], [-30.0, 1.0, 0.0]])
    assert sample(logits, keys, Sampling(1e-6, top_p=0.9)).tolist() == [0, 1]


@given(st.integers(0, 2**31 - 1), st.permutations(range(4)))
def test_a_row_is_drawn_alike_wherever_it_stands_in_the_batch(seed, order):
    order = np.asarray(order)
    logits = jax.random.normal(jax.random.key(1), (4, 16)) * 2
    keys = jax.random.split(jax.random.key(seed), 4)
    together = sample(logits, keys, Sampling(1.0, top_p=0.9))
    assert sample(logits[order], keys[order], Sampling(1.0, top_p=0.9)).tolist() == together[order].tolist()


@pytest.mark.parametrize(
    "fields",
    [
        dict(temperature=-0.1),
        dict(temperature=1e-9),
        dict(temperature=float("nan")),
        dict(temperature=float("inf")),
        dict(top_k=0),
        dict(top_k=-1),
        dict(top_p=0.0),
        dict(top_p=1.1),
        dict(top_p=float("nan")),
    ],
    ids=str,
)
def test_values_without_meaning_are_refused(fields):
    with pytest.raises(UserError, match=next(iter(fields)).replace("_", "-")):
        Sampling(**fields)


def test_drawing_without_keys_is_refused():
    with pytest.raises(ValueError, match="key"):
        sample(jnp.zeros((1, 4)), None, Sampling(1.0))
