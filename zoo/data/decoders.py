"""What audio and video files have in common: opening them with PyAV and saying in one line what is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.data.media import BadMedia
from zoo.errors import UserError

AUDIO_FORMATS = {
    ".wav": ("wav",),
    ".flac": ("flac",),
    ".mp3": ("mp3",),
    ".ogg": ("ogg",),
    ".opus": ("ogg",),
    ".m4a": ("mov", "mp4"),
    ".aac": ("aac",),
}
"""The container's names of a recording with this extension."""

VIDEO_FORMATS = {
    ".mp4": ("mov", "mp4"),
    ".m4v": ("mov", "mp4"),
    ".mov": ("mov", "mp4"),
    ".mkv": ("matroska",),
    ".webm": ("webm", "matroska"),
    ".avi": ("avi",),
}
"""The container's names of a video with this extension."""


@contextmanager
def opened(path: Path, formats: dict[str, tuple[str, ...]]) -> Iterator[Any]:
    """The PyAV container of a file. Raises `BadMedia` if it is missing, empty, not what its extension says, or damaged,
    also where that is found out only inside of the block."""
    try:
        import av
    except ImportError:
        raise UserError(f"{path}: reading audio and video needs PyAV: pip install '.[media]'") from None
    kind, expected = path.suffix.lower(), formats[path.suffix.lower()]
    try:
        if path.stat().st_size == 0:
            raise BadMedia(f"{path}: an empty file")
        with av.open(str(path), metadata_errors="replace") as container:
            found = container.format.name.split(",")
            if not set(expected) & set(found):
                raise BadMedia(f"{path}: not a {kind} file but {found[0]}: mend its extension")
            yield container
    except FileNotFoundError:
        raise BadMedia(f"{path}: no such file") from None
    except (av.FFmpegError, OSError) as error:
        raise BadMedia(f"{path}: a damaged {kind} file: {error.strerror or error}") from None
