"""What all documents of this experiment are made with: a record, the media beside it, and the words of answers."""

import json
import wave
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.multimodal.sources import SPEECH_RATE

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STEPS = {"left": (0, -5), "right": (0, 5), "up": (-5, 0), "down": (5, 0)}
"""Pixels (down, right) from a frame of a moving digit to the next."""

Make = Callable[[Path], dict[str, Any]]
"""Writes the media of a document into a folder and gives its record."""


def record(media: list[dict[str, Any]], question: str, answer: str, kind: str, **extra: Any) -> dict[str, Any]:
    """A document of media, a question and an answer, of which the answer counts. The answer begins with a space: so it
    is cut into the same tokens alone as after the question, whose texts the tokenizer learns from."""
    parts = [*media, {"text": f"\n{question}", "loss": False}, {"text": f" {answer}"}]
    return {"content": parts, "kind": kind, **extra}


def write_png(path: Path, pixels: np.ndarray) -> None:
    """8-bit grey or RGB pixels."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_wav(path: Path, samples: np.ndarray) -> None:
    """16-bit samples, mono, at the rate of the recordings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPEECH_RATE)
        file.writeframes(samples.astype("<i2").tobytes())


def read_records(path: Path) -> list[dict[str, Any]]:
    """The documents of a .jsonl file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """The inverse of `read_records`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(found) + "\n" for found in records), "utf-8")
