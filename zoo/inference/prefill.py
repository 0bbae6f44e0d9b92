"""Prefill in chunks: a prompt of any length goes through the model in pieces, into the caches that decoding needs.

Memory is weights + caches + one chunk. All chunks have one length, the prompt being padded on the left to a multiple of
it, so that two programs are compiled: the first chunk, which finds an empty cache, and all others, whose cache is
donated. A local layer's ring is as small as ever, and each of its chunks still sees the window before it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from zoo.data import Media
from zoo.errors import UserError
from zoo.inference.media_chunks import media_in_chunks
from zoo.inference.media_prompts import check_media, media_contents, padded_media
from zoo.inference.model import LanguageModel, Structure, take_apart
from zoo.inference.prompts import check_mask, check_tokens, positions_of
from zoo.parallel import ShardingRules, axis_divisions
from zoo.parallel.sharding import activation_context

OnChunk = Callable[[int, int], None]
"""Is called after each chunk with the tokens that were read and those there are, both of the padded prompt."""

ANSWER_STEP = 8
"""Answers are padded to a multiple of so many tokens: those of similar length share a compiled program."""


class Prefilled(NamedTuple):
    """Prompts that were read."""

    tokens: Int[np.ndarray, "b t"]
    """The prompts."""
    mask: Int[np.ndarray, "b t"]
    """1 = token, 0 = padding on the left."""
    cache: Any
    """Holds all of their tokens."""
    logits: Float[Array, "b v"]
    """float32, of the token after each prompt."""
    room: int
    """How many more tokens the cache has room for."""
    contents: Sequence[bytes] = ()
    """For each prompt what its images and recordings hold (`media_contents`)."""


def prefill_in_chunks(
    model: LanguageModel,
    tokens: Int[ArrayLike, "b t"],
    mask: Int[ArrayLike, "b t"] | None = None,
    *,
    chunk: int,
    room: int = 0,
    cache_dtype: DTypeLike | None = None,
    on_chunk: OnChunk | None = None,
    media: Media | None = None,
) -> Prefilled:
    """Reads prompts in chunks of `chunk` tokens; a prompt that is shorter is read at once.

    The result is that of one piece: `room` = tokens that are to follow; `cache_dtype` is that of the keys and values,
    default the compute dtype; "int8" has a scale for each token and head. The tokens of a chunk see each other as they
    are and those before them as they are kept, so that with fewer bits chunks change the result by their rounding. What
    a sparse layer drops where its capacity is limited is decided chunk by chunk. `media` are the prompts' images and
    recordings: each chunk encodes those that stand in it, one that two chunks share twice.

    Raises:
      UserError: tokens outside the vocabulary, a mask that is not left-padding, a chunk below 1, devices that share the
        tokens of a sequence or the slots of a cache; media that `generate` refuses, too.
    """
    if chunk < 1:
        raise UserError(f"prefill_chunk must be at least 1 token, got {chunk}")
    if axis_divisions("length") > 1 or axis_divisions("slots") > 1:
        raise UserError("prefill_chunk: devices that share a sequence read it in one piece: leave prefill_chunk out")
    given = check_tokens(tokens, model.config.vocab_size)
    given_mask = check_mask(mask, given, left=True)
    check_media(media, model.config, given_mask)
    chunk = min(chunk, given.shape[1])
    missing = -given.shape[1] % chunk
    columns = ((0, 0), (missing, 0))
    padded, padded_mask = np.pad(given, columns), np.pad(given_mask, columns)
    positions, length = positions_of(padded_mask), padded.shape[1]
    structure, arrays = take_apart(model)
    programs = _programs(structure, activation_context.get())
    shown = media_in_chunks(padded_media(media, missing), model.config, chunk)

    def piece(start: int):
        part = slice(start, start + chunk)
        rest = padded_mask[:, :chunk] if start == 0 else padded_mask[:, chunk:]
        own = None if shown is None else shown[start // chunk]
        return padded[:, part], positions[:, part], None if rest.all() else padded_mask[:, part], own

    dtype = None if cache_dtype is None else jnp.dtype(cache_dtype)
    cache, last = programs.first(arrays, *piece(0), cache_length=length + room, dtype=dtype)
    for start in range(chunk, length + chunk, chunk):
        if on_chunk is not None:
            last.block_until_ready()
            on_chunk(start, length)
        if start < length:
            cache, last = programs.next(arrays, cache, *piece(start))
    contents = media_contents(media, len(given))
    return Prefilled(given, given_mask, cache, programs.logits(arrays, last), room, contents)


def continuation_log_probabilities(
    model: LanguageModel, prefilled: Prefilled, answers: Sequence[Sequence[int]]
) -> Float[np.ndarray, "n"]:
    """log p(answer | prompt) = sum_t log p(answer_t | prompt, answer_<t) of each answer, natural logarithm, float64.

    The prompt is one row and is not read again; its cache is left as it is. Each answer costs about what it costs to
    decode as many tokens. Raises UserError for several prompts, no answers, an answer without tokens or with ids that
    are outside the vocabulary.
    """
    if len(prefilled.tokens) != 1:
        raise UserError(f"answers are scored after one prompt, got {len(prefilled.tokens)}")
    if not len(answers) or not all(len(answer) for answer in answers):
        raise UserError("an answer has no tokens: give every answer at least one")
    longest = max(map(len, answers))
    rows = np.zeros((len(answers), -(-longest // ANSWER_STEP) * ANSWER_STEP), np.int32)
    real = np.zeros(rows.shape, bool)
    for number, answer in enumerate(answers):
        ids = check_tokens(np.asarray(answer)[None], model.config.vocab_size, f"answer {number}")[0]
        rows[number, : len(ids)], real[number, : len(ids)] = ids, True
    structure, arrays = take_apart(model)
    programs = _programs(structure, activation_context.get())
    first = np.int32(prefilled.mask.sum())
    scores = np.asarray(programs.score(arrays, prefilled.cache, prefilled.logits, rows, first))
    return np.where(real, scores, 0).sum(axis=1, dtype=np.float64)


class _Programs(NamedTuple):
    first: Callable[..., tuple[Any, Array]]
    """(arrays, tokens, positions, segment_ids, media, cache_length=, dtype=) -> (cache, hidden states of the last)"""
    next: Callable[..., tuple[Any, Array]]
    """(arrays, cache [donated], tokens, positions, segment_ids, media) -> (cache, hidden states of the last token)"""
    logits: Callable[..., Array]
    """(arrays, hidden [B, 1, D]) -> [B, V]"""
    score: Callable[..., Array]
    """(arrays, cache, logits, answers [N, L], position of their first token) -> log p of their tokens [N, L]"""


@functools.lru_cache(maxsize=8)
def _programs(structure: Structure, context: tuple[Mesh, ShardingRules] | None) -> _Programs:
    """Traced at their first call, inside of the `activation_sharding` that `context` tells apart."""

    @functools.partial(jax.jit, static_argnames=("cache_length", "dtype"))
    def first(arrays, tokens, positions, segment_ids, media, *, cache_length: int, dtype):
        model = structure.restore(arrays)
        empty = model.init_cache(len(tokens), cache_length, dtype)
        told = dict(positions=positions, segment_ids=segment_ids, media=media)
        hidden, cache = model.hidden_states(tokens, **told, cache=empty)
        return cache, hidden[:, -1:]

    @functools.partial(jax.jit, donate_argnums=1)
    def following(arrays, cache, tokens, positions, segment_ids, media):
        model = structure.restore(arrays)
        told = dict(positions=positions, segment_ids=segment_ids, media=media)
        hidden, cache = model.hidden_states(tokens, **told, cache=cache)
        return cache, hidden[:, -1:]

    @jax.jit
    def logits(arrays, hidden):
        return structure.restore(arrays).logits(hidden)[:, 0]

    @jax.jit
    def score(arrays, cache, logits, answers, position):
        model = structure.restore(arrays)
        positions = position + jnp.arange(answers.shape[1] - 1, dtype=jnp.int32)[None]

        def one(answer):
            hidden, _ = model.hidden_states(answer[None, :-1], positions=positions, cache=cache)
            all_logits = jnp.concatenate([logits, model.logits(hidden)[0]])
            chosen = jnp.take_along_axis(all_logits, answer[:, None], axis=-1)[:, 0]
            return chosen - jax.nn.logsumexp(all_logits, axis=-1)

        return jax.lax.map(one, answers)

    return _Programs(first, following, logits, score)
