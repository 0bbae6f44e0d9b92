import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.errors import UserError
from zoo.nn.rope import LinearScaling, Llama3Scaling, apply_rope, rope_angles


def test_each_pair_is_rotated_as_a_complex_number():
    head_dim, theta = 8, 100.0
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, head_dim))
    positions = jnp.array([[0, 1, 2, 3, 4], [7, 8, 9, 100, 101]])
    angles = positions[..., None, None] * theta ** (-jnp.arange(0, head_dim, 2) / head_dim)
    rotated = (x[..., :4] + 1j * x[..., 4:]) * jnp.exp(1j * angles)
    expected = jnp.concatenate([rotated.real, rotated.imag], axis=-1)
    np.testing.assert_allclose(apply_rope(x, rope_angles(positions, head_dim, theta)), expected, atol=1e-5)


def test_scores_depend_on_the_distance_only():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def score(query_position, key_position):
        def rotate(x, position):
            return apply_rope(x, rope_angles(jnp.array([[position]]), 16, 10_000.0))

        return float((rotate(query, query_position) * rotate(key, key_position)).sum())

    np.testing.assert_allclose(score(5, 3), score(105, 103), atol=1e-4)
    assert abs(score(5, 3) - score(5, 2)) > 1e-3


def test_bfloat16_is_rotated_in_float32():
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 16)).astype(jnp.bfloat16)
    angles = rope_angles(jnp.arange(4)[None] + 5000, 16, 10_000.0)
    rotated = apply_rope(x, angles)
    assert rotated.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rotated, apply_rope(x.astype(jnp.float32), angles).astype(jnp.bfloat16))


def test_position_interpolation_divides_every_position_by_its_factor():
    stretched = rope_angles(jnp.array([[0, 3, 40, 4000]]), 16, 10_000.0, LinearScaling(4.0))
    between = jnp.array([[0, 3, 40, 4000]]) / 4
    plain = between[..., None, None] * 10_000.0 ** (-jnp.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(stretched[0][..., 8:], jnp.sin(plain), atol=1e-4)
    np.testing.assert_allclose(stretched[1][..., 8:], jnp.cos(plain), atol=1e-4)


def llama3_frequency(frequency: float, factor: float, low: float, high: float, original: int) -> float:
    """By wavelengths, case by case, as the released code has it."""
    wavelength = 2 * np.pi / frequency
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


@pytest.mark.parametrize(("factor", "low", "high", "original"), [(8.0, 1.0, 4.0, 8192), (3.0, 2.0, 16.0, 512)])
def test_llama3_scaling_keeps_short_waves_divides_long_ones_and_ramps_between(factor, low, high, original):
    powers = 500_000.0 ** (np.arange(0, 128, 2) / 128)
    found = Llama3Scaling(factor, original, low, high).frequencies(powers.astype(np.float32), 128, 500_000.0)
    expected = [llama3_frequency(1 / power, factor, low, high, original) for power in powers]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    ratio = found * powers
    assert ratio[0] == pytest.approx(1) and ratio[-1] == pytest.approx(1 / factor)
    assert ((ratio > 1.01 / factor) & (ratio < 0.99)).any(), "no frequency on the ramp"


def test_a_scaling_that_means_nothing_is_refused():
    with pytest.raises(UserError, match=r"rope_scaling\.factor must be positive, got 0"):
        LinearScaling(0.0)
    with pytest.raises(UserError, match=r"high_freq_factor must be above low_freq_factor = 4.0, got 4.0"):
        Llama3Scaling(8.0, 8192, low_freq_factor=4.0)
