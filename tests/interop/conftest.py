"""Checkpoints that the tests of interop share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden_dir(repository: Path) -> Path:
    """A tiny Gemma 2 that transformers wrote, with what transformers, torch and DeepMind's modules compute with it."""
    return repository / "tests" / "goldens" / "gemma2"
