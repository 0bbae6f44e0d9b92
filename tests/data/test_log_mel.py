"""Log-mel features are those of transformers' feature extractors, and what their formulas say."""

from pathlib import Path

import numpy as np
import pytest

from zoo.data import log_mel
from zoo.data.log_mel import HOP, SAMPLE_RATE, USM_SILENCE, usm_frames, usm_log_mel, whisper_log_mel

TOLERANCE = 2e-5
# transformers rounds this window to float32: with ours in its place the difference is below 1e-6 (measured).
USM_TOLERANCE = 3e-4


@pytest.fixture(scope="module")
def golden(repository: Path) -> dict[str, np.ndarray]:
    with np.load(repository / "tests" / "goldens" / "encoders" / "log_mel.npz", allow_pickle=False) as file:
        return dict(file)


def test_usm_features_are_those_of_transformers(golden):
    features = usm_log_mel(golden["samples"] / 32_768)
    assert features.dtype == np.float32 and features.shape == (38, 128)
    np.testing.assert_allclose(features, golden["usm"], atol=USM_TOLERANCE)


@pytest.mark.parametrize("bins", [80, 128])
def test_whisper_features_are_those_of_transformers(golden, bins):
    features = whisper_log_mel(golden["samples"] / 32_768, num_mel_bins=bins, num_samples=SAMPLE_RATE)
    assert features.dtype == np.float32 and features.shape == (bins, 100)
    np.testing.assert_allclose(features[:, ::8], golden[f"whisper_{bins}"], atol=TOLERANCE)


def test_a_usm_frame_is_what_its_formula_says():
    samples = np.random.default_rng(0).normal(size=2000)
    frame = samples[3 * HOP : 3 * HOP + 512]
    emphasised = np.append(0.03 * frame[0], frame[1:] - 0.97 * frame[:-1])
    angles = 2 * np.pi * np.outer(np.arange(513), np.arange(512)) / 1024
    windowed = emphasised * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512))
    magnitudes = np.abs(np.exp(-1j * angles) @ windowed)
    mel = np.linspace(*(2595 * np.log10(1 + np.array([125.0, 7600.0]) / 700)), 42)
    edges = 700 * (10 ** (mel / 2595) - 1)
    low, centre, high = edges[9:12]
    hertz = np.arange(513) * SAMPLE_RATE / 1024
    band = np.interp(hertz, [low, centre, high], [0, 1, 0])
    assert usm_log_mel(samples, num_mel_bins=40)[3, 9] == pytest.approx(np.log(band @ magnitudes), abs=1e-5)


def test_a_tone_is_loudest_in_its_own_band():
    tone = np.sin(2 * np.pi * 1000 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    mel = np.linspace(*(2595 * np.log10(1 + np.array([125.0, 7600.0]) / 700)), 130)[1:-1]
    wanted = np.abs(700 * (10 ** (mel / 2595) - 1) - 1000).argmin()
    assert (usm_log_mel(tone)[:-4].argmax(axis=1) == wanted).all()


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (1, 1), (160, 1), (161, 2), (16_000, 100)])
def test_a_recording_has_a_frame_for_every_10_ms_that_it_has_begun(samples, frames):
    assert usm_frames(samples) == frames
    assert usm_log_mel(np.zeros(samples), num_mel_bins=8).shape == (frames, 8)


def test_silence_has_one_value():
    np.testing.assert_array_equal(usm_log_mel(np.zeros(800)), np.float32(USM_SILENCE))
    assert len(np.unique(whisper_log_mel(np.zeros(800), num_samples=3200))) == 1


def test_long_recordings_are_computed_in_parts_with_the_same_result(monkeypatch):
    samples = np.random.default_rng(0).normal(size=9000)
    usm, whisper = usm_log_mel(samples), whisper_log_mel(samples, num_samples=9600)
    monkeypatch.setattr(log_mel, "_FRAMES_AT_ONCE", 7)
    np.testing.assert_allclose(usm_log_mel(samples), usm, atol=1e-6)
    np.testing.assert_allclose(whisper_log_mel(samples, num_samples=9600), whisper, atol=1e-6)


def test_whisper_cuts_a_recording_that_is_too_long():
    samples = np.random.default_rng(0).normal(size=4000)
    longer = whisper_log_mel(samples, num_samples=3200)
    np.testing.assert_array_equal(longer, whisper_log_mel(samples[:3200], num_samples=3200))


@pytest.mark.parametrize("samples", [np.zeros(10, np.int16), np.zeros((2, 10))])
def test_what_is_no_waveform_is_refused(samples):
    for function in (usm_log_mel, whisper_log_mel):
        with pytest.raises(ValueError, match="one axis of floating numbers"):
            function(samples)
