"""A small corpus of real text and a tokenizer trained on it, shared by the tests of zoo/data."""

import textwrap
from pathlib import Path

import pytest

from zoo.data import DataConfig, Tokenizer, open_corpus, train_tokenizer

MODULES = (textwrap, __import__("json.decoder").decoder, __import__("string"), __import__("argparse"), __import__("ast"))
VOCAB_SIZE = 600


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Some hundred paragraphs of Python source, of very different lengths."""
    return [part for module in MODULES for part in Path(module.__file__).read_text("utf-8").split("\n\n") if part.strip()]


@pytest.fixture(scope="session")
def tokenizer(texts) -> Tokenizer:
    return train_tokenizer(texts, VOCAB_SIZE)


@pytest.fixture(scope="session")
def folder(tmp_path_factory, texts) -> Path:
    """A folder of 40 .txt files of a few paragraphs each."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        (folder / f"{number:02}.txt").write_text("\n\n".join(texts[number::40][:4]), "utf-8")
    return folder


@pytest.fixture(scope="session")
def config(folder) -> DataConfig:
    return DataConfig(
        paths=(str(folder),), sequence_length=32, batch_size=4, shuffle_window_tokens=640, validation_fraction=0.1
    )


@pytest.fixture(scope="session")
def corpus(config):
    return open_corpus(config)
