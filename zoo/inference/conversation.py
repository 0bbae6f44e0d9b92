"""Turns typed at a terminal, and their answers."""

import sys
from collections.abc import Callable


def converse(answer: Callable[[list[dict[str, str]]], str]) -> None:
    """Reads turns and shows answers; an empty line or end of input ends the conversation, Ctrl-C an answer.

    `answer` gets the conversation so far, prints what comes next and returns it.
    """
    print("Type a message; an empty one ends the conversation.", file=sys.stderr)
    messages: list[dict[str, str]] = []
    while True:
        try:
            said = input("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            said = ""
        if not said:
            return
        messages.append({"role": "user", "content": said})
        text = ""
        try:
            text = answer(messages)
        except KeyboardInterrupt:
            print("(stopped; your message was taken back)", file=sys.stderr)
        if text.strip():
            messages.append({"role": "model", "content": text})
        else:
            messages.pop()
