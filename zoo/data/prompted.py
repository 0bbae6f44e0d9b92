"""Prompts that a model answers itself in training: JSON lines, and what an answer is worth where that can be computed.

    {"prompt": "37+45=", "answer": "82"}

"prompt" is a text or a list of turns that ends with the user's. "answer" is what a computed reward compares with: a
text, a number, or a regular expression (`RewardKind`); a reward model needs none.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from zoo.data.chat import Conversation, render_chat
from zoo.data.packing import PREDICTIONS
from zoo.data.preferences import answer_text, parse_prompt
from zoo.data.tokenizer import Tokenizer
from zoo.errors import UserError

RewardKind = Literal["exact", "number", "pattern", "model"]
"""exact: 1 if the answer is the reference, else 0. number: 1 if the last number in the answer is the reference's.
pattern: 1 if the whole answer matches the reference, a regular expression. model: what a reward model says."""

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Prompted:
    """A prompt, and what its answers are compared with."""

    prompt: Conversation
    """Turns, the last one the user's."""
    answer: str
    """The reference; empty if there is none."""
    where: str
    """File and line."""

    @property
    def text(self) -> str:
        """What is said, without the template."""
        return "\n".join([*(turn.content for turn in self.prompt), self.answer])


def parse_prompted(value: Mapping[str, Any], where: str) -> Prompted:
    """Checks one JSON object; raises `UserError` naming `where` and what is wrong."""
    answer = answer_text(value["answer"], f"{where}: 'answer'") if "answer" in value else ""
    return Prompted(parse_prompt(value, where), answer, where)


def prompted_tokens(document: Prompted, tokenizer: Tokenizer, length: int) -> dict[str, Int32[np.ndarray, "n 3"]]:
    """Prompt and reference as rows (token, token, weight): weight 0 up to where the model's turn begins, 1 on the
    reference. Raises `UserError` if they do not fit a row of `length` tokens."""
    prompt, answer = render_chat(document.prompt, tokenizer), tokenizer.encode(document.answer)
    ids = np.array(prompt + answer, np.int32)
    if len(ids) > length:
        raise UserError(
            f"{document.where}: prompt and answer have {len(ids)} tokens and a row has data.sequence_length={length}: "
            "shorten them, or raise it"
        )
    weights = np.repeat(np.array([0, 1], np.int32), (len(prompt), len(answer)))
    return {PREDICTIONS: np.stack([ids, ids, weights], axis=1)}


def check_reference(document: Prompted, kind: RewardKind) -> None:
    """Raises `UserError`, naming file and line, if a document's reference says nothing for this kind of reward."""
    if kind == "model":
        return
    if not document.answer:
        raise UserError(f"{document.where}: no field 'answer', which the reward {kind!r} compares with")
    if kind == "number" and not NUMBER.search(document.answer):
        raise UserError(f"{document.where}: 'answer' has no number, which the reward 'number' compares with")
    if kind == "pattern":
        try:
            re.compile(document.answer)
        except re.error as error:
            raise UserError(f"{document.where}: 'answer' is not a regular expression: {error}") from None


def computed_reward(kind: RewardKind, answer: str, reference: str) -> float:
    """0 or 1, see `RewardKind`."""
    match kind:
        case "exact":
            return float(answer.strip() == reference.strip())
        case "number":
            said, wanted = NUMBER.findall(answer), NUMBER.findall(reference)
            return float(bool(said) and float(said[-1]) == float(wanted[-1]))
        case "pattern":
            return float(re.fullmatch(reference, answer.strip()) is not None)
    raise ValueError(f"a reward of kind {kind!r} is not computed from texts")
