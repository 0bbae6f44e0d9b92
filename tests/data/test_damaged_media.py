"""Files with any bytes in them are read or refused; nothing else is raised, whatever the decoders do."""

import numpy as np
import pytest

from tests.data.media_files import counting_frames, write_image, write_video, write_wav
from zoo.data import BadMedia, MediaConfig
from zoo.data.audio import read_audio
from zoo.data.images import read_image
from zoo.data.video import read_video

WRITE = {
    ".png": lambda path: write_image(path, 40, 40),
    ".jpg": lambda path: write_image(path, 40, 40),
    ".wav": lambda path: write_wav(path, 0.2),
    ".mp4": lambda path: write_video(path, counting_frames(20), 10),
    ".mkv": lambda path: write_video(path, counting_frames(20), 10),
}


def damaged(data: bytes, number: int) -> bytes:
    """A part of the file, or the file with some bytes changed, most of them near its beginning."""
    random = np.random.default_rng(number)
    if number % 4 == 0:
        return data[: random.integers(1, len(data))]
    changed = bytearray(data)
    for _ in range(random.integers(1, 20)):
        changed[random.integers(len(changed) if number % 2 else min(len(changed), 200))] = random.integers(256)
    return bytes(changed)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("extension", WRITE)
def test_damaged_files_are_read_or_refused_in_one_line_that_names_them(tmp_path, extension):
    path = WRITE[extension](tmp_path / f"a{extension}")
    data, refused = path.read_bytes(), 0
    read = {".wav": lambda: read_audio(path, 2), ".mp4": lambda: read_video(path, MediaConfig())}
    read |= {".mkv": read[".mp4"], ".png": lambda: read_image(path, MediaConfig())}
    for number in range(80):
        path.write_bytes(damaged(data, number))
        try:
            read.get(extension, read[".png"])()
        except BadMedia as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 20
