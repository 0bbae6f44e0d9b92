"""Media files for tests: images, recordings and videos, good ones and bad ones."""

import json
import struct
import wave
from pathlib import Path

import numpy as np

RATE = 16_000


def write_image(path: Path, height: int = 16, width: int = 16, seed: int = 0, **options) -> Path:
    """An image of random pixels."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_wav(path: Path, seconds: float = 0.2, rate: int = RATE, pitch: float = 440.0) -> Path:
    """A tone, 16-bit mono."""
    samples = 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def write_float_wav(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    """32-bit floating-point samples, mono."""
    data = samples.astype("<f4").tobytes()
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, 1, rate, 4 * rate,
                         4, 32, b"data", len(data))  # fmt: skip
    path.write_bytes(header + data)
    return path


def write_video(path: Path, frames: np.ndarray, fps: int, codec: str = "mpeg4", key_every: int = 12) -> Path:
    """Frames [n, h, w, 3] as a video file."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.gop_size = key_every
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def counting_frames(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Frame i is grey of level 2 i + 16 (mod 224): which frame was taken can be told from it."""
    levels = (2 * np.arange(count) + 16) % 224
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def write_records(path: Path, records: list) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
