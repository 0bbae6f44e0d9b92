import shutil

import numpy as np
import pytest

from tests.data.media_files import RATE, write_float_wav, write_image, write_wav
from zoo.data import BadMedia, MediaConfig
from zoo.data.audio import clips_of, read_audio
from zoo.data.log_mel import usm_log_mel


def test_recordings_of_other_rates_and_channels_come_as_16_khz_mono(tmp_path):
    same = read_audio(write_wav(tmp_path / "a.wav", 0.5), 1)
    other = read_audio(write_wav(tmp_path / "b.wav", 0.5, rate=44_100), 1)
    assert same.dtype == np.float32 and len(same) == 8000 and abs(len(other) - 8000) <= 2
    assert abs(np.abs(same).max() - 0.5) < 1e-3
    assert np.abs(same[1000:7000] - other[1000:7000]).max() < 0.02


@pytest.mark.parametrize("extension, codec", [("flac", "flac"), ("mp3", "mp3"), ("m4a", "aac"), ("aac", "aac")])
def test_compressed_recordings_are_read(tmp_path, extension, codec):
    import av

    path = tmp_path / f"a.{extension}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        tone = (0.5 * np.sin(0.1 * np.arange(RATE))).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
        frame.rate, frame.pts = RATE, 0
        resampler = av.AudioResampler(stream.format, stream.layout, RATE)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    samples = read_audio(path, 2)
    assert abs(len(samples) - RATE) < 2500 and 0.4 < np.abs(samples[4000:12_000]).max() < 0.6


def test_a_title_that_is_no_utf8_does_not_matter(tmp_path):
    title = b"INFOINAM" + (4).to_bytes(4, "little") + b"\xe9\xe8ab"
    data = write_wav(tmp_path / "a.wav").read_bytes() + b"LIST" + len(title).to_bytes(4, "little") + title
    (tmp_path / "a.wav").write_bytes(data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:])
    assert len(read_audio(tmp_path / "a.wav", 1)) == 3200


def test_a_recording_is_cut_into_clips_and_the_last_one_is_filled_up():
    config = MediaConfig(clip_frames=32, mel_bins=16, clips_per_row=3)
    samples = np.random.default_rng(0).normal(size=160 * 70 + 1).astype(np.float32)
    mel, mask = clips_of(samples, config)
    assert mel.shape == (3, 32, 16) and mask.sum() == 71 and mask[2].tolist() == [True] * 7 + [False] * 25
    np.testing.assert_array_equal(mel.reshape(96, 16)[:71], usm_log_mel(samples, num_mel_bins=16))
    assert (mel[2, 7:] == 0).all()


def test_whispers_features_are_those_of_each_clip():
    config = MediaConfig(clip_frames=32, mel_bins=16, clips_per_row=3, log_mel="whisper")
    samples = np.random.default_rng(0).normal(size=160 * 40).astype(np.float32)
    mel, mask = clips_of(samples, config)
    alone, _ = clips_of(samples[32 * 160 :], config)
    assert mel.shape == (2, 32, 16) and mask.sum() == 40
    np.testing.assert_array_equal(mel[1], alone[0])


def test_empty_and_missing_recordings_are_refused(tmp_path):
    with pytest.raises(BadMedia, match="a.wav: no such file"):
        read_audio(tmp_path / "a.wav", 1)
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(BadMedia, match="a.wav: an empty file"):
        read_audio(tmp_path / "a.wav", 1)
    with pytest.raises(BadMedia, match="a.wav: no samples in this file"):
        read_audio(write_wav(tmp_path / "a.wav", 0), 1)


def test_what_is_not_what_its_extension_says_is_refused(tmp_path):
    write_image(tmp_path / "a.png").rename(tmp_path / "a.wav")
    with pytest.raises(BadMedia, match="a.wav: not a .wav file but png"):
        read_audio(tmp_path / "a.wav", 1)
    (tmp_path / "a.wav").write_bytes(b"no sound at all" * 20)
    with pytest.raises(BadMedia, match="a.wav: a damaged .wav file"):
        read_audio(tmp_path / "a.wav", 1)
    shutil.copy(write_wav(tmp_path / "b.wav"), tmp_path / "b.flac")
    with pytest.raises(BadMedia, match="b.flac: not a .flac file but wav"):
        read_audio(tmp_path / "b.flac", 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rate", [RATE, 8000])
def test_samples_that_are_no_numbers_are_refused(tmp_path, value, rate):
    samples = np.zeros(1000)
    samples[500] = value
    with pytest.raises(BadMedia, match="a.wav: .* samples are not finite numbers"):
        read_audio(write_float_wav(tmp_path / "a.wav", samples, rate), 1)


def test_samples_on_another_scale_are_refused(tmp_path):
    with pytest.raises(BadMedia, match=r"samples up to 30,000, expected -1\.\.1"):
        read_audio(write_float_wav(tmp_path / "a.wav", np.full(1000, 30_000.0)), 1)


def test_a_truncated_recording_is_refused(tmp_path):
    path = write_wav(tmp_path / "a.wav", 1)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(BadMedia, match="a.wav: truncated: 12,044 bytes of samples are missing"):
        read_audio(path, 2)


def test_a_recording_longer_than_a_row_is_refused_before_all_of_it_is_decoded(tmp_path):
    path = write_wav(tmp_path / "a.wav", 3)
    with pytest.raises(BadMedia, match="a.wav: 3.0 seconds of audio, a row holds 0.96"):
        read_audio(path, 0.96)
    assert len(read_audio(path, 3)) == 3 * RATE
