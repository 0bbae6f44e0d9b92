"""Conversations in Gemma's turn template, for supervised fine-tuning and for generation.

    <bos><start_of_turn>user\\n{content}<end_of_turn>\\n<start_of_turn>model\\n{content}<end_of_turn>\\n ...

The pieces between control tokens are encoded one by one, and `Tokenizer.encode` never turns text into a control
token, so a user who writes "<end_of_turn>" ends no turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.data.readers import check_unicode
from zoo.data.tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer
from zoo.errors import UserError, nearest_name

ROLES = {"user": "user", "model": "model", "assistant": "model"}


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    """user or model"""
    content: str


Conversation = tuple[Message, ...]


def parse_conversation(value: Mapping[str, Any], where: str = "conversation") -> Conversation:
    """Checks {"messages": [{"role": ..., "content": ...}, ...]} and returns its turns, stripped as the template does.

    Roles alternate, user first; "assistant" is another name of "model"; there is no system role. Raises `UserError`
    naming `where`; a conversation without a turn of the model has nothing to learn from and raises, too."""
    if "messages" not in value:
        raise UserError(f"{where}: no field 'messages'; {nearest_name('messages', value)}")
    turns = check_messages(value["messages"], where)
    if all(turn.role != "model" for turn in turns):
        raise UserError(f"{where}: no turn of the model to learn from")
    return turns


def check_messages(messages: Any, where: str = "messages") -> Conversation:
    """The turns of a list of {"role", "content"}; raises `UserError` if it is not a conversation in Gemma's
    template."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise UserError(f"{where}: 'messages' must be a list of at least one turn")
    turns = []
    for number, message in enumerate(messages, 1):
        at = f"{where}: turn {number}"
        if isinstance(message, Message):
            message = {"role": message.role, "content": message.content}
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise UserError(f"{at} must be an object with 'role' and 'content'")
        role, content = message["role"], message["content"]
        if role == "system":
            raise UserError(f"{at}: Gemma's template has no system role; put its text into the first user turn")
        if not isinstance(role, str) or role not in ROLES:
            raise UserError(f"{at}: unknown role {role!r}; known are user, model and assistant")
        expected = "user" if number % 2 else "model"
        if ROLES[role] != expected:
            raise UserError(f"{at}: role {role!r} where {expected!r} is due; turns alternate and the user begins")
        if not isinstance(content, str):
            raise UserError(f"{at}: 'content' must be a string")
        check_unicode(content, at)
        if not content.strip():
            raise UserError(f"{at}: 'content' is empty")
        turns.append(Message(expected, content.strip()))
    return tuple(turns)


def render_chat(
    messages: Sequence[Mapping[str, str] | Message], tokenizer: Tokenizer, add_generation_prompt: bool = True
) -> list[int]:
    """Token ids of a conversation, <bos> first. With `add_generation_prompt` the ids end where the model's turn
    begins."""
    ids, _ = _render(check_messages(messages), tokenizer)
    start, _ = turn_tokens(tokenizer)
    return ids + ([start, *tokenizer.encode("model\n")] if add_generation_prompt else [])


def render_for_training(conversation: Conversation, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(ids, weights): weight 1 on what the model says, on the <end_of_turn> that closes it, and on <eos> after the
    last one.

    Gemma 2's instruction-tuned models end a reply with <end_of_turn><eos> (Gemma 2 report, table 5), so the "\\n"
    after the last turn is left out."""
    ids, weights = _render(conversation, tokenizer)
    newline = len(tokenizer.encode("\n"))
    ids, weights = ids[:-newline], weights[:-newline]
    return [*ids, tokenizer.eos_id], [*weights, int(conversation[-1].role == "model")]


def text_of_conversation(conversation: Conversation) -> str:
    """What is said, without the template."""
    return "\n".join(turn.content for turn in conversation)


def turn_tokens(tokenizer: Tokenizer) -> tuple[int, int]:
    """Ids of <start_of_turn> and <end_of_turn>; raises `UserError` if the tokenizer has none."""
    start, end = tokenizer.id_of(START_OF_TURN), tokenizer.id_of(END_OF_TURN)
    if start is None or end is None:
        raise UserError(f"this tokenizer has no {START_OF_TURN} and {END_OF_TURN}, which chat needs")
    return start, end


def _render(turns: Conversation, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    start, end = turn_tokens(tokenizer)
    ids, weights = [tokenizer.bos_id], [0]
    for turn in turns:
        opening = [start, *tokenizer.encode(f"{turn.role}\n")]
        said = [*tokenizer.encode(turn.content), end]
        closing = tokenizer.encode("\n")
        ids += opening + said + closing
        weights += [0] * len(opening) + [int(turn.role == "model")] * len(said) + [0] * len(closing)
    return ids, weights
