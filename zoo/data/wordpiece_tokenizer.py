"""BERT's WordPiece vocabularies, through the `tokenizers` package (optional): reading a vocab.txt, and training one."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zoo.data.huggingface_tokenizer import HuggingFaceTokenizer
from zoo.errors import UserError

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
UNUSED = tuple(f"[unused{number}]" for number in range(1, 100))
"""Entries that stand for nothing, in Google's vocabularies and here, so that markers of entities have ids."""
FIRST_TOKENS = (PAD, *UNUSED, UNKNOWN, CLS, SEP, MASK)
"""Ids 0 .. 103 of Google's cased and multilingual vocabularies, and of those trained here."""
CONTINUED = "##"
"""Before a piece that is not the first one of its word."""
MOST_CHARACTERS = 1000
"""Different characters that a trained vocabulary knows, the most frequent ones; a word with another is `[UNK]`."""


class WordPieceTokenizer(HuggingFaceTokenizer):
    """A tokenizer.json of BERT's kind that was made here, with what tells transformers how it reads."""

    def __init__(self, data: bytes, companions: Sequence[Path] = (), *, lowercase: bool):
        super().__init__(data, companions)
        self._settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}

    def _save_model(self, folder: Path) -> None:
        super()._save_model(folder)
        settings = folder / "tokenizer_config.json"
        if not settings.exists():
            settings.write_text(json.dumps(self._settings, indent=2) + "\n", encoding="utf-8")


def read_vocabulary(data: bytes, companions: Sequence[Path] = ()) -> WordPieceTokenizer:
    """The tokenizer of a vocab.txt: one piece a line, its id the number of the line.

    tokenizer_config.json beside it says whether texts are lower-cased (`do_lower_case`), lose their accents
    (`strip_accents`; default: if lower-cased) and have Chinese characters split (`tokenize_chinese_chars`; default:
    yes). Where it does not name the first, texts are lower-cased if no piece has one of the letters A to Z.

    Raises ValueError if `data` is no such vocabulary, `UserError` if `tokenizers` is not installed.
    """
    # Not splitlines(), which would split at characters that are pieces themselves.
    pieces = [line.removesuffix("\r") for line in data.decode().removesuffix("\n").split("\n")]
    missing = [name for name in (PAD, UNKNOWN, CLS, SEP) if name not in pieces]
    if missing:
        raise ValueError(f"{missing[0]} is not among its pieces")
    repeated = [piece for piece, count in Counter(pieces).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is among its pieces more than once")
    settings: dict[str, Any] = {}
    for companion in companions:
        if companion.name == "tokenizer_config.json":
            try:
                settings = json.loads(companion.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UserError(f"{companion}: not readable as JSON: {error}") from None
    words = (piece for piece in pieces if not (piece.startswith("[") and piece.endswith("]")))
    lowercase = settings.get("do_lower_case", not any(re.search("[A-Z]", word) for word in words))
    accents, chinese = settings.get("strip_accents"), settings.get("tokenize_chinese_chars", True)
    return _tokenizer(pieces, (), companions, lowercase=lowercase, strip_accents=accents, split_chinese=chinese)


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, *, lowercase: bool = False, markers: Sequence[str] = ()
) -> WordPieceTokenizer:
    """Trains a WordPiece vocabulary of at most `vocab_size` pieces on all of `texts`.

    Ids 0 .. 103 are `FIRST_TOKENS`, as in Google's cased vocabularies; then come `markers`, further tokens that no text
    is ever read as (their ids: `id_of`), then characters and pieces. Words are split at white space and punctuation; a
    piece occurs at least twice. The same texts give the same vocabulary.

    Raises `UserError` if the vocabulary is too small for its characters, a marker is not a new one, or there is no
    text.
    """
    _needs_package()
    from tokenizers import Tokenizer, trainers
    from tokenizers.models import WordPiece

    taken = {name for name, count in Counter((*FIRST_TOKENS, *markers)).items() if count > 1}
    if taken:
        raise UserError(f"marker {sorted(taken)[0]!r} is a token already")
    normalizer = _normalizer(lowercase, None, True)
    texts, characters = _with_known_characters([normalizer.normalize_str(text) for text in texts])
    if not characters:
        raise UserError("there is no text to train a vocabulary on")
    # The package numbers what begins with ## in the order of a hash table, another one every time, and breaks ties
    # between pairs by these numbers. Named beforehand, they have one order.
    first = (*FIRST_TOKENS, *markers, *(CONTINUED + character for character in _within_words(texts)))
    needed = len(first) + len(characters)
    if vocab_size < needed:
        raise UserError(
            f"a vocabulary of {vocab_size:,} pieces cannot be trained: {len(FIRST_TOKENS) + len(markers)} tokens and "
            f"the characters of the text need {needed:,}"
        )
    learned = Tokenizer(WordPiece(unk_token=UNKNOWN))
    learned.pre_tokenizer = _splitter()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(first),
        continuing_subword_prefix=CONTINUED,
        show_progress=False,
    )
    learned.train_from_iterator(texts, trainer)
    pieces = sorted(learned.get_vocab(), key=learned.get_vocab().__getitem__)
    return _tokenizer(pieces, markers, (), lowercase=lowercase, strip_accents=None, split_chinese=True)


def _with_known_characters(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the texts with rare characters blanked, the most frequent characters, white space apart)."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    found = sorted((c for c in counts if not c.isspace()), key=lambda character: (-counts[character], character))
    blanked = {ord(character): " " for character in found[MOST_CHARACTERS:]}
    return [text.translate(blanked) for text in texts] if blanked else list(texts), found[:MOST_CHARACTERS]


def _within_words(texts: Sequence[str]) -> list[str]:
    """The characters that stand after another one in a word, in the order of Unicode."""
    splitting = {c for text in texts for c in set(text) if c.isspace() or _is_punctuation(c)}
    words = re.compile(f"[^{re.escape(''.join(sorted(splitting)))}]{{2,}}" if splitting else "..+", re.DOTALL)
    found: set[str] = set()
    for word in {word for text in texts for word in words.findall(text)}:
        found.update(word[1:])
    return sorted(found)


def _is_punctuation(character: str) -> bool:
    """As BERT splits at it: all of ASCII that is neither letter nor digit, and what Unicode calls punctuation."""
    if character.isascii():
        return character.isprintable() and not character.isalnum()
    return unicodedata.category(character).startswith("P")


def _tokenizer(
    pieces: Sequence[str],
    markers: Sequence[str],
    companions: Sequence[Path],
    *,
    lowercase: bool,
    strip_accents: bool | None,
    split_chinese: bool,
) -> WordPieceTokenizer:
    _needs_package()
    from tokenizers import AddedToken, Tokenizer, decoders
    from tokenizers.models import WordPiece

    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    made = Tokenizer(WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=100))
    made.normalizer, made.pre_tokenizer = _normalizer(lowercase, strip_accents, split_chinese), _splitter()
    made.decoder = decoders.WordPiece(prefix=CONTINUED)
    special = [name for name in (PAD, UNKNOWN, CLS, SEP, MASK, *markers) if name in vocabulary]
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return WordPieceTokenizer(made.to_str().encode(), companions, lowercase=lowercase)


def _normalizer(lowercase: bool, strip_accents: bool | None, split_chinese: bool) -> Any:
    from tokenizers import normalizers

    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )


def _splitter() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.BertPreTokenizer()


def _needs_package() -> None:
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        raise UserError("WordPiece vocabularies need the tokenizers package: pip install '.[hf]'") from None
