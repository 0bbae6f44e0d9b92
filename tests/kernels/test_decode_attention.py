import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.kernels import dot_product_attention
from zoo.kernels.attention.decode import decode_attention
from zoo.kernels.attention.visibility import EMPTY_POSITION


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("soft_cap", [None, 50.0, 100.0])
@pytest.mark.parametrize("window", [None, 6])
def test_a_decode_step_is_attention_over_the_slots_and_the_token_itself(window, soft_cap, dtype):
    batch, heads, kv_heads, head_dim, slots = 3, 4, 2, 8, 11
    keys = jax.random.split(jax.random.key(0), 5)
    query = 3 * jax.random.normal(keys[0], (batch, 1, heads, head_dim), dtype)
    key, value = (jax.random.normal(k, (batch, slots + 1, kv_heads, head_dim), dtype) for k in keys[1:3])
    # A ring that was written from slot 4 on, one with empty slots, and a row whose own token is padding.
    positions = np.full((batch, slots + 1), EMPTY_POSITION, np.int32)
    positions[0] = [*range(17, 21), *range(10, 17), 21]
    positions[1, :5], positions[1, -1] = range(5), 5
    query_positions = np.array([[21], [5], [0]], np.int32)
    options = dict(scale=0.3, sliding_window=window, logits_soft_cap=soft_cap)
    out = decode_attention(
        query[:, 0],
        (key[:, :slots].transpose(0, 2, 3, 1), value[:, :slots].swapaxes(1, 2), positions[:, :slots]),
        (key[:, slots], value[:, slots], positions[:, slots:]),
        query_positions,
        **options,
    )
    expected = dot_product_attention(
        query,
        key,
        value,
        query_positions=query_positions,
        key_positions=positions,
        implementation="reference",
        **options,
    )[:, 0]
    tolerance = 2e-6 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(out.astype(np.float32), expected.astype(np.float32), atol=tolerance, rtol=0)
    assert not np.asarray(out[2]).any(), "a query that sees nothing gets zeros"
