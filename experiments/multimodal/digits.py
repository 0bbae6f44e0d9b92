"""Documents of written digits: one image, two in a row, videos of two or of one that moves, one to be drawn.

Every fifth image of MNIST's file is for tests and every fifth for the classifier that judges drawings; the other three
are for training, those of the VQ tokenizer among them. (Not one part after the other: the file's second half is by
other writers.)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.multimodal.documents import STEPS, WORDS, Make, record, write_png, write_wav
from experiments.multimodal.sources import Sources

CANVAS, FRAMES = 32, 4
"""Pixels along a side of a picture of a digit, and the frames of a video, one a second."""
PARTS = {"train": (0, 1, 2), "classifier": (3,), "test": (4,)}
"""Which of five images belong to which part."""


def numbers_of(part: str, count: int) -> np.ndarray:
    """The numbers of the images of a part, one of `PARTS`."""
    return np.flatnonzero(np.isin(np.arange(count) % 5, PARTS[part]))


def on_canvas(image: np.ndarray, place: np.ndarray | tuple[int, int] = (2, 2)) -> np.ndarray:
    """[CANVAS, CANVAS, 3] with the digit's corner at (down, right); what lies outside is cut off."""
    height, width = image.shape
    canvas = np.zeros((CANVAS + 2 * height, CANVAS + 2 * width), np.uint8)
    down, right = (int(np.clip(p, -s, CANVAS)) + s for p, s in zip(place, (height, width), strict=True))
    canvas[down : down + height, right : right + width] = image
    return np.repeat(canvas[height:-height, width:-width, None], 3, axis=-1)


def video_documents(sources: Sources, count: int, seed: int) -> Iterator[tuple[str, Make]]:
    """One of order after two of motion, of which pairs teach nothing; a quarter as many of them for tests."""
    images, labels = sources.digits
    for split, many in (("train", count), ("test", count // 4)):
        numbers = numbers_of(split, len(images))
        for number in range(many):
            # Each video has a seed of its own, so that it does not depend on how many there are.
            random = np.random.default_rng([seed, len(numbers), number])
            make = _motion if number % 3 else _order
            yield split, make(f"{split}_{number}", images, labels, numbers, random)


def digit_documents(sources: Sources, count: int, seed: int) -> Iterator[tuple[str, Make]]:
    """One image of a digit; a quarter as many for tests."""
    images, labels = sources.digits
    for split, many in (("train", count), ("test", count // 4)):
        numbers = numbers_of(split, len(images))
        for number in range(many):
            random = np.random.default_rng([seed, 4, len(numbers), number])

            def make(folder: Path, name=f"{split}_{number}.png", numbers=numbers, random=random) -> dict[str, Any]:
                chosen = random.choice(numbers)
                write_png(folder / name, on_canvas(images[chosen]))
                return record([{"image": name}], "Which digit?", WORDS[labels[chosen]], "digit")

            yield split, make


def pair_documents(sources: Sources, count: int, seed: int, speaker: str) -> Iterator[tuple[str, Make]]:
    """Two images and a question about their order; "mixed", for tests alone: a spoken and a written digit, in either
    order, of which there are none to learn from."""
    images, labels = sources.digits
    for split, many in (("train", count), ("test", count // 4)):
        numbers = numbers_of(split, len(images))
        for number in range(many):
            random = np.random.default_rng([seed, 1, len(numbers), number])
            yield split, _pair(f"{split}_{number}", images, labels, numbers, random)
    clips = [clip for clip in sources.clips if clip.speaker != speaker and clip.index < (1 if sources.synthetic else 5)]
    numbers = numbers_of("test", len(images))
    for number in range(min(count // 4, 300)):
        random = np.random.default_rng([seed, 2, number])
        yield "mixed", _mixed(f"mixed_{number}", images, labels, numbers, clips, random)


def drawing_documents(sources: Sources, count: int, seed: int) -> Iterator[tuple[str, Make]]:
    """A request, and the image that is to be drawn."""
    images, labels = sources.digits
    for split, many in (("train", count), ("test", count // 4)):
        numbers = numbers_of(split, len(images))
        for number in np.random.default_rng([seed, 3]).permutation(numbers)[:many]:

            def make(folder: Path, number=int(number)) -> dict[str, Any]:
                write_png(folder / f"{number}.png", on_canvas(images[number]))
                request = {"text": f"Draw a {WORDS[labels[number]]}.", "loss": False}
                parts = [request, {"image": f"{number}.png", "output": True}]
                return {"content": parts, "kind": "draw", "label": int(labels[number])}

            yield split, make


def _order(name: str, images: np.ndarray, labels: np.ndarray, numbers: np.ndarray, random: np.random.Generator) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        first, second = _two(labels, numbers, random)
        for frame in range(FRAMES):
            shown = images[first if frame < FRAMES // 2 else second]
            write_png(folder / name / f"{frame}.png", on_canvas(shown))
        which, answer, _ = _asked(labels[first], labels[second], random)
        return record([{"video": name}], f"Which digit came {which}?", answer, "video_order")

    return make


def _motion(
    name: str, images: np.ndarray, labels: np.ndarray, numbers: np.ndarray, random: np.random.Generator
) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        image = images[random.choice(numbers)].reshape(14, 2, 14, 2).mean(axis=(1, 3)).astype(np.uint8)
        direction = str(random.choice(list(STEPS)))
        # It begins anywhere, so that the first frame says nothing, and may leave the picture.
        place = random.integers(0, CANVAS - 14 + 1, 2)
        for frame in range(FRAMES):
            write_png(folder / name / f"{frame}.png", on_canvas(image, place + frame * np.array(STEPS[direction])))
        return record([{"video": name}], "Where did it move?", direction, "video_motion")

    return make


def _pair(name: str, images: np.ndarray, labels: np.ndarray, numbers: np.ndarray, random: np.random.Generator) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        both = _two(labels, numbers, random)
        files = [f"{name}_{place}.png" for place in "ab"]
        for file, number in zip(files, both, strict=True):
            write_png(folder / file, on_canvas(images[number]))
        which, answer, other = _asked(labels[both[0]], labels[both[1]], random)
        media = [{"image": file} for file in files]
        return record(media, f"Which digit came {which}?", answer, "pair", swapped=f" {other}")

    return make


def _mixed(
    name: str, images: np.ndarray, labels: np.ndarray, numbers: np.ndarray, clips: list, random: np.random.Generator
) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        clip = clips[random.integers(len(clips))]
        image = random.choice(numbers[labels[numbers] != clip.digit])
        write_wav(folder / f"{name}.wav", clip.samples)
        write_png(folder / f"{name}.png", on_canvas(images[image]))
        media = [({"audio": f"{name}.wav"}, clip.digit), ({"image": f"{name}.png"}, labels[image])]
        first, second = (media[i] for i in random.permutation(2))
        which, answer, other = _asked(first[1], second[1], random)
        return record([first[0], second[0]], f"Which digit came {which}?", answer, "mixed", swapped=f" {other}")

    return make


def _two(labels: np.ndarray, numbers: np.ndarray, random: np.random.Generator) -> tuple[int, int]:
    """The numbers of two images of different digits."""
    first = random.choice(numbers)
    return int(first), int(random.choice(numbers[labels[numbers] != labels[first]]))


def _asked(first: int, last: int, random: np.random.Generator) -> tuple[str, str, str]:
    """Which of the two is asked for, that one's word and the other's."""
    if random.random() < 0.5:
        return "first", WORDS[first], WORDS[last]
    return "last", WORDS[last], WORDS[first]
