"""Token ids to text as they arrive."""

from collections.abc import Iterable

from zoo.data.tokenizer import Tokenizer

MOST_BYTES = 4
"""Bytes of the longest UTF-8 character: more tokens than that never wait for one character."""


class TextStream:
    """Text of a growing sequence of ids: a character of several bytes appears when its last byte has arrived."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        # Decoded along with the newest ids, so that a leading space is kept; already shown.
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete."""
        self._pending.extend(int(i) for i in ids)
        text = self._pending_text()
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(self._pending) < MOST_BYTES:
            return ""
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """What is left, complete or not."""
        text, self._context, self._pending = self._pending_text(), [], []
        return text

    def _pending_text(self) -> str:
        if not self._pending:
            return ""
        shown = self._tokenizer.decode(self._context) if self._context else ""
        return self._tokenizer.decode(self._context + self._pending)[len(shown) :]
