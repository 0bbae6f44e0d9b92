"""Interleaved JSON lines and media files of every modality: `python -m experiments.multimodal.datasets FOLDER`.

    speech/     "zero" .. "nine" spoken. test: recordings 0 - 4 of every digit and speaker (the official split);
                speaker: everything that one speaker says, who is in no other split
    picture/    32 x 32 pixels and a caption. test: a tenth of the pictures, with all of their variants
    statement/  a sentence about a picture, true or false. test: the paper's dev set (of its 989 sentences 217 occur in
                train as well, about other pictures)
    video/      two digits one after the other (which came first?) or one that moves (where to?). test: digits that are
                in no video of train

Each folder has train.jsonl, test.jsonl, ... A document's question does not count, its answer does. `kind` is the name
of the folder, for videos video_order or video_motion.
"""

import json
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.multimodal.sources import SPEECH_RATE, Sources, real_sources, synthetic_sources
from zoo.data.corpus import document_hashes
from zoo.errors import run_command

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OFFICIAL_TEST = 5
"""Recordings of each digit and speaker in fsdd's test split, the first ones."""
BOXES = (slice(0, 50), slice(75, 125), slice(150, 200))
"""Columns of the three boxes of a statement's picture; the statement says nothing of their order."""
CANVAS, FRAMES = 32, 4
"""Pixels along a side of a video, and its frames, one a second."""
STEPS = {"left": (0, -4), "right": (0, 4), "up": (-4, 0), "down": (4, 0)}
"""Pixels (down, right) from a frame to the next. A digit that leaves on one side comes back on the other and begins
anywhere, so that no frame by itself gives the direction away."""


@dataclass(frozen=True)
class DatasetsConfig:
    """What is written."""

    folder: tyro.conf.Positional[Path]
    """Where to."""
    shared: Path | None = None
    """The folder that holds data/fsdd and the others; None: drawn and sounded data."""
    speaker: str | None = None
    """Who is held out; None: the last by name."""
    most: int | None = None
    """Most documents of a split; None: all."""
    videos: int = 4000
    """Videos for training; a quarter as many are for testing."""
    permute_boxes: bool = True
    """Write a training statement once for each order of its boxes."""
    seed: int = 0
    """Of the videos, of drawn data, and of which documents are kept where there are too many."""


def write_datasets(config: DatasetsConfig) -> dict[str, Path]:
    """Writes all documents and their media; the .jsonl files by "speech/train" and so on."""
    sources = synthetic_sources(config.seed) if config.shared is None else real_sources(config.shared)
    written = {}
    for name, documents in (
        ("speech", _speech(sources, config)),
        ("picture", _pictures(sources)),
        ("statement", _statements(sources, config)),
        ("video", _videos(sources, config)),
    ):
        for split, chosen in _chosen(documents, config).items():
            path = config.folder / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            records = [make(path.parent) for make in chosen]
            path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
            written[f"{name}/{split}"] = path
    return written


Make = Callable[[Path], dict[str, Any]]
"""Writes the media of a document into a folder and gives its record."""


def _chosen(documents: Iterator[tuple[str, Make]], config: DatasetsConfig) -> dict[str, list[Make]]:
    """The documents of each split, in a random order."""
    splits: dict[str, list[Make]] = {}
    for split, make in documents:
        splits.setdefault(split, []).append(make)
    random = np.random.default_rng(config.seed)
    return {split: [found[i] for i in random.permutation(len(found))[: config.most]] for split, found in splits.items()}


def _speech(sources: Sources, config: DatasetsConfig) -> Iterator[tuple[str, Make]]:
    held_out = config.speaker or max(clip.speaker for clip in sources.clips)
    test = OFFICIAL_TEST if not sources.synthetic else 1
    for clip in sources.clips:
        split = "speaker" if clip.speaker == held_out else "test" if clip.index < test else "train"

        def make(folder: Path, clip=clip) -> dict[str, Any]:
            name = f"{clip.digit}_{clip.speaker}_{clip.index}.wav"
            _write_wav(folder / name, clip.samples)
            question = {"text": "\nWhich digit? ", "loss": False}
            return {"content": [{"audio": name}, question, {"text": WORDS[clip.digit]}], "kind": "speech"}

        yield split, make


def _pictures(sources: Sources) -> Iterator[tuple[str, Make]]:
    for number, picture in enumerate(sources.pictures):
        split = "test" if document_hashes(picture.group, 1, 0)[0] < 0.1 else "train"

        def make(folder: Path, picture=picture, number=number) -> dict[str, Any]:
            name = f"{number}.png"
            _write_png(folder / name, picture.pixels)
            question = {"text": "\nWhat is it? ", "loss": False}
            return {"content": [{"image": name}, question, {"text": picture.caption}], "kind": "picture"}

        yield split, make


def _statements(sources: Sources, config: DatasetsConfig) -> Iterator[tuple[str, Make]]:
    for number, statement in enumerate(sources.statements):
        orders = list(permutations(range(3))) if config.permute_boxes and not statement.held_out else [(0, 1, 2)]
        for order in orders:

            def make(folder: Path, statement=statement, number=number, order=order) -> dict[str, Any]:
                pixels = statement.pixels.copy()
                for place, box in zip(BOXES, order, strict=True):
                    pixels[:, place] = statement.pixels[:, BOXES[box]]
                name = f"{'dev' if statement.held_out else 'train'}_{number}_{''.join(map(str, order))}.png"
                _write_png(folder / name, pixels)
                question = {"text": f"\n{statement.sentence}\nTrue or false? ", "loss": False}
                answer = {"text": "true" if statement.label else "false"}
                return {"content": [{"image": name}, question, answer], "kind": "statement"}

            yield "test" if statement.held_out else "train", make


def _videos(sources: Sources, config: DatasetsConfig) -> Iterator[tuple[str, Make]]:
    images, labels = sources.digits
    of_test = np.arange(len(images)) % 5 == 4  # throughout the file: its second half is by other writers
    for split, count, numbers in (
        ("train", config.videos, np.flatnonzero(~of_test)),
        ("test", config.videos // 4, np.flatnonzero(of_test)),
    ):
        for number in range(count):
            # Each video has a seed of its own, so that it does not depend on how many there are.
            random = np.random.default_rng([config.seed, len(numbers), number])
            make = _order if number % 2 else _motion
            yield split, make(f"{split}_{number}", images, labels, numbers, random)


def _order(name: str, images: np.ndarray, labels: np.ndarray, numbers: np.ndarray, random: np.random.Generator) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        first = random.choice(numbers)
        second = random.choice(numbers[labels[numbers] != labels[first]])
        place = random.integers(0, CANVAS - 28 + 1, 2)
        for frame in range(FRAMES):
            shown = images[first if frame < FRAMES // 2 else second]
            _write_png(folder / name / f"{frame}.png", _on_canvas(shown, place))
        which, answer = ("first", first) if random.random() < 0.5 else ("last", second)
        return _video_record(name, f"Which digit came {which}? ", WORDS[labels[answer]], "video_order")

    return make


def _motion(
    name: str, images: np.ndarray, labels: np.ndarray, numbers: np.ndarray, random: np.random.Generator
) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        image = images[random.choice(numbers)]
        direction = str(random.choice(list(STEPS)))
        place = random.integers(0, CANVAS, 2)
        for frame in range(FRAMES):
            _write_png(folder / name / f"{frame}.png", _on_canvas(image, place + frame * np.array(STEPS[direction])))
        return _video_record(name, "Where did it move? ", direction, "video_motion")

    return make


def _video_record(name: str, question: str, answer: str, kind: str) -> dict[str, Any]:
    parts = [{"video": name}, {"text": f"\n{question}", "loss": False}, {"text": answer}]
    return {"content": parts, "kind": kind}


def _on_canvas(image: np.ndarray, place: np.ndarray) -> np.ndarray:
    canvas = np.pad(image, (0, CANVAS - 28))
    return np.repeat(np.roll(canvas, tuple(place), axis=(0, 1))[..., None], 3, axis=-1)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPEECH_RATE)
        file.writeframes(samples.astype("<i2").tobytes())


def main() -> None:
    """Writes the datasets that the command line asks for."""
    written = write_datasets(tyro.cli(DatasetsConfig, description=__doc__))
    for name, path in written.items():
        print(f"{name}: {sum(1 for _ in path.open())} documents in {path}")


if __name__ == "__main__":
    run_command(main)
