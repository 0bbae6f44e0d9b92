"""Generation: one prefill of the prompts, then one token a step with the ring cache.

* Programs are compiled once per model structure, shapes and sampling, and kept across calls. The weights are arguments
  of them, never constants.
* A call of the decode program takes up to `BLOCK` steps in a loop on the device, since starting a program with a few
  hundred arrays costs as much as a step of a small model (0.2 ms on CPU). It ends early when all rows have stopped.
  The cache is donated: it is updated in place.
* The host fetches the tokens of a block while the next one runs: neither streaming nor the end of a generation makes
  the device wait. A stream gets blocks of about `STREAM_SECONDS`.
* On a mesh whose rules divide the length, devices share the tokens of the prompts and the slots of global layers.
* Media are read by prefill alone: their soft tokens are in the cache afterwards.
* Long prompts are read in chunks (`prefill_chunk`, `zoo.inference.prefill`).
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Int, Key

from zoo.data import Media
from zoo.errors import UserError
from zoo.inference.constraint import ImageOutput, advance, constrain, first_state
from zoo.inference.media_prompts import check_media, media_contents, padded_media
from zoo.inference.model import LanguageModel, Structure, take_apart
from zoo.inference.prefill import OnChunk, Prefilled, prefill_in_chunks
from zoo.inference.prompts import check_mask, check_seed, check_tokens, positions_of, row_keys
from zoo.inference.sampling import Sampling, sample
from zoo.parallel import ShardingRules, activation_sharding, axis_divisions
from zoo.parallel.sharding import activation_context

BLOCK = 16
"""Most decode steps of one call of the compiled program."""

STREAM_SECONDS = 0.05
"""With a callback, tokens arrive at least this often, or one by one."""

INFERENCE_RULES = ShardingRules(embed=None, mlp_in="tensor")
"""Of generation on a mesh: devices of one sequence hold whole parameters, which each step would gather otherwise."""


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
    written: Int[Array, "b"] | None = None
    """Codes written in the open image of each row (`zoo.inference.constraint`); None where no images are written."""


class Programs(NamedTuple):
    """The compiled functions of one model structure."""

    prefill: Callable[..., tuple[Any, Last]]
    """(arrays, tokens, positions, segment_ids, keys, stops, media, written, cache_length=, cache_dtype=) -> (cache,
    last)"""
    begin: Callable[..., Last]
    """(logits, positions of the next tokens, keys, stops, written) -> last, after a prefill in chunks"""
    decode: Callable[..., tuple[Any, Last, Int[Array, "b BLOCK"]]]
    """(arrays, cache [donated], last, keys, stops, steps) -> (cache, last, the tokens of these steps, then pad_id)"""


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
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    media: Media | None = None,
    image_output: ImageOutput | None = None,
    prefill_chunk: int | None = None,
    on_chunk: OnChunk | None = None,
    cache_dtype: DTypeLike | None = None,
) -> Int[np.ndarray, "b n"]:
    """The `max_new_tokens` tokens after each prompt, int32; after a row's stop token (which is kept) pad_id.

    Prompts of unequal length are left-padded (`left_pad`): mask 0 = padding, positions count from the first real token.
    With `stop_tokens=()` nothing stops a row. `on_token` is called with the newest token of every row, int32 [B], once
    for each step until all rows have stopped. What is drawn for a prompt depends on the seed and the prompt, not on the
    batch it is in (`row_keys`); images and recordings are part of the prompt.

    `media` are the prompts' images and recordings (`load_media_prompt`; `stack_prompts` for several). `image_output`
    says which tokens are words and how images are written: each begins with image_begin, has exactly so many codes and
    then image_end; a prompt that ends in image_begin is continued by an image. With codes_per_image = 0 only words are
    drawn. Without it any id may be drawn, also one that is no word of the tokenizer.

    On a `mesh` (that of `zoo.load`), or inside of `activation_sharding`, devices share the work by `rules`, by default
    `INFERENCE_RULES`. Prompts are padded to a multiple of the devices that share a sequence; the result is the same.

    With `prefill_chunk` prompts are read in chunks of so many tokens, which bounds the memory that this takes; the
    result is the same. `on_chunk(tokens read, tokens in all)` is called after each. `cache_dtype` is that of the keys
    and values that are kept, default the compute dtype; "int8" has a scale for each token and head.

    Raises:
      UserError: tokens outside the vocabulary, a mask that is not left-padding, max_new_tokens below 1; media that the
        model has no encoder for, of other rows than the tokens, or whose slots name soft tokens that there are not; a
        prompt that ends in an image which cannot be completed; with `prefill_chunk` devices that share a
        sequence.
    """
    if mesh is not None:
        with activation_sharding(mesh, rules or INFERENCE_RULES):
            return generate(
                model,
                tokens,
                mask,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                stop_tokens=stop_tokens,
                seed=seed,
                on_token=on_token,
                pad_id=pad_id,
                media=media,
                image_output=image_output,
                prefill_chunk=prefill_chunk,
                on_chunk=on_chunk,
                cache_dtype=cache_dtype,
            )
    if max_new_tokens < 1:
        raise UserError(f"max-new-tokens must be at least 1, got {max_new_tokens}")
    check_seed(seed)
    options = _Options(max_new_tokens, sampling, tuple(stop_tokens), seed, on_token, pad_id, image_output)
    if prefill_chunk is not None:
        kept: dict[str, Any] = dict(room=max_new_tokens - 1, cache_dtype=cache_dtype)
        read = prefill_in_chunks(model, tokens, mask, chunk=prefill_chunk, on_chunk=on_chunk, media=media, **kept)
        return _generate_after(model, read, options)
    tokens = check_tokens(tokens, model.config.vocab_size)
    mask = check_mask(mask, tokens, left=True)
    check_media(media, model.config, mask)
    written = first_state(image_output, tokens, mask, model.config.vocab_size)
    keys = row_keys(seed, tokens, mask, media_contents(media, len(tokens)))
    missing = -tokens.shape[1] % axis_divisions("length")
    columns = ((0, 0), (missing, 0))
    tokens, mask = np.pad(tokens, columns, constant_values=pad_id), np.pad(mask, columns)
    padded = not mask.all()
    structure, arrays = take_apart(model)
    programs = _programs(structure, sampling, pad_id, activation_context.get(), image_output)
    stops = np.asarray(sorted(set(stop_tokens)), np.int32)
    cache, last = programs.prefill(
        arrays,
        tokens,
        positions_of(mask),
        mask if padded else None,
        keys,
        stops,
        padded_media(media, missing),
        written,
        # The last token is drawn, never attended to.
        cache_length=tokens.shape[1] + max_new_tokens - 1,
        cache_dtype=None if cache_dtype is None else jnp.dtype(cache_dtype),
    )
    return _draw_rest(programs, arrays, cache, last, keys, stops, options)


def generate_after(
    model: LanguageModel,
    prefilled: Prefilled,
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    stop_tokens: Sequence[int] = (),
    seed: int = 0,
    on_token: Callable[[Int[np.ndarray, "b"]], None] | None = None,
    pad_id: int = 0,
    image_output: ImageOutput | None = None,
) -> Int[np.ndarray, "b n"]:
    """What `generate` draws after prompts that were read by `prefill_in_chunks`. It uses up their cache: score answers
    before. Raises UserError for more new tokens than the cache has room for (the last one needs none)."""
    check_seed(seed)
    if not 1 <= max_new_tokens <= prefilled.room + 1:
        raise UserError(f"max-new-tokens must lie in 1 .. {prefilled.room + 1}, got {max_new_tokens}")
    options = _Options(max_new_tokens, sampling, tuple(stop_tokens), seed, on_token, pad_id, image_output)
    return _generate_after(model, prefilled, options)


class _Options(NamedTuple):
    """What `generate` was asked for."""

    max_new_tokens: int
    sampling: Sampling
    stop_tokens: tuple[int, ...]
    seed: int
    on_token: Callable[[Int[np.ndarray, "b"]], None] | None
    pad_id: int
    image_output: ImageOutput | None


def _generate_after(model: LanguageModel, prefilled: Prefilled, options: _Options) -> Int[np.ndarray, "b n"]:
    tokens, mask = prefilled.tokens, prefilled.mask
    written = first_state(options.image_output, tokens, mask, model.config.vocab_size)
    keys = row_keys(options.seed, tokens, mask, prefilled.contents)
    structure, arrays = take_apart(model)
    programs = _programs(structure, options.sampling, options.pad_id, activation_context.get(), options.image_output)
    stops = np.asarray(sorted(set(options.stop_tokens)), np.int32)
    last = programs.begin(prefilled.logits, mask.sum(1, dtype=np.int32), keys, stops, written)
    return _draw_rest(programs, arrays, prefilled.cache, last, keys, stops, options)


def _draw_rest(
    programs: Programs, arrays, cache, last: Last, keys, stops: Int[np.ndarray, "s"], options: _Options
) -> Int[np.ndarray, "b n"]:
    """All new tokens, of which the first was drawn; see `generate`."""
    max_new_tokens, on_token, rows = options.max_new_tokens, options.on_token, len(last.tokens)
    new_tokens = np.full((rows, max_new_tokens), options.pad_id, np.int32)
    stopped = np.zeros(rows, bool)
    running, done = 1, 0  # steps of the block that is on its way, steps whose tokens were fetched
    block = last.tokens[:, None]
    block_steps = BLOCK if on_token is None else 1
    fetched_at = time.perf_counter()
    while not stopped.all() and done < max_new_tokens:
        fetched, steps = block, running
        running = min(block_steps, max_new_tokens - done - steps)
        if running:
            cache, last, block = programs.decode(arrays, cache, last, keys, stops, running)
        new_tokens[:, done : done + steps] = np.asarray(fetched)[:, :steps]
        for step in range(done, done + steps):
            if on_token is not None and not stopped.all():
                on_token(new_tokens[:, step])
            stopped |= np.isin(new_tokens[:, step], stops)
        if on_token is not None and done:  # the first block waits for compilation
            seconds = (time.perf_counter() - fetched_at) / steps
            block_steps = int(np.clip(STREAM_SECONDS / seconds, 1, BLOCK))
        done, fetched_at = done + steps, time.perf_counter()
    return new_tokens


@functools.lru_cache(maxsize=32)
def _programs(
    structure: Structure,
    sampling: Sampling,
    pad_id: int,
    context: tuple[Mesh, ShardingRules] | None = None,
    image_output: ImageOutput | None = None,
) -> Programs:
    """Traced at their first call, inside of the `activation_sharding` that `context` tells apart."""

    def draw(logits, keys: Key[Array, "b"], step, stopped, stops: Int[Array, "s"], written):
        step_keys = None if sampling.temperature == 0 else jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        if image_output is not None:
            logits = constrain(image_output, written, logits)
        tokens = jnp.where(stopped, pad_id, sample(logits, step_keys, sampling))
        if image_output is not None:
            written = advance(image_output, written, tokens)
        return tokens, stopped | (tokens[:, None] == stops).any(-1), written

    @functools.partial(jax.jit, static_argnames=("cache_length", "cache_dtype"))
    def prefill(
        arrays, tokens, positions, segment_ids, keys, stops, media=None, written=None, *, cache_length, cache_dtype=None
    ):
        model = structure.restore(arrays)
        hidden, cache = model.hidden_states(
            tokens,
            positions=positions,
            segment_ids=segment_ids,
            media=media,
            cache=model.init_cache(len(tokens), cache_length, cache_dtype),
        )
        # Only the last position's logits: [B, T, V] would be the largest array by far.
        logits = model.logits(hidden[:, -1:])[:, 0]
        return cache, begin(logits, positions[:, -1] + 1, keys, stops, written)

    @jax.jit
    def begin(logits, positions, keys, stops, written):
        step = jnp.zeros((), jnp.int32)
        drawn, stopped, written = draw(logits, keys, step, jnp.zeros(len(logits), bool), stops, written)
        return Last(drawn, positions, step + 1, stopped, written)

    @functools.partial(jax.jit, donate_argnums=1)
    def decode(arrays, cache, last: Last, keys, stops, steps):
        model = structure.restore(arrays)
        first = last.step

        def go_on(carry):
            _, last, _ = carry
            return (last.step - first < steps) & ~last.stopped.all()

        def step(carry):
            cache, last, block = carry
            hidden, cache = model.hidden_states(last.tokens[:, None], positions=last.positions[:, None], cache=cache)
            logits = model.logits(hidden)[:, 0]
            drawn, stopped, written = draw(logits, keys, last.step, last.stopped, stops, last.written)
            block = jax.lax.dynamic_update_slice_in_dim(block, drawn[:, None], last.step - first, axis=1)
            return cache, Last(drawn, last.positions + 1, last.step + 1, stopped, written), block

        block = jnp.full((len(last.tokens), BLOCK), pad_id, jnp.int32)
        return jax.lax.while_loop(go_on, step, (cache, last, block))

    return Programs(prefill, begin, decode)
