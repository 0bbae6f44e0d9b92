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
        # Titles that are no UTF-8 are no reason to refuse a file; from PyAV 19 on they never are one.
        lenient: Any = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
        with av.open(str(path), **lenient) as container:
            found = container.format.name.split(",")
            if not set(expected) & set(found):
                raise BadMedia(f"{path}: not a {kind} file but {found[0]}: mend its extension")
            yield container
    except FileNotFoundError:
        raise BadMedia(f"{path}: no such file") from None
    except (av.FFmpegError, OSError, ValueError) as error:  # ValueError: a stream that changes its nature on the way
        raise BadMedia(f"{path}: a damaged {kind} file: {getattr(error, 'strerror', None) or error}") from None


def check_decodable(path: Path, stream: Any) -> None:
    """Raises `BadMedia` for a stream whose codec is not known."""
    if stream.codec_context is None:
        raise BadMedia(f"{path}: a damaged file, or of a codec that is not known")
