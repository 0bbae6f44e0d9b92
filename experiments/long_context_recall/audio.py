"""An audio haystack of recordings of digits: a keyword in a stream of others, or what was said at a given time.

Gemini 1.5 hides "the secret keyword is needle", spoken, in hours of VoxPopuli. With recordings of single words, as in
the optional folder `shared`, the keyword is one of some digits that the rest of the stream does not have; or each
recording comes after its time stamp, as a video's frames do, and the question names one.
"""

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.long_context_recall.needles import drawn_depth
from experiments.long_context_recall.samples import Sample, drawing
from experiments.multimodal.sources import SPEECH_RATE, Clip
from zoo.data.video import time_stamp
from zoo.errors import UserError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class AudioHaystack:
    """A stream of recordings."""

    ask: Literal["keyword", "time"] = "keyword"
    """For the word that is unlike the others, in one long recording; or for what is said at a time, in recordings each
    after its time stamp."""
    recordings: int = 60
    """In the stream."""
    keywords: tuple[int, ...] = (1, 4, 5, 7, 9)
    """Digits of which just one recording is in the stream, where the keyword is asked for. Of all divisions of the
    ten into two fives this one has the fewest confusions between both sides (docs/decisions.md, 2026-11-28)."""
    pause: float = 0.3
    """Seconds of silence after a recording."""
    step: float = 1.0
    """Seconds from one time stamp to the next; a longer recording is cut."""


def digit_in_a_stream(
    config: AudioHaystack,
    task: str,
    seed: int,
    clips: Sequence[Clip],
    folder: Path,
    number: int,
    depth: float | None = None,
) -> Sample:
    """Writes the recordings of sample `number` into a folder of its own below `folder`; the parts name them relative to
    it. What is asked for is recording round(depth / 100 * (recordings - 1))."""
    keyword = config.ask == "keyword"
    allowed = config.keywords if keyword else tuple(range(10))
    fitting = {True: [c for c in clips if c.digit in allowed], False: [c for c in clips if c.digit not in allowed]}
    if config.recordings < 1 or not fitting[True] or (keyword and not fitting[False]):
        raise UserError(
            f"{task}: needs recordings of the digits {allowed} and of others, and at least one in the stream"
        )
    random = drawing(seed, task, number)
    depth = drawn_depth(depth, random)
    place = round(depth / 100 * (config.recordings - 1))
    choose = lambda found: found[random.integers(len(found))]  # noqa: E731
    right = choose(fitting[True])
    others = [choose(fitting[not keyword]) for _ in range(config.recordings - 1)]
    stream = [*others[:place], right, *others[place:]]
    name = f"{task}-{number}-{config.recordings}-{depth:g}"
    (folder / name).mkdir(parents=True, exist_ok=True)
    parts: list[dict] = []
    if keyword:
        gap = np.zeros(round(config.pause * SPEECH_RATE), np.int16)
        write_wav(
            folder / name / "stream.wav", np.concatenate([part for clip in stream for part in (clip.samples, gap)])
        )
        question = keyword_question(allowed)
        parts.append({"audio": f"{name}/stream.wav"})
        at = sum(len(clip.samples) + len(gap) for clip in stream[:place]) / SPEECH_RATE
    else:
        at = place * config.step
        question = f"Which digit is spoken at {time_stamp(at)}?"
        if config.step < 1:
            raise UserError(f"{task}: stamps are whole seconds, step must be at least 1, not {config.step}")
        for i, clip in enumerate(stream):
            write_wav(folder / name / f"{i}.wav", clip.samples[: round(config.step * SPEECH_RATE)])
            stamp = {"text": time_stamp(i * config.step), "loss": False}
            parts += [stamp, {"audio": f"{name}/{i}.wav"}]
    word = WORDS[right.digit]
    return Sample(
        task=task,
        prompt=np.empty(0, np.int32),
        parts=(*parts, {"text": f"\n{question}", "loss": False}),
        references=(word,),
        answer=f" {word}",
        max_new_tokens=8,
        metric="exact_span",
        candidates=tuple(f" {WORDS[digit]}" for digit in allowed),
        question=question,
        facts={"recordings": len(stream), "depth": depth, "recording": place, "seconds": round(at, 3)},
    )


def keyword_question(keywords: Sequence[int]) -> str:
    """What is asked of one long recording."""
    return "Which keyword is spoken: " + ", ".join(WORDS[digit] for digit in keywords) + "?"


def write_wav(path: Path, samples: np.ndarray) -> None:
    """16 bits, mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPEECH_RATE)
        file.writeframes(samples.astype("<i2").tobytes())
