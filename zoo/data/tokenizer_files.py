"""Which tokenizer lies at a path, and which one a run uses."""

from collections.abc import Callable
from pathlib import Path

from zoo.data.config import DataConfig
from zoo.data.corpus import Corpus
from zoo.data.huggingface_tokenizer import HuggingFaceTokenizer
from zoo.data.sentencepiece_tokenizer import SentencePieceTokenizer, train_tokenizer
from zoo.data.tokenizer import Tokenizer
from zoo.data.wordpiece_tokenizer import read_vocabulary, train_wordpiece
from zoo.errors import UserError

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "vocab.txt")
"""Files that are a tokenizer each; of several in a folder the first one here counts."""

# Files of a model folder that belong to its tokenizer and travel with it.
COMPANIONS = (
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
TRAINING_SAMPLE_BYTES = 5_000_000

_KINDS: dict[str, tuple[str, Callable[[bytes, list[Path]], Tokenizer]]] = {
    ".model": ("a SentencePiece model", SentencePieceTokenizer),
    ".json": ("a Hugging Face tokenizer", HuggingFaceTokenizer),
    ".txt": ("a BERT vocabulary", read_vocabulary),
}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a file (*.model: SentencePiece; *.json: Hugging Face; *.txt: BERT's vocabulary) or of a folder
    that holds one of `TOKENIZER_FILES`. Raises `UserError` if there is none or it is damaged."""
    path = Path(path).expanduser()
    if path.is_dir():
        found = next((path / name for name in TOKENIZER_FILES if (path / name).is_file()), None)
        if found is None:
            raise UserError(f"{path}: neither {' nor '.join(TOKENIZER_FILES)} in this folder")
        path = found
    if path.suffix not in _KINDS:
        raise UserError(
            f"{path}: a tokenizer is a .model (SentencePiece), a .json (Hugging Face) or a .txt file (BERT's vocab.txt)"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    companions = [path.parent / name for name in COMPANIONS if name != path.name and (path.parent / name).is_file()]
    kind, make = _KINDS[path.suffix]
    try:
        return make(data, companions)
    except ValueError as error:
        raise UserError(f"{path}: not {kind}, or damaged: {' '.join(str(error).split())}") from None


def tokenizer_for(corpus: Corpus, config: DataConfig) -> Tokenizer:
    """The tokenizer that `config` names, or one trained on a sample of the training documents: of BERT's kind for
    masked tokens, else of Gemma's."""
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    train = train_wordpiece if config.format == "masked" else train_tokenizer
    return train(corpus.train_texts(TRAINING_SAMPLE_BYTES), config.vocab_size)
