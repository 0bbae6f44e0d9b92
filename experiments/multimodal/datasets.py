"""Interleaved JSON lines and media files of every modality: `python -m experiments.multimodal.datasets FOLDER`.

    speech/     "zero" .. "nine" spoken. test: recordings 0 - 4 of every digit and speaker (the official split);
                speaker: everything that one speaker says, who is in no other split
    picture/    32 x 32 pixels and a caption. test: a tenth of the pictures, with all of their variants
    statement/  a sentence about a picture, true or false. test: the paper's dev set (of its 989 sentences 217 occur in
                train as well, about other pictures)
    digit/      an image of a digit
    video/      two digits one after the other (which came first?) or one that moves (where to?)
    pair/       images of two digits (which came first?). mixed: a spoken and a written digit
    draw/       "Draw a seven." and the image
    text/       passages of text

Each folder has train.jsonl, test.jsonl, ... A document's question does not count, its answer does. `kind` is the name
of the folder, for videos video_order or video_motion. Digits of tests are in no document of train.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.multimodal.digits import digit_documents, drawing_documents, pair_documents, video_documents
from experiments.multimodal.documents import WORDS, Make, record, write_png, write_wav
from experiments.multimodal.sources import SPEECH_RATE, Sources, real_sources, synthetic_sources
from zoo.data.corpus import document_hashes
from zoo.errors import run_command

OFFICIAL_TEST = 5
"""Recordings of each digit and speaker in fsdd's test split, the first ones."""
LONGEST = 1.6
"""Seconds that are kept of a recording (six of 3,000 are longer)."""
BOXES = (slice(0, 50), slice(75, 125), slice(150, 200))
"""Columns of the three boxes of a statement's picture; the statement says nothing of their order."""
SHIFT = 2
"""Pixels that a copy of a picture is moved by, at most."""


@dataclass(frozen=True)
class DatasetsConfig:
    """What to write, and where."""

    folder: tyro.conf.Positional[Path]
    """Where to."""
    shared: Path | None = None
    """The folder that holds data/fsdd and the others; None: drawn and sounded data."""
    speaker: str | None = None
    """Who is held out; None: the last by name."""
    most: int | None = None
    """Most documents of a split; None: all, but `statements` of those."""
    speech_copies: int = 4
    """How often a recording for training is written: as it is, then faster or slower (and so higher or lower), louder
    or softer."""
    picture_copies: int = 2
    """How often a picture for training is written: as it is, then moved by up to two pixels."""
    statements: int = 750
    """Statements for training, of those that there are with the boxes in any order."""
    digits: int = 9000
    """Images of one digit for training; a quarter as many are for testing."""
    videos: int = 3000
    """Videos for training; a quarter as many are for testing."""
    pairs: int = 5000
    """Pairs of images for training; a quarter as many are for testing."""
    drawings: int = 6000
    """Digits to be drawn for training; a quarter as many are for testing."""
    texts: int = 750
    """Passages for training; a quarter as many are for testing."""
    permute_boxes: bool = True
    """Write a training statement once for each order of its boxes."""
    seed: int = 0
    """Of copies, videos, drawn data, and of which documents are kept where there are too many."""


def write_datasets(config: DatasetsConfig) -> dict[str, Path]:
    """Writes all documents and their media; the .jsonl files by "speech/train" and so on."""
    sources = synthetic_sources(config.seed) if config.shared is None else real_sources(config.shared)
    written = {}
    held_out = config.speaker or max(clip.speaker for clip in sources.clips)
    for name, documents, most in (
        ("speech", _speech(sources, config, held_out), None),
        ("picture", _pictures(sources, config), None),
        ("statement", _statements(sources, config), config.statements),
        ("digit", digit_documents(sources, config.digits, config.seed), None),
        ("video", video_documents(sources, config.videos, config.seed), None),
        ("pair", pair_documents(sources, config.pairs, config.seed, held_out), None),
        ("draw", drawing_documents(sources, config.drawings, config.seed), None),
        ("text", _texts(sources, config), None),
    ):
        for split, chosen in _chosen(documents, config, most).items():
            path = config.folder / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            records = [make(path.parent) for make in chosen]
            path.write_text("".join(json.dumps(found) + "\n" for found in records), "utf-8")
            written[f"{name}/{split}"] = path
    return written


def _chosen(documents: Iterator[tuple[str, Make]], config: DatasetsConfig, most: int | None) -> dict[str, list[Make]]:
    """The documents of each split, in a random order; of train at most `most`."""
    splits: dict[str, list[Make]] = {}
    for split, make in documents:
        splits.setdefault(split, []).append(make)
    random = np.random.default_rng(config.seed)
    limits = {split: min((m for m in (config.most, most if split == "train" else None) if m), default=None)
              for split in splits}  # fmt: skip
    return {split: [found[i] for i in random.permutation(len(found))[: limits[split]]]
            for split, found in splits.items()}  # fmt: skip


def _speech(sources: Sources, config: DatasetsConfig, held_out: str) -> Iterator[tuple[str, Make]]:
    test = OFFICIAL_TEST if not sources.synthetic else 1
    for number, clip in enumerate(sources.clips):
        split = "speaker" if clip.speaker == held_out else "test" if clip.index < test else "train"
        for copy in range(config.speech_copies if split == "train" else 1):

            def make(folder: Path, clip=clip, number=number, copy=copy) -> dict[str, Any]:
                name = f"{clip.digit}_{clip.speaker}_{clip.index}{f'_{copy}' if copy else ''}.wav"
                random = np.random.default_rng([config.seed, number, copy])
                samples = _varied(clip.samples, random) if copy else clip.samples
                write_wav(folder / name, samples[: int(LONGEST * SPEECH_RATE)])
                return record([{"audio": name}], "Which digit?", WORDS[clip.digit], "speech")

            yield split, make


def _varied(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Said 0.85 to 1.2 times as fast, at another loudness, after up to 80 ms of silence."""
    times = np.arange(0, len(samples) - 1, random.uniform(0.85, 1.2))
    resampled = np.interp(times, np.arange(len(samples)), samples) * random.uniform(0.4, 1.5)
    silence = np.zeros(random.integers(0, int(0.08 * SPEECH_RATE)))
    return np.clip(np.concatenate([silence, resampled]), -32768, 32767)


def _pictures(sources: Sources, config: DatasetsConfig) -> Iterator[tuple[str, Make]]:
    for number, picture in enumerate(sources.pictures):
        split = "test" if document_hashes(picture.group, 1, 0)[0] < 0.1 else "train"
        for copy in range(config.picture_copies if split == "train" else 1):

            def make(folder: Path, picture=picture, number=number, copy=copy) -> dict[str, Any]:
                name = f"{number}{f'_{copy}' if copy else ''}.png"
                random = np.random.default_rng([config.seed, number, copy])
                pixels = _moved(picture.pixels, random) if copy else picture.pixels
                write_png(folder / name, pixels)
                return record([{"image": name}], "What is it?", picture.caption, "picture")

            yield split, make


def _moved(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    down, right = random.integers(0, 2 * SHIFT + 1, 2)
    padded = np.pad(pixels, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), constant_values=255)
    return padded[down : down + pixels.shape[0], right : right + pixels.shape[1]]


def _statements(sources: Sources, config: DatasetsConfig) -> Iterator[tuple[str, Make]]:
    for number, statement in enumerate(sources.statements):
        orders = list(permutations(range(3))) if config.permute_boxes and not statement.held_out else [(0, 1, 2)]
        for order in orders:

            def make(folder: Path, statement=statement, number=number, order=order) -> dict[str, Any]:
                pixels = statement.pixels.copy()
                for place, box in zip(BOXES, order, strict=True):
                    pixels[:, place] = statement.pixels[:, BOXES[box]]
                name = f"{'dev' if statement.held_out else 'train'}_{number}_{''.join(map(str, order))}.png"
                write_png(folder / name, pixels)
                question = f"{statement.sentence}\nTrue or false?"
                return record([{"image": name}], question, "true" if statement.label else "false", "statement")

            yield "test" if statement.held_out else "train", make


def _texts(sources: Sources, config: DatasetsConfig) -> Iterator[tuple[str, Make]]:
    for split, most in (("train", config.texts), ("test", config.texts // 4)):
        for text in sources.texts[split][:most]:

            def make(folder: Path, text=text) -> dict[str, Any]:
                return {"content": [{"text": text}], "kind": "text"}

            yield split, make


def main() -> None:
    """Writes the datasets that the command line asks for."""
    written = write_datasets(tyro.cli(DatasetsConfig, description=__doc__))
    for name, path in written.items():
        print(f"{name}: {sum(1 for _ in path.open())} documents in {path}")


if __name__ == "__main__":
    run_command(main)
