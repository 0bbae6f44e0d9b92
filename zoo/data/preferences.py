"""Pairs of answers to one prompt, of which one is preferred: JSON lines, and how pairs lie in rows.

    {"prompt": "Name a prime.", "chosen": "7", "rejected": "9"}
    {"prompt": [{"role": "user", "content": "Name a prime."}], "chosen": "7", "rejected": "9"}
    {"chosen": [{"role": "user", ...}, {"role": "assistant", "content": "7"}], "rejected": [...]}

In the last form both are whole conversations that differ in their last turn only. A pair lies in one row as two
segments: 2k - 1 is the prompt with the chosen answer of the row's k-th pair, 2k the prompt with the rejected one. So a
row can be moved, sharded and cut off from others as any row, and pairs stay together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from zoo.data.batch import Batch
from zoo.data.chat import Conversation, Message, check_messages, render_chat, render_for_training
from zoo.data.packing import PREDICTIONS, stack_rows
from zoo.data.readers import check_unicode
from zoo.data.tokenizer import Tokenizer
from zoo.errors import UserError, nearest_name


@dataclass(frozen=True)
class Preference:
    """A prompt and two answers."""

    prompt: Conversation
    """Turns, the last one the user's."""
    chosen: str
    """The answer that is preferred."""
    rejected: str
    """The other one."""
    where: str
    """File and line."""

    @property
    def text(self) -> str:
        """What is said, without the template."""
        return "\n".join([*(turn.content for turn in self.prompt), self.chosen, self.rejected])


def parse_preference(value: Mapping[str, Any], where: str) -> Preference:
    """Checks one JSON object; raises `UserError` naming `where` and what is wrong."""
    for name in ("chosen", "rejected"):
        if name not in value:
            raise UserError(f"{where}: no field {name!r}; {nearest_name(name, value)}")
    whole = [isinstance(value[name], list) for name in ("chosen", "rejected")]
    if all(whole):
        prompt, chosen = _split(value["chosen"], f"{where}: chosen")
        other, rejected = _split(value["rejected"], f"{where}: rejected")
        if prompt != other:
            raise UserError(f"{where}: 'chosen' and 'rejected' answer different prompts")
    elif any(whole):
        raise UserError(f"{where}: 'chosen' and 'rejected' must both be texts or both be lists of turns")
    else:
        prompt = parse_prompt(value, where)
        chosen, rejected = (answer_text(value[name], f"{where}: {name!r}") for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise UserError(f"{where}: 'chosen' and 'rejected' are the same: there is nothing to prefer")
    return Preference(prompt, chosen, rejected, where)


def parse_prompt(value: Mapping[str, Any], where: str) -> Conversation:
    """The turns of a JSON object's field "prompt", a text or a list of turns that ends with the user's."""
    if "prompt" not in value:
        raise UserError(f"{where}: no field 'prompt'; {nearest_name('prompt', value)}")
    prompt = value["prompt"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    elif not isinstance(prompt, list):
        raise UserError(f"{where}: 'prompt' must be a text or a list of turns")
    turns = check_messages(prompt, f"{where}: prompt")
    if turns[-1].role != "user":
        raise UserError(f"{where}: 'prompt' must end with a turn of the user")
    return turns


def answer_text(value: Any, where: str) -> str:
    """A text that is not empty, stripped as the template does."""
    if not isinstance(value, str):
        raise UserError(f"{where} must be a text")
    check_unicode(value, where)
    if not value.strip():
        raise UserError(f"{where} is empty")
    return value.strip()


def _split(messages: Any, where: str) -> tuple[Conversation, str]:
    turns = check_messages(messages, where)
    if turns[-1].role != "model":
        raise UserError(f"{where}: must end with a turn of the model")
    return turns[:-1], turns[-1].content


def render_answer(prompt: Conversation, answer: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(ids, weights) of a prompt and its answer: weight 1 on the answer, the <end_of_turn> that closes it and <eos>;
    earlier turns of the model have 0."""
    ids, weights = render_for_training((*prompt, Message("model", answer)), tokenizer)
    start = len(render_chat(prompt, tokenizer))
    return ids, [0] * start + weights[start:]


def pair_predictions(document: Preference, tokenizer: Tokenizer, length: int) -> dict[str, Int32[np.ndarray, "n 5"]]:
    """Both conversations of a pair one after the other, as rows (input, target, weight, position, side); side 0 is the
    chosen one. Raises `UserError` for a pair that does not fit a row of `length` tokens."""
    parts = []
    for side, answer in enumerate((document.chosen, document.rejected)):
        ids, weights = (np.array(values, np.int32) for values in render_answer(document.prompt, answer, tokenizer))
        count = len(ids) - 1
        places = np.arange(count, dtype=np.int32)
        parts.append(np.stack([ids[:-1], ids[1:], weights[1:], places, np.full(count, side, np.int32)], axis=1))
    rows = np.concatenate(parts)
    if len(rows) > length:
        raise UserError(
            f"{document.where}: prompt and answers, twice the prompt, have {len(rows)} tokens and a row has "
            f"data.sequence_length={length}: shorten them, or raise it"
        )
    return {PREDICTIONS: rows}


def make_preference_batch(rows: Sequence[dict[str, np.ndarray]], batch_size: int, pad_id: int) -> Batch:
    """Stacks packed rows of pairs; fewer than `batch_size` are filled up with rows of padding."""
    columns = stack_rows(rows, PREDICTIONS, batch_size)
    pairs = stack_rows(rows, f"{PREDICTIONS}_segment_ids", batch_size)
    real = pairs > 0
    return Batch(
        tokens=np.where(real, columns[..., 0], pad_id).astype(np.int32),
        targets=np.where(real, columns[..., 1], pad_id).astype(np.int32),
        positions=np.where(real, columns[..., 3], 0).astype(np.int32),
        segment_ids=np.where(real, 2 * pairs - 1 + columns[..., 4], 0).astype(np.int32),
        loss_weights=(columns[..., 2] * real).astype(np.float32),
    )
