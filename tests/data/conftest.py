"""A small corpus of real text and a tokenizer trained on it, shared by the tests of zoo/data."""

import argparse
import ast
import json.decoder
import string
import textwrap
from pathlib import Path

import pytest

from zoo.data import DataConfig, Tokenizer, open_corpus, train_tokenizer

MODULES = (textwrap, json.decoder, string, argparse, ast)
VOCAB_SIZE = 600


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Some hundred paragraphs of Python source, of very different lengths."""
    sources = (Path(module.__file__).read_text("utf-8") for module in MODULES)
    return [part for source in sources for part in source.split("\n\n") if part.strip()]


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
