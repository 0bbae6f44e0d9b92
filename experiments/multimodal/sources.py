"""What the multimodal documents are made of: spoken digits, captioned pictures, statements about pictures, written
digits, text.

Real data lie in the optional folder `shared` (each folder there says where they come from and their licence); without
it they are drawn and sounded here, from a seed.
"""

import gzip
import json
import lzma
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Int16, UInt8

SPEECH_RATE = 8000
PASSAGE = 240
"""Characters of a passage of text, at most."""


@dataclass(frozen=True)
class Clip:
    """A spoken digit."""

    samples: Int16[np.ndarray, " n"]
    """8 kHz, mono."""
    digit: int
    speaker: str
    index: int
    """Number of the recording among those of its digit and speaker."""


@dataclass(frozen=True)
class Picture:
    """A small picture with a caption."""

    pixels: UInt8[np.ndarray, "h w 3"]
    caption: str
    group: str
    """Variants of one picture have the same; they stay on the same side of a split."""


@dataclass(frozen=True)
class Statement:
    """A sentence that is true or false of a picture."""

    pixels: UInt8[np.ndarray, "h w 3"]
    """Three boxes side by side."""
    sentence: str
    label: bool
    held_out: bool
    """For evaluation."""


@dataclass(frozen=True)
class Sources:
    """All of them. Digits are (28 x 28 grey pixels, label)."""

    clips: list[Clip]
    pictures: list[Picture]
    statements: list[Statement]
    digits: tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]
    texts: dict[str, list[str]]
    """Passages for "train" and "test"."""
    synthetic: bool


def real_sources(shared: Path) -> Sources:
    """From the folders fsdd, noto_emoji_32, nlvr1, mnist_t10k and wikitext2_valid_test."""
    data = shared / "data"
    return Sources(
        clips=spoken_digits(shared),
        pictures=list(_emoji(data / "noto_emoji_32")),
        statements=list(_nlvr(data / "nlvr1")),
        digits=_mnist(data / "mnist_t10k"),
        texts=_wikitext(data / "wikitext2_valid_test"),
        synthetic=False,
    )


def spoken_digits(shared: Path) -> list[Clip]:
    """The recordings of the folder fsdd alone."""
    return list(_fsdd(shared / "data" / "fsdd"))


def _fsdd(folder: Path) -> Iterator[Clip]:
    found = np.load(folder / "fsdd_8k_int16.npz")
    starts, audio = found["offsets"], found["audio"]
    for i, (digit, speaker, index) in enumerate(zip(found["digit"], found["speaker"], found["index"], strict=True)):
        yield Clip(audio[starts[i] : starts[i + 1]], int(digit), str(speaker), int(index))


def _emoji(folder: Path) -> Iterator[Picture]:
    images = np.load(folder / "images_32.npz")["images"]
    lines = (folder / "captions.tsv").read_text("utf-8").splitlines()[1:]
    for pixels, line in zip(images, lines, strict=True):
        _, codes, _, caption = line.split("\t")
        yield Picture(pixels, caption, group=codes.split()[0])


def _nlvr(folder: Path) -> Iterator[Statement]:
    """The training set of the paper is not there: its test and hidden sets are for training, dev for evaluation."""
    for part, held_out in (("test", False), ("hidden", False), ("dev", True)):
        images = np.load(folder / f"{part}_images_50x200.npz")["images"]
        lines = lzma.decompress((folder / f"{part}.jsonl.xz").read_bytes()).decode().splitlines()
        for pixels, record in zip(images, map(json.loads, lines), strict=True):
            label = str(record["label"]).lower() == "true"
            yield Statement(pixels, " ".join(record["sentence"].split()), label, held_out)


def _mnist(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    images = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def _wikitext(folder: Path) -> dict[str, list[str]]:
    """Its validation part is for training."""
    files = {"train": "valid.txt", "test": "test.txt"}
    return {split: _passages((folder / name).read_text("utf-8")) for split, name in files.items()}


def _passages(text: str) -> list[str]:
    """The beginning of each long line, up to the last word that is within `PASSAGE` characters."""
    lines = (line.strip() for line in text.splitlines())
    return [line[:PASSAGE].rpartition(" ")[0] for line in lines if len(line) > PASSAGE]


COLOURS = {"black": (0, 0, 0), "red": (220, 30, 30), "green": (20, 160, 60), "blue": (30, 80, 220)}
SHAPES = ("circle", "square", "triangle")
SPEAKERS = {"low": 0.8, "middle": 1.0, "high": 1.25}
SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")
LINES = {"a": (4, 4, 8, 20), "b": (4, 14, 18, 20), "c": (14, 24, 18, 20), "d": (22, 24, 8, 20), "e": (14, 24, 8, 10),
         "f": (4, 14, 8, 10), "g": (13, 15, 8, 20)}  # fmt: skip


def synthetic_sources(seed: int = 0, count: int = 200) -> Sources:
    """Chords for spoken digits (speakers differ in pitch), drawn shapes, statements about them, seven-segment digits;
    about `count` of each."""
    random = np.random.default_rng(seed)
    repeats = math.ceil(count / (10 * len(SPEAKERS)))
    clips = [
        Clip(_chord(digit, pitch, random), digit, speaker, index)
        for digit, (speaker, pitch), index in product(range(10), SPEAKERS.items(), range(max(repeats, 2)))
    ]
    pictures = []
    for i in range(count):
        colour, shape = _thing(random)
        pictures.append(Picture(_drawn(32, [(colour, shape, random)]), f"{colour} {shape}", group=f"{i}"))
    statements = [_statement(random, held_out=i % 4 == 0) for i in range(count)]
    labels = random.integers(0, 10, max(count, 50)).astype(np.uint8)
    digits = np.stack([_segments(int(label), random) for label in labels])
    texts = {split: [_passage(random) for _ in range(count)] for split in ("train", "test")}
    return Sources(clips, pictures, statements, (digits, labels), texts, synthetic=True)


def _chord(digit: int, pitch: float, random: np.random.Generator) -> np.ndarray:
    seconds = random.uniform(0.25, 0.45)
    time = np.arange(int(seconds * SPEECH_RATE)) / SPEECH_RATE
    first, second = 250 + 60 * (digit % 5), 900 + 300 * (digit // 5)
    tones = sum(np.sin(2 * np.pi * pitch * f * time * (1 + random.normal(0, 0.01))) for f in (first, second))
    noisy = 0.3 * tones * np.hanning(len(time)) + random.normal(0, 0.02, len(time))
    return np.clip(noisy * 32767, -32768, 32767).astype(np.int16)


def _thing(random: np.random.Generator) -> tuple[str, str]:
    return str(random.choice(list(COLOURS))), str(random.choice(SHAPES))


def _passage(random: np.random.Generator) -> str:
    sides = ("left of", "right of", "above", "below")
    things = [" ".join(_thing(random)) for _ in range(6)]
    return " ".join(f"The {a} is {random.choice(sides)} the {b}." for a, b in zip(things, things[1:], strict=False))


def _drawn(size: int, things: list) -> np.ndarray:
    pixels = np.full((size, size, 3), 255, np.uint8)
    row, column = np.mgrid[0:size, 0:size]
    for colour, shape, random in things:
        radius = random.integers(size // 6, size // 4)
        y, x = row - random.integers(radius, size - radius), column - random.integers(radius, size - radius)
        inside = {
            "circle": y**2 + x**2 <= radius**2,
            "square": np.maximum(abs(y), abs(x)) <= radius,
            "triangle": (abs(y) <= radius) & (2 * abs(x) <= y + radius),
        }
        pixels[inside[shape]] = COLOURS[colour]
    return pixels


def _statement(random: np.random.Generator, *, held_out: bool) -> Statement:
    boxes = [[_thing(random)] for _ in range(3)]
    pixels = np.full((50, 200, 3), 200, np.uint8)
    for number, box in enumerate(boxes):
        pixels[:, 75 * number : 75 * number + 50] = _drawn(50, [(*thing, random) for thing in box])
    wanted = boxes[random.integers(3)][0] if random.random() < 0.5 else _thing(random)
    label = any(thing == wanted for box in boxes for thing in box)
    return Statement(pixels, f"There is a {wanted[0]} {wanted[1]}.", label, held_out)


def _segments(digit: int, random: np.random.Generator) -> np.ndarray:
    pixels = np.zeros((28, 28), np.uint8)
    for name in SEGMENTS[digit]:
        top, bottom, left, right = LINES[name]
        pixels[max(top - 1, 0) : bottom + 1, left:right] = 255
    return np.roll(pixels, random.integers(-3, 4, 2), axis=(0, 1))
