"""The tokenizer of runs that read no text (`MediaConfig.image_side`): ids of what surrounds media, and no words."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from zoo.data.tokenizer import Tokenizer
from zoo.errors import UserError


class NoText(Tokenizer):
    """Padding, end and beginning of a document. It is not saved with a run: there is nothing to know about it."""

    vocab_size, pad_id, eos_id, bos_id = 3, 0, 1, 2

    def __init__(self) -> None:
        super().__init__(b"no text")

    def id_of(self, piece: str) -> int | None:
        return None

    def decode(self, ids: Sequence[int]) -> str:
        return ""

    @cached_property
    def _token_strings(self) -> list[bytes]:
        return [b""] * self.vocab_size

    @cached_property
    def _control(self) -> dict[str, int]:
        return {}

    def _encode(self, text: str) -> list[int]:
        if text:
            raise UserError("this run reads images and no text")
        return []

    def _save_model(self, folder: Path) -> None:
        raise UserError("a run that reads no text has no tokenizer of text to save")
