"""Recordings as they might have been heard otherwise, drawn anew at each step: features that are bent and noisy."""

import numpy as np
from jaxtyping import Bool, Float32

NOISE, NOISE_SPREAD = (-11.0, -6.0), 0.7
"""Loudness of the noise, from silence on (`zoo.data.log_mel.USM_SILENCE`, -11.5), and its deviation between cells."""
TILT, GAIN = 0.7, 0.5
"""Most difference between the middle and the highest band, and between clips."""
BENT_FRAMES, BENT_BANDS = 0.08, 0.05
"""How far a point of the middle half is moved at most, as a part of all frames and of all bands."""


def heard_otherwise(
    mel: Float32[np.ndarray, "*clips frames bins"],
    real: Bool[np.ndarray, "*clips frames"],
    random: np.random.Generator,
) -> Float32[np.ndarray, "*clips frames bins"]:
    """Bent, and then noisy."""
    return with_noise(bent(mel, real, random), random)


def with_noise(
    mel: Float32[np.ndarray, "*clips frames bins"], random: np.random.Generator
) -> Float32[np.ndarray, "*clips frames bins"]:
    """Clips in noise, each in one of its own loudness and slope over the bands, and heard through a filter that is
    another one for each clip: log(exp(mel) + exp(noise)) + filter, in natural logarithms of magnitudes."""
    one, slope = (*mel.shape[:-2], 1, 1), np.linspace(-1, 1, mel.shape[-1])
    noise = random.uniform(*NOISE, size=one) + random.uniform(-1, 1, size=one) * slope
    noise = noise + NOISE_SPREAD * random.standard_normal(mel.shape, np.float32)
    tilt = random.uniform(-TILT, TILT, size=one) * slope + random.uniform(-GAIN, GAIN, size=one)
    return (np.logaddexp(mel, noise) + tilt).astype(np.float32)


def bent(
    mel: Float32[np.ndarray, "*clips frames bins"],
    real: Bool[np.ndarray, "*clips frames"],
    random: np.random.Generator,
) -> Float32[np.ndarray, "*clips frames bins"]:
    """Clips whose first part is slower and whose second faster, or the other way round, and whose bands are bent in the
    same way: frame t is what was heard at f(t), band b at g(b), piecewise linear with a knee. The first and the last
    real frame and band stay, so that what goes on in the next clip does. (Time warping is SpecAugment's, arXiv
    1904.08779; bending bands is like vocal tract length perturbation, Jaitly and Hinton 2013.)"""
    clips, (frames, bins) = mel.reshape(-1, *mel.shape[-2:]), mel.shape[-2:]
    last = np.maximum(real.reshape(-1, frames).sum(1) - 1, 1)
    found = _read_at(clips, _knee(last, frames, BENT_FRAMES, random), axis=1)
    found = _read_at(found, _knee(np.full(len(clips), bins - 1), bins, BENT_BANDS, random), axis=2)
    return found.reshape(mel.shape)


def _knee(last: np.ndarray, size: int, most: float, random: np.random.Generator) -> np.ndarray:
    """[clips, size]: where to read; 0 and `last` stay, and what is beyond that."""
    knee = random.uniform(0.25, 0.75, size=len(last)) * last
    moved = knee + random.uniform(-most, most, size=len(last)) * last
    at, end = np.arange(size, dtype=np.float32), last[:, None]
    first, second = at * (moved / knee)[:, None], end - (end - at) * ((last - moved) / (last - knee))[:, None]
    return np.where(at <= knee[:, None], first, np.where(at <= end, second, at))


def _read_at(clips: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation of float32 [clips, frames, bins] along an axis at positions [clips, that axis]."""
    below = np.minimum(at.astype(np.int64), clips.shape[axis] - 2)
    shape = (len(clips), -1, 1) if axis == 1 else (len(clips), 1, -1)
    index, part = below.reshape(shape), (at - below).reshape(shape).astype(np.float32)
    low, high = (np.take_along_axis(clips, i, axis) for i in (index, index + 1))
    return low + part * (high - low)
