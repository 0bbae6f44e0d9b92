"""Where a generation ends: how many tokens fit, and which tokens end a row."""

from collections.abc import Sequence

from zoo.errors import UserError


def max_new_tokens(asked: int | None, longest_prompt: int, context: int, default: int) -> int:
    """How many tokens to generate after prompts of at most so many: what was asked for, or `default` as far as the
    context of the model has room. Raises UserError where there is no room for what was asked."""
    room = context - longest_prompt
    if room < 1:
        raise UserError(f"a prompt of {longest_prompt} tokens fills the model's context of {context} tokens")
    if asked is not None and asked > room:
        raise UserError(
            f"--max-new-tokens {asked} after a prompt of {longest_prompt} tokens exceeds the model's context of "
            f"{context} tokens: at most {room} fit"
        )
    return min(default, room) if asked is None else asked


def check_stop_tokens(ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """`ids`; raises UserError for one that is no token."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise UserError(f"--stop-tokens: {token} is outside the vocabulary (0 .. {vocab_size - 1})")
    return tuple(ids)


def until_stop(row: Sequence[int], stop_tokens: Sequence[int]) -> list[int]:
    """The ids before the first stop token."""
    ids = [int(token) for token in row]
    return ids[: next((i for i, token in enumerate(ids) if token in stop_tokens), len(ids))]
