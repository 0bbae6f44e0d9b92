"""Which tokenizer lies at a path, and which one a run uses."""

from pathlib import Path

from zoo.data.config import DataConfig
from zoo.data.corpus import Corpus
from zoo.data.huggingface_tokenizer import HuggingFaceTokenizer
from zoo.data.sentencepiece_tokenizer import SentencePieceTokenizer, train_tokenizer
from zoo.data.tokenizer import Tokenizer
from zoo.errors import UserError

# Files of a model folder that belong to its tokenizer and travel with it.
COMPANIONS = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
TRAINING_SAMPLE_BYTES = 5_000_000


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a file (*.model: SentencePiece; *.json: Hugging Face) or of a folder that holds
    tokenizer.model or tokenizer.json, in this order. Raises `UserError` if there is none or it is damaged."""
    path = Path(path).expanduser()
    if path.is_dir():
        found = next((path / name for name in COMPANIONS[:2] if (path / name).is_file()), None)
        if found is None:
            raise UserError(f"{path}: neither tokenizer.model nor tokenizer.json in this folder")
        path = found
    if path.suffix not in (".model", ".json"):
        raise UserError(f"{path}: a tokenizer is a .model (SentencePiece) or a .json file (Hugging Face)")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    companions = [path.parent / name for name in COMPANIONS if name != path.name and (path.parent / name).is_file()]
    kind, make = ("a SentencePiece model", SentencePieceTokenizer)
    if path.suffix == ".json":
        kind, make = ("a Hugging Face tokenizer", HuggingFaceTokenizer)
    try:
        return make(data, companions)
    except ValueError as error:
        raise UserError(f"{path}: not {kind}, or damaged: {' '.join(str(error).split())}") from None


def tokenizer_for(corpus: Corpus, config: DataConfig) -> Tokenizer:
    """The tokenizer that `config` names, or one trained on a sample of the training documents."""
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    return train_tokenizer(corpus.train_texts(TRAINING_SAMPLE_BYTES), config.vocab_size)
