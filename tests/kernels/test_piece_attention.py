"""Attention of a piece of a sequence to a cache and to itself is dense attention to both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.marks import slow
from zoo.kernels.attention import dot_product_attention, piece
from zoo.kernels.attention.visibility import EMPTY_POSITION

BATCH, TOKENS, HEADS, KV_HEADS, HEAD_DIM, SLOTS, FILLED = 2, 5, 4, 2, 8, 300, 270


def random(*shape: int, seed: int):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("soft_cap", "sinks"), [(5.0, True), *slow((None, False))])
def test_a_piece_sees_the_filled_slots_and_itself_and_no_padding(soft_cap, sinks, monkeypatch):
    monkeypatch.setattr(piece, "CPU_SCORE_BYTES", 0)  # three blocks of 128, of which the last two overlap
    query = random(BATCH, TOKENS, HEADS, HEAD_DIM, seed=0)
    (keys, own_keys), (values, own_values) = (
        (random(BATCH, SLOTS, KV_HEADS, HEAD_DIM, seed=s), random(BATCH, TOKENS, KV_HEADS, HEAD_DIM, seed=s + 1))
        for s in (1, 3)
    )
    held = np.broadcast_to(np.arange(SLOTS, dtype=np.int32), (BATCH, SLOTS)).copy()
    held[0, :7] = EMPTY_POSITION  # a row that is padded on the left
    positions = jnp.broadcast_to(FILLED + jnp.arange(TOKENS, dtype=jnp.int32), (BATCH, TOKENS))
    logits = random(HEADS, seed=5) if sinks else None
    as_stored = lambda key, value, at: (key.transpose(0, 2, 3, 1), value.swapaxes(1, 2), at)  # noqa: E731

    @jax.jit
    def attend(filled):
        own = as_stored(own_keys, own_values, positions)
        # What is stored behind the filled slots is not seen, whatever its position.
        cache = as_stored(keys, values, jnp.asarray(held).at[:, FILLED:].set(0))
        return piece.piece_attention(
            query, cache, filled, own, positions, scale=0.3, logits_soft_cap=soft_cap, sinks=logits
        )

    expected = dot_product_attention(
        query,
        jnp.concatenate([keys[:, :FILLED], own_keys], 1),
        jnp.concatenate([values[:, :FILLED], own_values], 1),
        scale=0.3,
        logits_soft_cap=soft_cap,
        query_positions=positions,
        key_positions=jnp.concatenate([held[:, :FILLED], positions], 1),
        sinks=logits,
        implementation="xla" if sinks else "reference",
    )
    np.testing.assert_allclose(attend(FILLED), expected, atol=1e-6)
