"""The translations that a model gives to prompts: of any checkpoint that `zoo.load` reads."""

from collections.abc import Iterator, Sequence

import numpy as np

from experiments.in_context_language.prompts import Prompt, encode_prompt
from experiments.in_context_language.scores import first_line
from zoo.data import Message, Tokenizer, render_chat
from zoo.data.tokenizer import END_OF_TURN
from zoo.errors import UserError
from zoo.inference import Sampling, generate, left_pad
from zoo.inference.model import LanguageModel

SHORTEST = 64
"""Prompts are padded to this length or to one of two in every octave above it (96, 128, 192 ..), so that few programs
are compiled."""
MOST_TOKENS = 2**16
"""Of the padded prompts that are answered together, if one of them alone does not have more."""
CHUNK = 1024
"""Prompts of more than two of these are read in pieces of so many tokens."""


def answer(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    chat: bool = False,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    sampling: Sampling = Sampling(),
    seed: int = 0,
) -> list[str]:
    """The first line of what the model says to each prompt, in their order; greedy unless `sampling` says otherwise.

    chat: the prompt is a user's turn in Gemma's template, for instruction-tuned models; otherwise the prompt is
    continued, as in the training documents, up to the end of the line. Prompts of similar length are answered together,
    which changes no answer. Raises `UserError` for a prompt that leaves no room in the model's trained context."""
    ids = [_encode(prompt, tokenizer, chat) for prompt in prompts]
    longest, context = max(map(len, ids), default=0), model.config.max_position_embeddings
    if longest + max_new_tokens > context:
        raise UserError(
            f"a prompt of {longest:,} tokens and {max_new_tokens} new ones exceed the model's {context:,} positions; "
            "give the prompts a smaller budget"
        )
    stops = _stop_tokens(tokenizer, chat)
    answers = [""] * len(prompts)
    for rows, length in batches([len(row) for row in ids], batch_size):
        # Rows that fill a batch up are copies of the last one.
        filled = rows + rows[-1:] * (power_of_two(len(rows)) - len(rows))
        tokens, mask = left_pad([ids[row] for row in filled], model.config.pad_token_id, length)
        drawn = generate(
            model,
            tokens,
            mask,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop_tokens=stops,
            seed=seed,
            pad_id=model.config.pad_token_id,
            prefill_chunk=CHUNK if length > 2 * CHUNK else None,
        )
        for row, new in zip(rows, np.asarray(drawn)):
            answers[row] = first_line(tokenizer.decode(new.tolist()))
    return answers


def _encode(prompt: Prompt, tokenizer: Tokenizer, chat: bool) -> list[int]:
    return render_chat([Message("user", prompt.text)], tokenizer) if chat else encode_prompt(prompt, tokenizer)


def _stop_tokens(tokenizer: Tokenizer, chat: bool) -> tuple[int, ...]:
    """The end of the document or turn; without a template also every token that ends a line."""
    ends = {tokenizer.eos_id, tokenizer.id_of(END_OF_TURN)}
    if not chat:
        ends |= {number for number, string in enumerate(tokenizer.token_strings()) if b"\n" in string}
    return tuple(sorted(end for end in ends if end is not None))


def batches(lengths: Sequence[int], size: int) -> Iterator[tuple[list[int], int]]:
    """(rows, the length that they are padded to): rows of similar length together, at most `size` of them (a power
    of two), and fewer where they are so long that they would have more than MOST_TOKENS."""
    padded = [padded_length(length) for length in lengths]
    for length in sorted(set(padded)):
        rows = [row for row, found in enumerate(padded) if found == length]
        most = 1 << (max(1, min(size, MOST_TOKENS // length)).bit_length() - 1)
        for first in range(0, len(rows), most):
            yield rows[first : first + most], length


def padded_length(length: int) -> int:
    """The next of 64, 96, 128, 192, 256, 384, 512 and so on."""
    length = max(length, SHORTEST)
    step = 1 << ((length - 1).bit_length() - 2)
    return -(-length // step) * step


def power_of_two(number: int) -> int:
    """The next one."""
    return 1 << (number - 1).bit_length()
