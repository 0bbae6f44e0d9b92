"""SentencePiece models: reading them, and training one with Gemma's conventions."""

import io
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import sentencepiece

from zoo.data.tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer
from zoo.errors import UserError

SPACE = "\u2581"  # how a piece writes a space
SAMPLE_CHARACTERS = 2000


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (BPE or unigram)."""

    def __init__(self, data: bytes, companions: Sequence[Path] = ()):
        """Raises ValueError if `data` is no SentencePiece model."""
        super().__init__(data, companions)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(data)
            self.vocab_size = self._processor.vocab_size()
        except (RuntimeError, OSError) as error:
            raise ValueError(str(error)) from None
        if self.vocab_size == 0:
            raise ValueError("the vocabulary is empty")
        self.eos_id = self._processor.eos_id()
        if self.eos_id < 0:
            raise ValueError("the model has no end-of-sequence token")
        self._unknown_id = self._processor.unk_id()
        # Some models (T5's) have no BOS; a document then begins with what ends the one before it.
        self.bos_id = self._processor.bos_id() if self._processor.bos_id() >= 0 else self.eos_id
        self.pad_id = self._processor.pad_id() if self._processor.pad_id() >= 0 else 0
        self._has_bytes = self.id_of("<0xE2>") is not None
        self._dummy_prefix = self._processor.id_to_piece(self._processor.encode("a")[0]).startswith(SPACE)

    @property
    def serialized(self) -> bytes:
        """The content of its tokenizer.model."""
        return self._data

    def id_of(self, piece: str) -> int | None:
        found = self._processor.piece_to_id(piece)
        return None if found == self._unknown_id and self._processor.id_to_piece(found) != piece else found

    def decode(self, ids: Sequence[int]) -> str:
        known = range(self.vocab_size)
        return self._processor.decode([int(id) if int(id) in known else self._unknown_id for id in ids])

    @cached_property
    def _token_strings(self) -> list[bytes]:
        control = set(self._control.values())
        return [b"" if id in control else self._string(id) for id in range(self.vocab_size)]

    def num_bytes(self, ids) -> int:
        """As `Tokenizer.num_bytes`; the space that some models put before a text is not counted if `ids` begin with
        it."""
        count = super().num_bytes(ids)
        if self._dummy_prefix:
            first = next((int(i) for i in ids if self._token_bytes[i]), None)
            count -= first is not None and self._processor.id_to_piece(first).startswith(SPACE)
        return count

    def _string(self, id: int) -> bytes:
        processor = self._processor
        if processor.is_control(id) or processor.is_unknown(id) or processor.is_unused(id):
            return b""
        piece = processor.id_to_piece(id)
        if processor.is_byte(id):
            return bytes([int(piece[3:-1], 16)])
        return piece.replace(SPACE, " ").encode()

    def _encode(self, text: str) -> list[int]:
        # A text's own U+2581 would come back as a space; as three byte tokens it comes back as itself.
        if not (self._has_bytes and not self._dummy_prefix and SPACE in text):
            return self._processor.encode(text)
        ids = []
        for number, part in enumerate(text.split(SPACE)):
            ids += self._space_mark if number else []
            ids += self._processor.encode(part) if part else []
        return ids

    @cached_property
    def _space_mark(self) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]

    @cached_property
    def _control(self) -> dict[str, int]:
        names = (START_OF_TURN, END_OF_TURN)
        return {name: id for name in names if (id := self.id_of(name)) is not None}

    def _save_model(self, folder: Path) -> None:
        (folder / "tokenizer.model").write_bytes(self._data)


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str | Path | None = None) -> SentencePieceTokenizer:
    """Trains a BPE tokenizer on all of `texts` and writes it to the file `path`, if one is given.

    Gemma's conventions: bytes as a fallback, digits alone, no space put before a text, no normalisation, runs of
    white space kept; pad 0, eos 1, bos 2, unk 3, then the two turn tokens. Newlines are learned like any character.
    Pieces of up to `SAMPLE_CHARACTERS` are learned from one at a time; a few megabytes take seconds. The same texts
    give the same file. Raises `UserError` if there is too little text for the vocabulary."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_samples(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            eos_piece="<eos>",
            bos_piece="<bos>",
            user_defined_symbols=[START_OF_TURN, END_OF_TURN],
            max_sentence_length=8 * SAMPLE_CHARACTERS,  # in bytes; longer ones would be left out
            num_threads=1,  # the count of threads must not reach the result
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(f"a vocabulary of {vocab_size:,} tokens cannot be trained: {_reason(str(error))}") from None
    tokenizer = SentencePieceTokenizer(model.getvalue())
    if path is not None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.getvalue())
    return tokenizer


def _samples(texts: Iterable[str]) -> Iterator[str]:
    """Stretches of whole lines of up to SAMPLE_CHARACTERS; longer lines are cut."""
    for text in texts:
        start = 0
        while start < len(text):
            stop = start + SAMPLE_CHARACTERS
            newline = text.rfind("\n", start, stop)
            if stop < len(text) and newline >= 0:
                stop = newline + 1
            yield text[start:stop]
            start = stop


def _reason(message: str) -> str:
    """SentencePiece's own words, less the place in its source."""
    if "too high" in message:
        most = message.rsplit("<=", 1)[-1].strip(" .")
        return f"the text is too small for it (it gives at most {most} tokens)"
    if "smaller than required_chars" in message:
        return "it is smaller than 256 bytes, 6 control tokens and the characters of the text together"
    if "sentences_" in message or "empty" in message:
        return "there is no text to train on"
    return " ".join(message.split())
