import numpy as np
import pytest

from tests.data.media_files import counting_frames, write_image, write_video, write_wav
from zoo.data import BadMedia, MediaConfig
from zoo.data.video import read_video, sample_times, time_stamp


def levels(frames) -> list[float]:
    return [float(pixels.mean()) for _, pixels in frames]


def test_time_stamps_are_minutes_and_seconds():
    assert [time_stamp(seconds) for seconds in (0, 9.99, 61, 6000)] == ["00:00", "00:09", "01:01", "100:00"]


def test_frames_are_taken_at_the_rate_and_of_longer_videos_at_equal_distances():
    assert sample_times(4.0, 1.0, 16) == [0, 1, 2, 3]
    assert sample_times(1.0, 2.0, 16) == [0, 0.5]
    assert sample_times(0.1, 1.0, 16) == [0]
    assert sample_times(100.0, 1.0, 4) == [12.5, 37.5, 62.5, 87.5]


@pytest.mark.parametrize("extension, codec", [("mp4", "mpeg4"), ("mkv", "mpeg4"), ("mov", "mpeg4"), ("avi", "mpeg4")])
def test_frames_of_a_file_are_those_that_are_shown_at_their_times(tmp_path, extension, codec):
    path = write_video(tmp_path / f"a.{extension}", counting_frames(40), 10, codec)
    frames = read_video(path, MediaConfig(video_fps=2))
    assert [time for time, _ in frames] == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    np.testing.assert_allclose(levels(frames), [16 + 10 * i for i in range(8)], atol=4)
    assert frames[0][1].shape == (32, 32, 3) and frames[0][1].dtype == np.uint8


@pytest.mark.parametrize("key_every", [12, 1000])
def test_a_long_video_is_wound_and_gives_the_same_frames_as_if_it_were_not(tmp_path, monkeypatch, key_every):
    path = write_video(tmp_path / "a.mp4", counting_frames(600), 10, key_every=key_every)
    config = MediaConfig(video_frames=3)
    wound = read_video(path, config)
    assert [time for time, _ in wound] == [10, 30, 50]
    monkeypatch.setattr("zoo.data.video.FAR", 1e9)
    for (_, a), (_, b) in zip(wound, read_video(path, config), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(levels(wound), [(2 * i) % 224 + 16 for i in (100, 300, 500)], atol=4)


def test_a_folder_of_frames_has_a_rate_and_is_sorted_by_number(tmp_path):
    for number in (10, 2, 1, 9):
        write_image(tmp_path / f"frame{number}.png", 8, 8 + number)
    (tmp_path / "notes.txt").write_text("no frame")
    widths = [pixels.shape[1] - 8 for _, pixels in read_video(tmp_path, MediaConfig())]
    assert widths == [1, 2, 9, 10]
    frames = read_video(tmp_path, MediaConfig(video_fps=1), folder_fps=2)
    assert [(time, pixels.shape[1] - 8) for time, pixels in frames] == [(0, 1), (1, 9)]


def test_videos_without_frames_are_refused(tmp_path):
    with pytest.raises(BadMedia, match="a video without frames: no .png"):
        read_video(tmp_path, MediaConfig())
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode()])
    with pytest.raises(BadMedia, match="a.mp4: a video without frames: no video stream in this file"):
        read_video(tmp_path / "a.mp4", MediaConfig())


def test_damaged_and_wrongly_named_videos_are_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", counting_frames(20), 10)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadMedia, match="a.mp4: a damaged .mp4 file"):
        read_video(path, MediaConfig())
    path = write_video(tmp_path / "b.avi", counting_frames(40), 10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
    with pytest.raises(BadMedia, match="b.avi: (truncated: frames end at|a damaged)"):
        read_video(path, MediaConfig())
    write_wav(tmp_path / "c.wav").rename(tmp_path / "c.mp4")
    with pytest.raises(BadMedia, match="c.mp4: not a .mp4 file but wav: mend its extension"):
        read_video(tmp_path / "c.mp4", MediaConfig())


def test_frames_of_refused_sizes_are_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", counting_frames(3), 10)
    with pytest.raises(BadMedia, match="32 x 32 pixels, a side has more than media.max_image_side=16"):
        read_video(path, MediaConfig(max_image_side=16))
