"""Log-mel features of 16 kHz recordings, computed in float64 on the host.

USM style (Gemma 3n): 32 ms frames every 10 ms, magnitudes, natural logarithm. Whisper style: 25 ms frames every 10 ms
around their centre, powers, decimal logarithm, scaled by the loudest feature. Sources: transformers 5.23,
models/gemma3n/feature_extraction_gemma3n.py and models/whisper/feature_extraction_whisper.py.
"""

import functools
import math

import numpy as np
from jaxtyping import Float

SAMPLE_RATE = 16_000
"""Samples per second that both front ends expect."""
HOP = 160
"""Samples between the beginnings of two frames: 10 ms."""
USM_FLOOR = 1e-5
"""Smallest magnitude of a mel band in the USM style."""
USM_SILENCE = math.log(USM_FLOOR)
"""What the USM style gives for silence, in every band."""

_USM_FRAME = 512
_USM_FFT = 1024
_USM_BAND = (125.0, 7600.0)
_PREEMPHASIS = 0.97
_WHISPER_FFT = 400
_WHISPER_FLOOR = 1e-10
_WHISPER_RANGE = 8.0
_FRAMES_AT_ONCE = 4096
"""Bounds the memory of long recordings."""


def usm_frames(num_samples: int) -> int:
    """Frames of a recording in the USM style: one for every 10 ms that it has begun."""
    return -(-num_samples // HOP)


def usm_log_mel(samples: Float[np.ndarray, "n"], *, num_mel_bins: int = 128) -> Float[np.ndarray, "f m"]:
    """float32 log(max(mel . |FFT(hann * e)|, 1e-5)) of frames of 512 samples, a new one every 160.

    e is the frame with the beginning of a word made clearer: e[0] = 0.03 s[0], e[i] = s[i] - 0.97 s[i - 1]. FFT of 1024
    points, triangular bands between 125 and 7,600 Hz, equally spaced in mel(f) = 2595 log10(1 + f / 700). The
    recording is followed by silence, so that it has `usm_frames(n)` frames.

    samples: -1..1 at 16 kHz. ValueError when they are not a floating array of one axis.
    """
    samples = _checked(samples)
    frames = _framed(np.pad(samples, (0, _USM_FRAME)), _USM_FRAME, usm_frames(len(samples)))
    bands = _htk_bands(num_mel_bins)
    window = _hann(_USM_FRAME)
    features = np.empty((len(frames), num_mel_bins), np.float32)
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        part = frames[start : start + _FRAMES_AT_ONCE]
        emphasised = np.concatenate([(1 - _PREEMPHASIS) * part[:, :1], part[:, 1:] - _PREEMPHASIS * part[:, :-1]], 1)
        magnitudes = np.abs(np.fft.rfft(emphasised * window, _USM_FFT))
        features[start : start + len(part)] = np.log(np.maximum(magnitudes @ bands, USM_FLOOR))
    return features


def whisper_log_mel(
    samples: Float[np.ndarray, "n"], *, num_mel_bins: int = 80, num_samples: int = 30 * SAMPLE_RATE
) -> Float[np.ndarray, "m f"]:
    """float32 (max(x, max(x) - 8) + 4) / 4 with x = log10(max(mel . |FFT(hann * s)|^2, 1e-10)).

    Frames of 400 samples are centred on every 160th sample; the recording is cut to `num_samples` or followed by
    silence up to there, and mirrored at both ends. Triangular bands between 0 and 8,000 Hz with equal areas; mel(f) is
    linear up to 1,000 Hz and logarithmic above (Slaney). The result has num_samples / 160 frames, the last axis.

    samples: -1..1 at 16 kHz. ValueError when they are not a floating array of one axis.
    """
    samples = _checked(samples)[:num_samples]
    samples = np.pad(samples, (0, num_samples - len(samples)))
    frames = _framed(np.pad(samples, _WHISPER_FFT // 2, mode="reflect"), _WHISPER_FFT, num_samples // HOP)
    bands, window = _slaney_bands(num_mel_bins), _hann(_WHISPER_FFT)
    parts = [frames[i : i + _FRAMES_AT_ONCE] * window for i in range(0, len(frames), _FRAMES_AT_ONCE)]
    powers = np.concatenate([np.square(np.abs(np.fft.rfft(part))) @ bands for part in parts])
    logarithms = np.log10(np.maximum(powers, _WHISPER_FLOOR))
    scaled = (np.maximum(logarithms, logarithms.max() - _WHISPER_RANGE) + 4) / 4
    return scaled.T.astype(np.float32)


def _checked(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"samples must be one axis of floating numbers in -1..1, got {samples.dtype} {samples.shape}")
    return samples.astype(np.float64)


def _framed(samples: np.ndarray, size: int, count: int) -> np.ndarray:
    """[count, size]: a view of `count` frames that begin every `HOP` samples."""
    if count == 0:
        return np.empty((0, size))
    return np.lib.stride_tricks.sliding_window_view(samples, size)[::HOP][:count]


@functools.cache
def _hann(size: int) -> np.ndarray:
    """(1 - cos(2 pi i / size)) / 2: periodic, the window of spectra."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


@functools.cache
def _htk_bands(count: int) -> np.ndarray:
    low, high = (2595 * np.log10(1 + edge / 700) for edge in _USM_BAND)
    edges = 700 * (10 ** (np.linspace(low, high, count + 2) / 2595) - 1)
    return _triangles(np.arange(_USM_FFT // 2 + 1) * (SAMPLE_RATE / _USM_FFT), edges)


@functools.cache
def _slaney_bands(count: int) -> np.ndarray:
    """Bands of equal area; 15 mel are 1,000 Hz, and 27 mel more are 6.4 times as much."""
    mel = np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), count + 2)
    edges = np.where(mel < 15, mel * (200 / 3), 1000 * 6.4 ** ((mel - 15) / 27))
    frequencies = np.linspace(0, SAMPLE_RATE / 2, _WHISPER_FFT // 2 + 1)
    return _triangles(frequencies, edges) * (2 / (edges[2:] - edges[:-2]))


def _triangles(frequencies: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[frequencies, bands]: band i rises from edge i to 1 at edge i + 1 and falls to zero at edge i + 2."""
    distance = frequencies[:, None] - edges
    rising = distance[:, :-2] / (edges[1:-1] - edges[:-2])
    falling = -distance[:, 2:] / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))
