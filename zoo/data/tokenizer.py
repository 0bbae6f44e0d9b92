"""Text to token ids and back.

What every tokenizer here promises: `encode` never makes a control token out of text, `decode` gives back what was
encoded (exactly, for tokenizers that are lossless), and `num_bytes` counts the bytes that ids stand for, so that
losses of models with different tokenizers can be compared in bits per byte."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from zoo.errors import UserError

START_OF_TURN = "<start_of_turn>"
END_OF_TURN = "<end_of_turn>"


class Tokenizer(ABC):
    """Common part of the tokenizers; see `load_tokenizer` and `train_tokenizer`."""

    vocab_size: int
    pad_id: int
    bos_id: int
    eos_id: int

    def __init__(self, data: bytes, companions: Sequence[Path] = ()):
        self._data = data
        self._companions = tuple(companions)

    @abstractmethod
    def id_of(self, piece: str) -> int | None:
        """The id of a piece of the vocabulary, None if there is no such piece."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids. Padding, BOS and EOS have none; an id beyond the vocabulary reads as the unknown token."""

    def token_strings(self) -> list[bytes]:
        """The bytes that each id stands for; control tokens stand for none."""
        return self._token_strings

    @cached_property
    @abstractmethod
    def _token_strings(self) -> list[bytes]: ...

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS; may hold control tokens if the text spells them."""

    @abstractmethod
    def _save_model(self, folder: Path) -> None: ...

    @cached_property
    @abstractmethod
    def _control(self) -> dict[str, int]:
        """Control tokens that `_encode` would recognise in a text."""

    def encode(self, text: str, bos: bool = False, eos: bool = False, parse_special: bool = False) -> list[int]:
        """Ids of `text`, with BOS and EOS if asked for.

        A text that spells a control token ("<end_of_turn>") is encoded as the characters that it is, unless
        `parse_special` says that the text is a prompt in which control tokens are meant."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the text has a lone surrogate at character {error.start}; it is not Unicode") from None
        ids = self._encode_parsed(text) if parse_special else self._encode_safely(text)
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def token_bytes(self) -> Int32[np.ndarray, " vocab"]:
        """Number of bytes that each id stands for."""
        return self._token_bytes

    def num_bytes(self, ids: Sequence[int] | Int32[np.ndarray, "..."]) -> int:
        """Bytes of UTF-8 that `ids` stand for: 1 for a byte token, 0 for a control token."""
        return int(self._token_bytes[np.asarray(ids, np.int64)].sum())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model file, in hexadecimal."""
        return hashlib.sha256(self._data).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes the model file into `folder`, and the tokenizer files that lay beside it when it was loaded."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for companion in self._companions:
            (folder / companion.name).write_bytes(companion.read_bytes())
        self._save_model(folder)

    @cached_property
    def _token_bytes(self) -> Int32[np.ndarray, " vocab"]:
        return np.array([len(string) for string in self._token_strings], np.int32)

    @cached_property
    def _spelled(self) -> dict[int, list[int]]:
        """For each control token the ids of the characters of its name."""
        return {id: [i for character in name for i in self._spell(character)] for name, id in self._control.items()}

    def _spell(self, character: str) -> list[int]:
        found = self.id_of(character)
        if found is not None:
            return [found]
        pieces = [self.id_of(f"<0x{byte:02X}>") for byte in character.encode()]
        if None in pieces:
            raise UserError(f"this tokenizer has no piece for {character!r}")
        return pieces  # type: ignore[return-value]

    def _encode_safely(self, text: str) -> list[int]:
        ids = self._encode(text)
        if self._control and not self._spelled.keys().isdisjoint(ids):
            ids = [i for id in ids for i in self._spelled.get(id, (id,))]
        return ids

    def _encode_parsed(self, text: str) -> list[int]:
        names = self._control | {name: id for name in self._end_names() if (id := self.id_of(name)) is not None}
        if not names:
            return self._encode_safely(text)
        parts = re.split("(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + ")", text)
        return [i for part in parts if part for i in ([names[part]] if part in names else self._encode_safely(part))]

    def _end_names(self) -> tuple[str, ...]:
        return ("<bos>", "<eos>")
