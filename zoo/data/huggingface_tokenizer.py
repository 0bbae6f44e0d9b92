"""Hugging Face tokenizer.json files, through the `tokenizers` package (optional)."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from zoo.data.tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer
from zoo.errors import UserError

# Where no configuration beside the file says it, these names are tried in this order.
KNOWN_NAMES = {
    "bos_token": ("<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>", "[CLS]"),
    "eos_token": ("<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>", "[SEP]"),
    "pad_token": ("<pad>", "[PAD]"),
}


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json: BPE with byte fallback (Gemma, Llama 2), byte-level BPE (GPT-2, Llama 3), WordPiece (BERT)."""

    def __init__(self, data: bytes, companions: Sequence[Path] = ()):
        """Raises ValueError if `data` is no such file, `UserError` if `tokenizers` is not installed."""
        super().__init__(data, companions)
        try:
            import tokenizers
        except ImportError:
            raise UserError("reading tokenizer.json needs the tokenizers package: pip install '.[hf]'") from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode())
        except Exception as error:  # what this package raises is a bare Exception
            raise ValueError(str(error)) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        settings = _special_names(companions)
        eos = self._special_id("eos_token", settings)
        if eos is None:
            raise ValueError("no end-of-sequence token: neither named in tokenizer_config.json nor a known one")
        self.eos_id = eos
        bos, pad = self._special_id("bos_token", settings), self._special_id("pad_token", settings)
        self.bos_id = eos if bos is None else bos
        self.pad_id = 0 if pad is None else pad

    def id_of(self, piece: str) -> int | None:
        return self._tokenizer.token_to_id(piece)

    def decode(self, ids: Sequence[int]) -> str:
        silent = {self.pad_id, self.bos_id, self.eos_id}
        kept = [id for i in ids if (id := int(i)) not in silent]
        if any(not 0 <= id < self.vocab_size for id in kept):
            parts, unknown = [], "\ufffd"
            for id in kept:
                parts.append(self._tokenizer.decode([id]) if 0 <= id < self.vocab_size else unknown)
            return "".join(parts)
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    @cached_property
    def _token_strings(self) -> list[bytes]:
        """Raises `UserError` for decoders whose tokens are no plain stretches of text."""
        kinds = _decoder_kinds(json.loads(self._tokenizer.to_str()).get("decoder"))
        if "ByteLevel" in kinds:
            to_bytes = _from_byte_level
        elif "ByteFallback" in kinds:
            to_bytes = _from_byte_fallback
        else:
            raise UserError(
                f"bits per byte are not defined for a tokenizer with the decoder {' + '.join(kinds) or 'none'}"
            )
        added = self._tokenizer.get_added_tokens_decoder()
        strings = []
        for id in range(self.vocab_size):
            piece = self._tokenizer.id_to_token(id)
            if piece is None or (id in added and added[id].special) or piece in (START_OF_TURN, END_OF_TURN):
                strings.append(b"")
            else:
                strings.append(piece.encode() if id in added else to_bytes(piece))
        return strings

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    @cached_property
    def _control(self) -> dict[str, int]:
        added = self._tokenizer.get_added_tokens_decoder()
        turns = (START_OF_TURN, END_OF_TURN)
        names = {token.content: id for id, token in added.items() if token.special or token.content in turns}
        model = json.loads(self._tokenizer.to_str())["model"]
        if model["type"] == "WordPiece":  # words that it does not know are read as this one: that is no mistake
            names.pop(model["unk_token"], None)
        return names

    def _spell(self, character: str) -> list[int]:
        try:
            return super()._spell(character)
        except UserError:
            return self._encode(character)

    def _special_id(self, role: str, settings: dict[str, str]) -> int | None:
        names = (settings[role],) if role in settings else KNOWN_NAMES[role]
        return next((id for name in names if (id := self.id_of(name)) is not None), None)

    def _save_model(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_bytes(self._data)


def _special_names(companions: Sequence[Path]) -> dict[str, str]:
    """bos_token, eos_token and pad_token as the files beside tokenizer.json name them."""
    names: dict[str, str] = {}
    for companion in sorted(companions, key=lambda path: path.name != "tokenizer_config.json", reverse=True):
        if companion.name not in ("tokenizer_config.json", "special_tokens_map.json"):
            continue
        try:
            settings = json.loads(companion.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{companion}: not readable as JSON: {error}") from None
        for role in KNOWN_NAMES:
            value: Any = settings.get(role)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                names[role] = value
    return names


def _decoder_kinds(decoder: dict[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [kind for inner in decoder["decoders"] for kind in _decoder_kinds(inner)]
    return [decoder["type"]]


def _from_byte_fallback(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


def _from_byte_level(piece: str) -> bytes:
    return bytes(_BYTE_OF_CHARACTER[character] for character in piece)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 characters stand for themselves, the others for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_level_alphabet()
