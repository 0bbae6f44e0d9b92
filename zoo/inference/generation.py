"""Generation: one prefill of the prompts, then one token a step with the ring cache.

* Programs are compiled once per model structure, shapes and sampling, and kept across calls. The weights
  are arguments of them, never constants, and are passed as a flat list (flattening a module tree every step costs more
  than dispatching the step).
* The cache is donated: a step updates it in place.
* The host fetches the tokens of a step while the next one runs: neither streaming nor the check whether all rows have
  stopped makes the device wait, and at most one step too many is computed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, Key

from zoo.errors import UserError
from zoo.inference.model import LanguageModel, Structure, take_apart
from zoo.inference.prompts import check_mask, check_seed, check_tokens, positions_of, row_keys
from zoo.inference.sampling import Sampling, sample


class Last(NamedTuple):
    """What a decode step takes from the step before it, besides the cache."""

    tokens: Int[Array, "b"]
    """The newest token of each row (pad_id after its stop token)."""
    positions: Int[Array, "b"]
    """Their positions."""
    step: Int[Array, ""]
    """How many tokens were drawn so far."""
    stopped: Bool[Array, "b"]
    """Rows whose stop token was drawn."""


class Programs(NamedTuple):
    """The two compiled functions of one model structure."""

    prefill: Callable[..., tuple[Any, Last]]
    """(arrays, tokens, positions, segment_ids, keys, stops, cache_length=) -> (cache, last)"""
    decode: Callable[..., tuple[Any, Last]]
    """(arrays, cache [donated], last, keys, stops) -> (cache, last)"""


def generate(
    model: LanguageModel,
    tokens: Int[ArrayLike, "b t"],
    mask: Int[ArrayLike, "b t"] | None = None,
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    stop_tokens: Sequence[int] = (),
    seed: int = 0,
    on_token: Callable[[Int[np.ndarray, "b"]], None] | None = None,
    pad_id: int = 0,
) -> Int[np.ndarray, "b n"]:
    """The `max_new_tokens` tokens after each prompt, int32; after a row's stop token (which is kept) pad_id.

    Prompts of unequal length are left-padded (`left_pad`): mask 0 = padding, positions count from the first real token.
    With `stop_tokens=()` nothing stops a row. `on_token` is called with the newest token of every row, int32 [B], once
    a step until all rows have stopped. What is drawn for a prompt depends on the seed and the prompt, not on the batch
    it is in (`row_keys`).

    Raises:
      UserError: tokens outside the vocabulary, a mask that is not left-padding, max_new_tokens below 1.
    """
    if max_new_tokens < 1:
        raise UserError(f"max-new-tokens must be at least 1, got {max_new_tokens}")
    check_seed(seed)
    tokens = check_tokens(tokens, model.config.vocab_size)
    mask = check_mask(mask, tokens, left=True)
    keys = row_keys(seed, tokens, mask)
    padded = not mask.all()
    structure, arrays = take_apart(model)
    programs = _programs(structure, sampling, pad_id)
    stops = np.asarray(sorted(set(stop_tokens)), np.int32)
    new_tokens = np.full((len(tokens), max_new_tokens), pad_id, np.int32)
    stopped = np.zeros(len(tokens), bool)

    cache, last = programs.prefill(
        arrays,
        tokens,
        positions_of(mask),
        mask if padded else None,
        keys,
        stops,
        # The last token is drawn, never attended to.
        cache_length=tokens.shape[1] + max_new_tokens - 1,
    )
    for step in range(max_new_tokens):
        fetched = last.tokens
        if step + 1 < max_new_tokens:
            cache, last = programs.decode(arrays, cache, last, keys, stops)
        new_tokens[:, step] = np.asarray(fetched)
        if on_token is not None:
            on_token(new_tokens[:, step])
        stopped |= np.isin(new_tokens[:, step], stop_tokens)
        if stopped.all():
            break
    return new_tokens


@functools.lru_cache(maxsize=32)
def _programs(structure: Structure, sampling: Sampling, pad_id: int) -> Programs:
    def draw(logits, keys: Key[Array, "b"], step, stopped, stops: Int[Array, "s"]):
        step_keys = None if sampling.temperature == 0 else jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        tokens = jnp.where(stopped, pad_id, sample(logits, step_keys, sampling))
        return tokens, stopped | (tokens[:, None] == stops).any(-1)

    @functools.partial(jax.jit, static_argnames="cache_length")
    def prefill(arrays, tokens, positions, segment_ids, keys, stops, *, cache_length: int):
        model = structure.restore(arrays)
        hidden, cache = model.hidden_states(
            tokens,
            positions=positions,
            segment_ids=segment_ids,
            cache=model.init_cache(len(tokens), cache_length),
        )
        # Only the last position's logits: [B, T, V] would be the largest array by far.
        logits = model.logits(hidden[:, -1:])[:, 0]
        step = jnp.zeros((), jnp.int32)
        drawn, stopped = draw(logits, keys, step, jnp.zeros(len(tokens), bool), stops)
        return cache, Last(drawn, positions[:, -1] + 1, step + 1, stopped)

    @functools.partial(jax.jit, donate_argnums=1)
    def decode(arrays, cache, last: Last, keys, stops):
        model = structure.restore(arrays)
        hidden, cache = model.hidden_states(last.tokens[:, None], positions=last.positions[:, None], cache=cache)
        drawn, stopped = draw(model.logits(hidden)[:, 0], keys, last.step, last.stopped, stops)
        return cache, Last(drawn, last.positions + 1, last.step + 1, stopped)

    return Programs(prefill, decode)
