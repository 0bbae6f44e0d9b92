"""What rows are made of, drawn once for a run: needles (a word on a frame, a keyword among recordings) and others."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int

from experiments.long_context_recall.audio import WORDS, keyword_question, write_wav
from experiments.long_context_recall.media import MediaSources
from experiments.long_context_recall.media_training.curriculum import Workload
from experiments.long_context_recall.video import QUESTION, VideoHaystack, overlaid
from experiments.multimodal.sources import SPEECH_RATE, Clip
from zoo.data import MediaConfig
from zoo.data.audio import clips_of, read_audio
from zoo.data.images import patches_of, resized
from zoo.data.log_mel import HOP, SAMPLE_RATE

START_SHARE = 0.1
"""Of needles with which their clips begin: nothing else is heard before, as at the beginning of a stream."""
MOST_ALONE = 3
"""Recordings of a clip that is to be written down."""
WHAT_IS_SAID = "What is said?"
"""Its question."""
GOES_ON = 800
"""Samples after the last clip: resampling leaves out some, and the last frame sees what follows it."""
SPEED, LOUDNESS = 0.1, 6.0
"""Recordings for training are up to so much faster or slower, and up to so many decibels softer."""


@dataclass(frozen=True, eq=False)
class Bank:
    """Items of U units each; a unit is a frame or a clip."""

    values: np.ndarray
    """uint8 patches [items, U, patches, pixels], or float16 log-mel features [items, U, frames, bins]."""
    real: Bool[np.ndarray, "items units frames"] | None
    """Which frames of a clip are real; None for images."""
    answers: Int[np.ndarray, " items"]
    """Number of the answer; -1: there is nothing to find."""
    words: tuple[str, ...] = ()
    """The answers."""
    question: str = ""
    """What is asked."""


@dataclass(frozen=True, eq=False)
class Material:
    """Of one task, from one part of the sources."""

    alone: Bank
    """Of one unit, to begin with: frames with a word, or clips of one to three recordings, each to be written down."""
    hidden: Bank
    """Needles as they stand among others; a keyword is in one of two clips, or in both."""
    plain: Bank
    """Others, of one unit."""
    coordinates: Float32[np.ndarray, "patches 2"] | None
    """Of the patches of a frame."""


def make_material(workload: Workload, sources: MediaSources, items: int, plain: int, seed: int, vary: bool) -> Material:
    """vary: frames are mirrored, lighter or darker; recordings faster or slower and softer."""
    random = np.random.default_rng(seed)
    make = _video if workload.task == "video" else _audio
    return make(workload, sources, items, plain, random, vary)


def _video(workload: Workload, sources: MediaSources, items: int, plain: int, random, vary: bool) -> Material:
    media, haystack = workload.media, workload.video
    boxes = lru_cache(None)(lambda word: _box(word, sources.frames.shape[1:], haystack))

    def frame(word: str | None) -> np.ndarray:
        pixels = sources.frames[random.integers(len(sources.frames))]
        if vary:
            pixels = _varied(pixels, random)
        if word is not None:
            inside, drawn = boxes(word)
            pixels = np.where(inside, drawn, pixels)
        return patches_of(resized(pixels, media, media.max_patches), media.patch_size, media.merge)[0]

    answers = random.permutation(np.arange(items) % len(haystack.words))
    needles = Bank(
        np.stack([frame(haystack.words[i]) for i in answers])[:, None], None, answers, tuple(haystack.words), QUESTION
    )
    others = Bank(np.stack([frame(None) for _ in range(plain)])[:, None], None, np.full(plain, -1))
    shape = resized(sources.frames[0], media, media.max_patches)
    coordinates = patches_of(shape, media.patch_size, media.merge)[1]
    return Material(needles, needles, others, coordinates)


def _box(word: str, shape: Sequence[int], haystack: VideoHaystack) -> tuple[np.ndarray, np.ndarray]:
    """(where the overlay covers a frame, its pixels): what is the same on black and on white."""
    text = haystack.overlay.format(word=word)
    dark, light = (overlaid(np.full(shape, grey, np.uint8), text, haystack) for grey in (0, 255))
    return (dark == light).all(-1, keepdims=True), dark


def _varied(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    mirrored = pixels[:, ::-1] if random.random() < 0.5 else pixels
    factor, offset = random.uniform(0.7, 1.3), random.uniform(-30, 30)
    return np.clip(mirrored * factor + offset, 0, 255).astype(np.uint8)


def _audio(workload: Workload, sources: MediaSources, items: int, plain: int, random, vary: bool) -> Material:
    media, haystack = workload.media, workload.audio
    digits = haystack.keywords
    keywords = [[clip for clip in sources.clips if clip.digit == digit] for digit in digits]
    others = [clip for clip in sources.clips if clip.digit not in digits]
    pause = np.zeros(round(haystack.pause * SPEECH_RATE), np.int16)
    size = round(media.clip_frames * HOP * SPEECH_RATE / SAMPLE_RATE)  # samples of a clip, as they are recorded

    def spoken(clips: Sequence[Clip]) -> np.ndarray:
        samples = clips[random.integers(len(clips))].samples
        return np.concatenate([_spoken_otherwise(samples, random) if vary else samples, pause])

    def stream(least: int) -> np.ndarray:
        parts = [spoken(others)]
        while sum(map(len, parts)) < least:
            parts.append(spoken(others))
        return np.concatenate(parts)

    alone, transcripts = list[np.ndarray](), list[str]()
    for number in range(items):
        # Of all digits: what is no keyword must be heard as well, and one answer a clip would teach little.
        drawn = [random.integers(len(sources.clips)) for _ in range(1 + number % MOST_ALONE)]
        said = [spoken([sources.clips[index]]) for index in drawn]
        ends = np.cumsum([len(samples) for samples in said])
        whole = max(1, int((ends <= size).sum()))
        alone.append(np.concatenate(said[:whole])[:size])
        transcripts.append(" ".join(WORDS[sources.clips[index].digit] for index in drawn[:whole]))
    # Single digits first: `Stage.words` may ask for them alone.
    texts = tuple(sorted(set(transcripts), key=lambda text: (len(text.split()), text)))
    answers, hidden = random.permutation(np.arange(items) % len(digits)), list[np.ndarray]()
    for answer in answers:
        word = spoken(keywords[answer])[: 2 * size]
        start = 0 if random.random() < START_SHARE else int(random.integers(2 * size - len(word) + 1))
        before = stream(start)
        hidden.append(np.concatenate([before[len(before) - start :], word, stream(2 * size)])[: 2 * size + GOES_ON])
    long = stream(plain * size + GOES_ON)
    with tempfile.TemporaryDirectory() as scratch:
        heard = lambda found, clips: _clips(found, clips, media, Path(scratch) / "stream.wav")  # noqa: E731
        singles, pairs = [heard(samples, 1) for samples in alone], [heard(samples, 2) for samples in hidden]
        mel, real = heard(long, plain)
    return Material(
        Bank(
            np.stack([mel for mel, _ in singles]),
            np.stack([real for _, real in singles]),
            np.array(list(map(texts.index, transcripts))),
            texts,
            WHAT_IS_SAID,
        ),
        Bank(
            np.stack([mel for mel, _ in pairs]),
            np.stack([real for _, real in pairs]),
            answers,
            tuple(WORDS[digit] for digit in digits),
            keyword_question(digits),
        ),
        Bank(mel[:, None], real[:, None], np.full(len(mel), -1)),
        None,
    )


def _clips(samples: np.ndarray, count: int, media: MediaConfig, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(features, real frames) of the first clips of a recording, as they are read from a file."""
    write_wav(path, samples)
    mel, real = clips_of(read_audio(path, np.inf), media)
    return mel[:count].astype(np.float16), real[:count]


def _spoken_otherwise(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    count = round(len(samples) * random.uniform(1 - SPEED, 1 + SPEED))
    at = np.linspace(0, len(samples) - 1, count)
    return (np.interp(at, np.arange(len(samples)), samples) * 10 ** (-random.uniform(0, LOUDNESS) / 20)).astype(
        np.int16
    )
