import jax
import jax.numpy as jnp
import numpy as np

from zoo.nn.rope import apply_rope, rope_angles


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
