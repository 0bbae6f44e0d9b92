"""The causal workspace is one exchange for each position, and no position sees what comes after it."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.marks import slow
from tests.nn.test_workspace import CONFIGS, B, D, make
from tests.nn.workspace_reference import causal, directional_derivatives, parameters_of
from zoo.nn.workspace_cache import cached_exchange, empty_workspace_cache
from zoo.nn.workspace_causal import causal_exchange

N = 7
# Runs that end within a chunk, at its end, and of one position; padding at the end and at the beginning.
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2], [0, 0, 1, 2, 2, 2, 2]])
CASES = {"soft_runs": ("paper_soft", 3, SEGMENTS), "code": ("public_code", 4, None)}


@cache
def prepared(case: str):
    """(workspace, inputs, a compiled function of (state, x) -> (gradients, what is read))."""
    name, chunk, segments = CASES[case]
    workspace = make(CONFIGS[name])
    graphdef, _ = nnx.split(workspace)
    rng = np.random.default_rng(1)
    given = {name: rng.normal(size=(B, N, D)).astype(np.float32) for name in ("x", "of_read")}
    if segments is not None:
        given["of_read"] *= (segments != 0)[..., None]
    options = dict(chunk=chunk, segment_ids=None if segments is None else jnp.asarray(segments))

    @jax.jit
    def run(state, x):
        def loss(state, x):
            read = causal_exchange(nnx.merge(graphdef, state), x, **options)
            return jnp.sum(read * given["of_read"]), read

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(state, x)

    return workspace, given, run


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradient_are_those_of_an_exchange_for_each_position(case):
    name, chunk, segments = CASES[case]
    config = CONFIGS[name]
    workspace, given, run = prepared(case)
    graphdef, state = nnx.split(workspace)
    (of_state, of_x), read = run(state, given["x"])
    runs = np.ones((B, N), int) if segments is None else segments
    scores_at = [{} for _ in range(B)]

    def reads(arguments):
        x = arguments["x"]
        return np.stack([causal(arguments, config, x[b], D, chunk, runs[b], scores_at[b]) for b in range(B)])

    def total(arguments):
        return (reads(arguments) * given["of_read"]).sum()

    arguments = parameters_of(workspace) | {"x": given["x"].astype(np.float64)}
    np.testing.assert_allclose(read * (runs > 0)[..., None], reads(arguments), atol=1e-5)
    gradients = parameters_of(nnx.merge(graphdef, of_state)) | {"x": of_x}
    for place, (direction, derivative) in directional_derivatives(total, arguments, np.random.default_rng(2)).items():
        along = float((np.asarray(gradients[place], np.float64) * direction).sum())
        assert along == pytest.approx(derivative, abs=1e-5, rel=1e-5), place


@pytest.mark.parametrize("case", CASES)
def test_a_position_sees_itself_and_what_came_before_it_in_its_run(case):
    workspace, given, run = prepared(case)
    _, state = nnx.split(workspace)
    segments = CASES[case][2]
    runs = np.ones((B, N), int) if segments is None else segments
    read = run(state, given["x"])[1]
    for t in range(N):
        x = given["x"].copy()
        x[:, t] = -2 * x[:, t]
        changed = np.abs(run(state, x)[1] - read).max(-1)
        may_see = (np.arange(N) >= t) & (runs == runs[:, t : t + 1])
        assert (changed[~may_see & (runs > 0)] == 0).all()
        # Hard competition may overlook a position, but it always reads for itself.
        assert (changed[may_see] > 1e-6).all() if case == "soft_runs" else (changed[:, t] > 1e-6).all()


@pytest.mark.parametrize("pieces", [(4, 1, 2), *slow(((1, 6),))])
def test_a_row_in_pieces_is_the_row_in_one_with_padding_or_without(pieces):
    """Of two rows, the second one has two tokens of padding on the left; the same tokens alone read the same."""
    workspace, given, _ = prepared("soft_runs")
    x, real = given["x"], np.array([[1] * N, [0, 0, *[1] * (N - 2)]])
    run = jax.jit(lambda x, real: causal_exchange(workspace, x, chunk=3, segment_ids=real))
    next_piece = jax.jit(lambda x, held, real: cached_exchange(workspace, x, held, segment_ids=real))
    whole = run(x, real)
    held, parts, start = empty_workspace_cache(B, workspace, D, 3), [], 0
    for length in pieces:
        read, held = next_piece(x[:, start : start + length], held, real[:, start : start + length])
        parts.append(read)
        start += length
    np.testing.assert_allclose(np.concatenate(parts, 1)[real > 0], whole[real > 0], atol=1e-5)
    assert held.counts.tolist() == [N, N - 2] and int(held.cursor) == N and not held.empty
    moved = run(np.roll(x, -2, axis=1), np.roll(real, -2, axis=1))
    np.testing.assert_allclose(moved[1, : N - 2], whole[1, 2:], atol=1e-5)


def test_a_chunk_has_at_least_one_position():
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        causal_exchange(make(CONFIGS["paper_soft"]), jnp.zeros((B, N, D)), chunk=0)
