"""Videos: from a file, or a folder of frames, to some frames and the times at which they are shown. Sound is left out.

Frames are taken at a chosen rate (Gemini 1.5: one a second), of a longer video a largest number at equal distances
(Gemini 1.0: 16).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from zoo.data.decoders import VIDEO_FORMATS, check_decodable, opened
from zoo.data.images import FORMATS, check_size, read_image
from zoo.data.media import BadMedia
from zoo.data.media_config import MediaConfig

Frame = tuple[float, UInt8[np.ndarray, "h w 3"]]
"""Seconds from the beginning, and the pixels as RGB."""

FAR = 10.0
"""Seconds to the next wanted frame beyond which the file is wound there instead of being decoded up to there."""

ROUNDING = 1e-6
"""Seconds by which times may differ that are meant to be equal."""


def time_stamp(seconds: float) -> str:
    """MM:SS, the text in front of a frame (Gemini 1.5 report, section 5.2.1.2)."""
    whole = int(seconds)
    return f"{whole // 60:02}:{whole % 60:02}"


def sample_times(duration: float, fps: float, most: int) -> list[float]:
    """The times i / fps below `duration`; if these are more than `most`, the centres of `most` equal parts of it."""
    count = max(1, int(np.ceil(duration * fps - ROUNDING)))
    if count <= most:
        return [i / fps for i in range(count)]
    return [(i + 0.5) * duration / most for i in range(most)]


def read_video(path: Path, config: MediaConfig, folder_fps: float = 1.0) -> list[Frame]:
    """The sampled frames of a video file or of a folder of images, which were taken `folder_fps` a second and are
    sorted by name, numbers by value. Raises `BadMedia` naming the file."""
    if path.is_dir():
        files = frame_files(path)
        if not files:
            raise BadMedia(f"{path}: a video without frames: no {', '.join(FORMATS)} file in this folder")
        times = sample_times(len(files) / folder_fps, config.video_fps, config.video_frames)
        numbers = [min(int(time * folder_fps + ROUNDING), len(files) - 1) for time in times]
        return [(time, read_image(files[number], config)) for time, number in zip(times, numbers, strict=True)]
    with opened(path, VIDEO_FORMATS) as container:
        return list(_frames(path, container, config))


def frame_files(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name, numbers by value."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in FORMATS and not file.name.startswith(".")]
    return sorted(files, key=lambda file: [(int(p), "") if p.isdigit() else (-1, p) for p in _parts(file.name)])


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"([0-9]+)", name) if part]


def _frames(path: Path, container: Any, config: MediaConfig) -> Iterator[Frame]:
    """At each wanted time the newest frame that is not after it."""
    if not container.streams.video:
        raise BadMedia(f"{path}: a video without frames: no video stream in this file")
    stream = container.streams.video[0]
    check_decodable(path, stream)
    check_size(path, stream.codec_context.width, stream.codec_context.height, config)
    duration = _duration(path, container, stream)
    first = float((stream.start_time or 0) * stream.time_base)
    shown: Any = None
    following: Any = None
    decoded, position = container.decode(stream), 0.0
    for time in sample_times(duration, config.video_fps, config.video_frames):
        if time - position > FAR and following is not None:
            container.seek(int((first + time) / stream.time_base), stream=stream, backward=True)
            decoded = container.decode(stream)
            following = next(decoded, None)
        elif following is None and shown is None:
            following = next(decoded, None)
        while following is not None and _seconds(path, following) - first <= time + ROUNDING:
            shown, following = following, next(decoded, None)
        if shown is None and following is None:
            raise BadMedia(f"{path}: a video without frames")
        shown = shown or following  # the first frame may come a little late
        position = shown.time - first
        if following is None and time > position + max(1.0, 0.1 * duration):
            raise BadMedia(f"{path}: truncated: frames end at {position:.1f} of {duration:.1f} seconds")
        yield time, _pixels(shown)


def _seconds(path: Path, frame: Any) -> float:
    if frame.time is None:
        raise BadMedia(f"{path}: frames without time stamps")
    return frame.time


def _duration(path: Path, container: Any, stream: Any) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return container.duration / 1e6
    raise BadMedia(f"{path}: its length is not known; write it anew with a tool that stores it")


def _pixels(frame: Any) -> UInt8[np.ndarray, "h w 3"]:
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
