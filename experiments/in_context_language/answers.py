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

LENGTH_STEP = 64
"""Prompts are padded to a multiple of this, so that those of similar length share a compiled program."""


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
    for rows in _batches([len(row) for row in ids], batch_size):
        tokens, mask = left_pad([ids[row] for row in rows], model.config.pad_token_id, LENGTH_STEP)
        drawn = generate(
            model,
            tokens,
            mask,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop_tokens=stops,
            seed=seed,
            pad_id=model.config.pad_token_id,
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


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Rows of similar length together."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    for first in range(0, len(order), size):
        yield order[first : first + size]
