"""Prompts as the arrays that prefill takes: left-padded tokens with their mask, checked; one random key per prompt."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from zoo.errors import UserError


def check_seed(seed: int) -> None:
    """Raises UserError for a seed that makes no key."""
    if not 0 <= seed < 2**31:
        raise UserError(f"seed must lie in 0 .. 2^31 - 1, got {seed}")


def left_pad(
    prompts: Sequence[Sequence[int]], pad_id: int = 0, multiple: int = 1
) -> tuple[Int[np.ndarray, "b t"], Int[np.ndarray, "b t"]]:
    """(tokens, mask), int32, of prompts of unequal length: padding (mask 0) on the left, all rows end together.

    T is the longest prompt rounded up to `multiple`; a multiple above 1 lets prompts of similar length share a compiled
    program. Raises UserError for no prompts or an empty one.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise UserError("a prompt has no tokens: give every prompt at least one")
    length = -(-max(map(len, prompts)) // multiple) * multiple
    tokens = np.full((len(prompts), length), pad_id, np.int32)
    mask = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return tokens, mask


def check_tokens(tokens, vocab_size: int | None = None, name: str = "tokens") -> Int[np.ndarray, "b t"]:
    """`tokens` as an int32 matrix; UserError unless they are a non-empty integer [B, T], 0 <= id < vocab_size."""
    tokens = np.asarray(tokens)
    if not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(f"{name}: need integer token ids, got dtype {tokens.dtype}")
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise UserError(f"{name}: need shape [batch, length], both at least 1, got {list(tokens.shape)}")
    if vocab_size is not None and (tokens.min() < 0 or tokens.max() >= vocab_size):
        bad = np.argwhere((tokens < 0) | (tokens >= vocab_size))[0]
        raise UserError(
            f"{name}: id {tokens[tuple(bad)]} at [{bad[0]}, {bad[1]}] is outside the vocabulary (0 .. {vocab_size - 1})"
        )
    return tokens.astype(np.int32)


def check_mask(
    mask, tokens: Int[np.ndarray, "b t"], name: str = "mask", *, left: bool = False
) -> Int[np.ndarray, "b t"]:
    """`mask` as an int32 matrix of tokens' shape; None = all ones.

    Raises UserError unless its values are 0 (padding) and 1, with the ones of every row in one unbroken, non-empty run,
    which ends at the last column if `left` (left-padding).
    """
    if mask is None:
        return np.ones(tokens.shape, np.int32)
    mask = np.asarray(mask)
    if mask.shape != tokens.shape:
        raise UserError(f"{name}: shape {list(mask.shape)} differs from the tokens' {list(tokens.shape)}")
    if not (np.issubdtype(mask.dtype, np.integer) or mask.dtype == bool) or not np.isin(mask, (0, 1)).all():
        raise UserError(f"{name}: need 1 for a token and 0 for padding (integers or booleans), got dtype {mask.dtype}")
    mask = mask.astype(np.int32)
    if not mask.any(axis=1).all():
        raise UserError(f"{name}: row {int(np.argmin(mask.any(axis=1)))} has no token, only padding")
    starts = np.diff(mask, axis=1, prepend=0) == 1
    if (starts.sum(axis=1) > 1).any():
        raise UserError(f"{name}: row {int(np.argmax(starts.sum(axis=1) > 1))} has padding between its tokens")
    if left and not mask[:, -1].all():
        raise UserError(f"{name}: row {int(np.argmin(mask[:, -1]))} ends with padding; prompts are padded on the left")
    return mask


def positions_of(mask: Int[np.ndarray, "b t"]) -> Int[np.ndarray, "b t"]:
    """Positions counted from the first real token of each row (0 before it)."""
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)


def row_keys(
    seed: int, tokens: Int[np.ndarray, "b t"], mask: Int[np.ndarray, "b t"], contents: Sequence[bytes] = ()
) -> Key[Array, "b"]:
    """A random key per row from the seed, the prompt's tokens and its occurrence among equal prompts of the batch.

    `contents` are what a row holds besides tokens, such as its images (`media_contents`): they make another prompt.

    So what is drawn for a prompt depends neither on its batch nor on its place in it, two different prompts share no
    noise, and a prompt that is given n times gets n different samples.
    """
    seen: Counter[bytes] = Counter()
    words = []
    for row, row_mask, content in zip(tokens, mask, contents or [b""] * len(tokens), strict=True):
        digest = hashlib.sha256(np.ascontiguousarray(row[row_mask == 1]).tobytes() + content).digest()[:4]
        words.append((int.from_bytes(digest, "little"), seen[digest]))
        seen[digest] += 1
    fold = lambda word: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), word[0]), word[1])  # noqa: E731
    return jax.vmap(fold)(jnp.asarray(words, jnp.uint32))
