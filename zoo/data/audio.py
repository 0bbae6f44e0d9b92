"""Recordings: from files to 16 kHz samples, and from samples to clips of log-mel features."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from zoo.data.decoders import AUDIO_FORMATS, check_decodable, opened
from zoo.data.log_mel import HOP, SAMPLE_RATE, usm_log_mel, whisper_log_mel
from zoo.data.media import BadMedia
from zoo.data.media_config import MediaConfig

LOUDEST = 4.0
"""A recording in -1..1 may overshoot; one beyond this was stored on another scale."""

EXACT_LENGTH = (".wav", ".flac", ".m4a", ".ogg", ".opus")
"""Kinds whose header or last page says how long they are; that of .mp3 and .aac is an estimate."""


def read_audio(path: Path, max_seconds: float) -> Float32[np.ndarray, " samples"]:
    """The first audio stream of a file as one channel at 16 kHz, in -1..1.

    Raises `BadMedia` naming the file if it is missing, empty, not what its extension says, damaged, truncated, without
    sound, longer than `max_seconds`, or holds values that are not finite."""
    with opened(path, AUDIO_FORMATS) as container:
        if not container.streams.audio:
            raise BadMedia(f"{path}: no audio in this file")
        stream = container.streams.audio[0]
        check_decodable(path, stream)
        declared = float(stream.duration * stream.time_base) if stream.duration else None
        if declared is not None and declared > max_seconds and path.suffix.lower() in EXACT_LENGTH:
            raise _too_long(path, f"{declared:,.1f}", max_seconds)
        samples = _decode(path, container, stream, max_seconds)
    if len(samples) == 0:
        raise BadMedia(f"{path}: no samples in this file")
    if path.suffix.lower() == ".wav" and (missing := _missing_bytes(path)):
        raise BadMedia(f"{path}: truncated: {missing:,} bytes of samples are missing")
    if not np.isfinite(samples).all():
        raise BadMedia(f"{path}: {np.count_nonzero(~np.isfinite(samples)):,} samples are not finite numbers")
    if np.abs(samples).max() > LOUDEST:
        raise BadMedia(f"{path}: samples up to {np.abs(samples).max():,.0f}, expected -1..1")
    seconds = len(samples) / SAMPLE_RATE
    if declared is not None and path.suffix.lower() in EXACT_LENGTH and seconds < 0.9 * declared - 0.1:
        raise BadMedia(f"{path}: truncated: {seconds:.2f} of {declared:.2f} seconds")
    return samples


def _missing_bytes(path: Path) -> int:
    """How many bytes of samples a RIFF file lacks, which its decoder passes over. One that was written as a stream does
    not know its size, and lacks none."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(12)[:4] != b"RIFF":
            return 0
        while len(header := file.read(8)) == 8:
            name, length = header[:4], int.from_bytes(header[4:], "little")
            if name == b"data":
                return 0 if length >= 0xFFFF_FF00 else max(0, file.tell() + length - size)
            file.seek(length + length % 2, 1)
    return 0


def clips_of(
    samples: Float32[np.ndarray, " samples"], config: MediaConfig
) -> tuple[Float32[np.ndarray, "clips frames bins"], Bool[np.ndarray, "clips frames"]]:
    """(mel, mask) of a recording in clips of `config.clip_frames` frames of 10 ms; the last one is filled up with
    zeros.

    usm: features of the whole recording, cut. whisper: features of each clip, since they depend on its loudest one."""
    size, bins = config.clip_frames, config.mel_bins
    frames = -(-len(samples) // HOP)
    count = -(-frames // size)
    mel = np.zeros((count * size, bins), np.float32)
    if config.log_mel == "usm":
        mel[:frames] = usm_log_mel(samples, num_mel_bins=bins)
    else:
        for start in range(0, frames, size):
            part = samples[start * HOP : (start + size) * HOP]
            features = whisper_log_mel(part, num_mel_bins=bins, num_samples=size * HOP).T
            real = min(size, frames - start)
            mel[start : start + real] = features[:real]
    return mel.reshape(count, size, bins), (np.arange(count * size) < frames).reshape(count, size)


def _decode(path: Path, container: Any, stream: Any, max_seconds: float) -> np.ndarray:
    import av

    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    parts, count = [], 0
    for frame in _frames_and_end(container.decode(stream)):
        for resampled in resampler.resample(frame):
            parts.append(resampled.to_ndarray().reshape(-1))
            count += len(parts[-1])
        if count > max_seconds * SAMPLE_RATE:
            raise _too_long(path, f"over {count / SAMPLE_RATE:,.1f}", max_seconds)
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _frames_and_end(frames: Any) -> Any:
    """None after the last frame makes the resampler give what it holds; it must have had one."""
    had_any = False
    for frame in frames:
        had_any = True
        yield frame
    if had_any:
        yield None


def _too_long(path: Path, seconds: str, limit: float) -> BadMedia:
    return BadMedia(
        f"{path}: {seconds} seconds of audio, a row holds {limit:g} (media.clips_per_row x media.clip_frames x 10 ms)"
    )
