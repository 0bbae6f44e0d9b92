"""Logits and log-probabilities of given tokens, in pieces: [B, T, V] never exists on the device."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from zoo.data import Media
from zoo.inference.media_prompts import check_media
from zoo.inference.model import LanguageModel, Structure, take_apart
from zoo.inference.prompts import check_mask, check_tokens, positions_of

LOGITS_BYTES = 128 * 2**20
"""Upper bound of the float32 logits that exist on the device at one time (one position's row at least)."""


def token_logits(
    model: LanguageModel,
    tokens: Int[ArrayLike, "b t"],
    mask: Int[ArrayLike, "b t"] | None = None,
    *,
    batch_size: int = 8,
) -> Float[np.ndarray, "b t v"]:
    """float32 logits on the host; [b, t] is the prediction of token t + 1. At padding they have no meaning.

    `batch_size` rows go through the model at a time. The mask (0 = padding, on the left or on the right) is as for
    `token_log_probabilities`.
    """
    out = np.empty((*np.shape(tokens), model.config.vocab_size), np.float32)
    token_log_probabilities(model, tokens, mask, batch_size=batch_size, logits_out=out)
    return out


def token_log_probabilities(
    model: LanguageModel,
    tokens: Int[ArrayLike, "b t"],
    mask: Int[ArrayLike, "b t"] | None = None,
    *,
    batch_size: int = 8,
    logits_out: Float[np.ndarray, "b t v"] | None = None,
    on_rows: Callable[[int], None] | None = None,
    media: Media | None = None,
) -> Float[np.ndarray, "b t-1"]:
    """log p(token t + 1 | tokens 0..t), natural logarithm, float32; 0 where either token is padding.

    Positions count from the first real token of a row. `logits_out` (an array or memory map) receives the logits on the
    way. `on_rows` is called with the number of rows that were done. `media` are the rows' images and recordings
    (`stack_prompts`). Raises UserError for ids outside the vocabulary, a mask of another shape, a row without tokens or
    with padding between them, media that the model does not read or that are not those of the tokens.
    """
    tokens = check_tokens(tokens, model.config.vocab_size)
    mask = check_mask(mask, tokens)
    check_media(media, model.config, mask)
    log_probabilities = np.zeros((tokens.shape[0], tokens.shape[1] - 1), np.float32)
    structure, arrays = take_apart(model)
    programs = _programs(structure)
    for rows, hidden in _hidden_states(programs, arrays, tokens, mask, media, batch_size):
        count = rows.stop - rows.start
        if logits_out is not None:
            for columns, logits in _logits(programs, arrays, hidden, model.config.vocab_size):
                logits_out[rows, columns] = logits[:count]
        if tokens.shape[1] > 1:
            targets = _repeat_last(tokens[rows, 1:], len(hidden))
            chunk = max(1, min(targets.size, LOGITS_BYTES // (4 * model.config.vocab_size)))
            scored = np.asarray(programs.log_probabilities(arrays, hidden[:, :-1], targets, chunk=chunk))[:count]
            log_probabilities[rows] = np.where(mask[rows, 1:] & mask[rows, :-1], scored, 0)
        if on_rows is not None:
            on_rows(count)
    return log_probabilities


def pair_mask(mask: Int[np.ndarray, "b t"]) -> Int[np.ndarray, "b t-1"]:
    """1 where `token_log_probabilities` holds a score: both the token and the one before it are real."""
    return mask[:, 1:] * mask[:, :-1]


class _Programs(NamedTuple):
    hidden: Callable[..., Array]
    logits: Callable[..., Array]
    log_probabilities: Callable[..., Array]


@functools.lru_cache(maxsize=8)
def _programs(structure: Structure) -> _Programs:
    @jax.jit
    def hidden(arrays, tokens, positions, segment_ids, media):
        model = structure.restore(arrays)
        return model.hidden_states(tokens, positions=positions, segment_ids=segment_ids, media=media)

    @jax.jit
    def logits(arrays, hidden):
        return structure.restore(arrays).logits(hidden)

    @functools.partial(jax.jit, static_argnames="chunk")
    def log_probabilities(arrays, hidden, targets, *, chunk: int):
        model = structure.restore(arrays)

        def of_chunk(pair):
            logits = model.logits(pair[0][None])[0]
            chosen = jnp.take_along_axis(logits, pair[1][:, None], axis=-1)[:, 0]
            return chosen - jax.nn.logsumexp(logits, axis=-1)

        chunks = -(-targets.size // chunk)
        hidden_states, flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        padding = chunks * chunk - targets.size
        parts = (
            jnp.pad(hidden_states, ((0, padding), (0, 0))).reshape(chunks, chunk, -1),
            jnp.pad(flat, (0, padding)).reshape(chunks, chunk),
        )
        return jax.lax.map(of_chunk, parts).reshape(-1)[: targets.size].reshape(targets.shape)

    return _Programs(hidden, logits, log_probabilities)


def _hidden_states(
    programs: _Programs, arrays, tokens: np.ndarray, mask: np.ndarray, media: Media | None, batch_size: int
) -> Iterator[tuple[slice, Array]]:
    """(rows, their hidden states); the last batch is filled up with copies of its last row, to compile once."""
    batch_size = min(batch_size, len(tokens))
    padded = not mask.all()
    for start in range(0, len(tokens), batch_size):
        rows = slice(start, min(start + batch_size, len(tokens)))
        batch, batch_mask, batch_media = jax.tree.map(
            lambda array, rows=rows: _repeat_last(np.asarray(array)[rows], batch_size), (tokens, mask, media)
        )
        segments = batch_mask if padded else None
        yield rows, programs.hidden(arrays, batch, positions_of(batch_mask), segments, batch_media)


def _logits(programs: _Programs, arrays, hidden: Array, vocab_size: int) -> Iterator[tuple[slice, np.ndarray]]:
    """(columns, their logits); the last piece starts early enough to be as long as the others."""
    length = hidden.shape[1]
    size = min(length, max(1, LOGITS_BYTES // (4 * vocab_size * len(hidden))))
    for start in range(0, length, size):
        start = min(start, length - size)
        columns = slice(start, start + size)
        yield columns, np.asarray(programs.logits(arrays, hidden[:, columns]))


def _repeat_last(rows: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])
