"""Gemini 1.5's video haystack: a word overlaid on one frame of a long video, one frame a second.

Frames go to a folder that is read as a video; the pipeline puts the time stamp "MM:SS" before each, as Gemini does. The
overlay and the question are Gemini's; the word is not always "needle", so that it cannot be guessed. Set
`data.media.video_frames` to at least as many frames, else only some of them are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from experiments.long_context_recall.needles import drawn_depth
from experiments.long_context_recall.samples import Sample, drawing, too_short
from experiments.long_context_recall.words import NOUNS
from experiments.shared_folder import default_shared
from zoo.data.video import time_stamp
from zoo.errors import UserError

BUNNY = "data/video_bunny/bigbuckbunny_72x128.npz"
"""In the optional folder `shared`: frames of Big Buck Bunny."""
QUESTION = "What is the secret word?"


@dataclass(frozen=True)
class VideoHaystack:
    """A video with a word in it."""

    frames: int = 60
    """One a second."""
    overlay: str = 'The secret word\nis "{word}"'
    """What is drawn; Gemini's is on one line, which small frames have no room for."""
    words: Sequence[str] = NOUNS
    """The word is one of them."""
    text_size: int = 12
    """Of the letters, in pixels."""
    candidates: int = 16
    """Words to rank by likelihood."""


def real_frames(shared: Path | None = None) -> UInt8[np.ndarray, "n h w 3"]:
    """The frames of the optional folder. Raises `UserError` if they are not there."""
    shared = shared or default_shared()
    if shared is None or not (shared / BUNNY).is_file():
        raise UserError(f"{(shared or Path('shared')) / BUNNY}: no such file: use drawn frames")
    with np.load(shared / BUNNY) as found:
        return found[found.files[0]]


def drawn_frames(count: int, height: int = 72, width: int = 128, seed: int = 0) -> UInt8[np.ndarray, "n h w 3"]:
    """Slowly changing colours with a rectangle that wanders, no two frames the same."""
    random = np.random.default_rng(seed)
    frames = np.empty((count, height, width, 3), np.uint8)
    colour, place = random.integers(60, 200, 3), random.integers(0, [height, width])
    for frame in frames:
        colour, place = (
            np.clip(colour + random.integers(-9, 10, 3), 0, 255),
            (place + random.integers(-4, 5, 2)) % [height, width],
        )
        frame[:] = colour
        frame[place[0] : place[0] + height // 4, place[1] : place[1] + width // 4] = 255 - colour
    return frames


def word_in_a_video(
    config: VideoHaystack,
    task: str,
    seed: int,
    frames: UInt8[np.ndarray, "n h w 3"],
    folder: Path,
    number: int,
    depth: float | None = None,
) -> Sample:
    """Writes the frames of sample `number` into a folder of its own below `folder`; the parts name it relative to it.

    The video is `config.frames` frames long, `frames` repeated if they are fewer, from a random one on; the word is on
    frame round(depth / 100 * (frames - 1))."""
    too_short(task, 1, config.frames)
    if len(set(config.words)) < config.candidates:
        raise UserError(f"{task}: {config.candidates} candidates of only {len(set(config.words))} words")
    random = drawing(seed, task, number)
    depth, start = drawn_depth(depth, random), int(random.integers(2**31))
    words = [config.words[i] for i in random.permutation(len(config.words))[: config.candidates]]
    place, name = round(depth / 100 * (config.frames - 1)), f"{task}-{number}-{config.frames}-{depth:g}"
    (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(config.frames):
        pixels = frames[(start + i) % len(frames)]
        write_frame(folder / name / f"{i}.png", pixels, config.overlay.format(word=words[0]) * (i == place), config)
    return Sample(
        task=task,
        prompt=np.empty(0, np.int32),
        parts=({"video": name, "fps": 1}, {"text": f"\n{QUESTION}", "loss": False}),
        references=(words[0],),
        answer=f" {words[0]}",
        max_new_tokens=16,
        metric="exact_span",
        candidates=tuple(f" {word}" for word in words),
        question=QUESTION,
        facts={"frames": config.frames, "depth": depth, "frame": place, "time": time_stamp(place)},
    )


def write_frame(path: Path, pixels: UInt8[np.ndarray, "h w 3"], overlay: str, config: VideoHaystack) -> None:
    """A PNG; with an overlay (`overlaid`)."""
    _pillow().Image.fromarray(overlaid(pixels, overlay, config) if overlay else pixels).save(path, compress_level=1)


def overlaid(pixels: UInt8[np.ndarray, "h w 3"], overlay: str, config: VideoHaystack) -> UInt8[np.ndarray, "h w 3"]:
    """The frame with white letters on black in its middle. Raises `UserError` if it is too small for them."""
    pillow = _pillow()
    image = pillow.Image.fromarray(pixels)
    draw, font = pillow.ImageDraw.Draw(image), pillow.ImageFont.load_default(config.text_size)
    left, top, right, bottom = draw.multiline_textbbox((0, 0), overlay, font=font)
    x, y = (image.width - right + left) / 2, (image.height - bottom + top) / 2
    if x < 0 or y < 0:
        raise UserError(
            f"frames of {image.width} x {image.height} pixels are too small for {overlay!r} of size "
            f"{config.text_size}: make it smaller"
        )
    draw.rectangle((x - 2, y - 2, x + right - left + 2, y + bottom - top + 2), fill="black")
    draw.multiline_text((x - left, y - top), overlay, fill="white", font=font, align="center")
    return np.asarray(image)


def _pillow() -> Any:
    try:
        import PIL
        import PIL.Image
        import PIL.ImageDraw
        import PIL.ImageFont
    except ImportError:
        raise UserError("drawing on frames needs Pillow: pip install '.[media]'") from None
    return PIL
