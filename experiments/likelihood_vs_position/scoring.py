"""Every token's negative log-likelihood, with a cache that grows chunk by chunk, so that memory stays bounded."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from experiments.likelihood_vs_position.rows import Rows
from zoo.inference.model import LanguageModel, Structure, take_apart
from zoo.inference.prompts import check_tokens

LOGITS_BYTES = 16 * 2**20
"""Upper bound of the float32 logits that exist at one time (one token's at least)."""


class TokenScores(NamedTuple):
    """Of all tokens of some rows but their first one."""

    nll: Float[np.ndarray, "b t"]
    """-log p(token | the tokens before it), natural logarithm, float32."""
    right: Bool[np.ndarray, "b t"]
    """Whether the token was the likeliest one."""


def score_in_chunks(
    model: LanguageModel, rows: Rows, *, chunk: int, cache_dtype: DTypeLike | None = None
) -> TokenScores:
    """Scores the tokens 1 .. T - 1 of each row, `chunk` of them at a time.

    Memory is weights, caches (of local layers no more than the window) and one chunk. The result is that of one pass
    over the whole row. Raises UserError for ids outside the vocabulary, ValueError for a chunk below 1 or rows without
    a token to predict.
    """
    rows = check_tokens(rows, model.config.vocab_size)
    total = rows.shape[1] - 1
    if chunk < 1 or total < 1:
        raise ValueError(f"chunks of {chunk} tokens of rows with {total} tokens to predict")
    chunk = min(chunk, total)
    padded = np.pad(rows, ((0, 0), (0, -total % chunk)))
    structure, arrays = take_apart(model)
    programs, cache, found = _programs(structure), None, []
    for start in range(0, padded.shape[1] - 1, chunk):
        tokens, targets = padded[:, start : start + chunk], padded[:, start + 1 : start + chunk + 1]
        positions = np.broadcast_to(start + np.arange(chunk, dtype=np.int32), tokens.shape)
        if cache is None:
            dtype = None if cache_dtype is None else jnp.dtype(cache_dtype)
            slots = padded.shape[1] - 1
            cache, scores = programs.first(arrays, tokens, targets, positions, slots=slots, dtype=dtype)
        else:
            cache, scores = programs.next(arrays, cache, tokens, targets, positions)
        found.append(jax.tree.map(np.asarray, scores))
    return TokenScores(*(np.concatenate(parts, axis=1)[:, :total] for parts in zip(*found, strict=True)))


class _Programs(NamedTuple):
    first: Callable[..., tuple[Any, tuple[Array, Array]]]
    """(arrays, tokens, targets, positions, slots=, dtype=) -> (cache, scores)"""
    next: Callable[..., tuple[Any, tuple[Array, Array]]]
    """(arrays, cache [donated], tokens, targets, positions) -> (cache, scores)"""


@functools.lru_cache(maxsize=8)
def _programs(structure: Structure) -> _Programs:
    def scored(arrays, cache, tokens, targets, positions):
        model = structure.restore(arrays)
        hidden, cache = model.hidden_states(tokens, positions=positions, cache=cache)
        return cache, _scores(model, hidden, targets)

    @functools.partial(jax.jit, static_argnames=("slots", "dtype"))
    def first(arrays, tokens, targets, positions, *, slots: int, dtype):
        empty = structure.restore(arrays).init_cache(len(tokens), slots, dtype)
        return scored(arrays, empty, tokens, targets, positions)

    return _Programs(first, jax.jit(scored, donate_argnums=1))


def _scores(model: LanguageModel, hidden: Array, targets: Array) -> tuple[Array, Array]:
    """(negative log-likelihood, whether the target is the likeliest token) [B, T], a piece of the logits at a time."""
    count = targets.size
    piece = max(1, min(count, LOGITS_BYTES // (4 * model.config.vocab_size)))
    padding = -count % piece
    states = jnp.pad(hidden.reshape(count, -1), ((0, padding), (0, 0))).reshape(-1, piece, hidden.shape[-1])
    flat = jnp.pad(targets.reshape(-1), (0, padding)).reshape(-1, piece)

    def one(pair):
        logits = model.logits(pair[0][None])[0]
        chosen = jnp.take_along_axis(logits, pair[1][:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen, jnp.argmax(logits, axis=-1) == pair[1]

    nll, right = jax.lax.map(one, (states, flat))
    return nll.reshape(-1)[:count].reshape(targets.shape), right.reshape(-1)[:count].reshape(targets.shape)
