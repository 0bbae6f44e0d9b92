"""Attention with a prefix: values and gradients against a dense softmax in float64, in every implementation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.kernels import dot_product_attention
from zoo.kernels.attention.prefix import Prefix

B, T, N, K, H, P = 2, 12, 4, 2, 8, 3
SCALE, CAP, WINDOW = 0.35, 5.0, 4


def inputs(dtype=np.float64):
    draw = np.random.default_rng(0)
    query, key, value = (draw.normal(size=(B, T, heads, H)) for heads in (N, K, K))
    prefix = Prefix(draw.normal(size=(P, K, H)), draw.normal(size=(P, K, H)), draw.uniform(0.2, 2, size=(B, P)))
    segments = np.repeat([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0], [1] * 12], 1, axis=0)
    return jax.tree.map(lambda x: x.astype(dtype), (query, key, value, prefix)), segments.astype(np.int32)


def dense(query, key, value, prefix, segments, *, window, sinks):
    """Every score written out."""
    key, value = (jnp.repeat(x, N // K, axis=2) for x in (key, value))
    learned_key, learned_value = (jnp.repeat(x, N // K, axis=1) for x in (prefix.key, prefix.value))
    cap = lambda s: CAP * jnp.tanh(s / CAP)  # noqa: E731
    own = jnp.exp(cap(SCALE * jnp.einsum("btnh,bsnh->bnts", query, key)))
    places = np.arange(T)
    mask = (places[:, None] >= places) & (segments[:, :, None] == segments[:, None])
    mask &= places[:, None] - places < (window or T)
    own = own * mask[:, None]
    gate = jnp.broadcast_to(prefix.gate, (B, P))
    learned = gate[:, None, None] * jnp.exp(cap(SCALE * jnp.einsum("btnh,pnh->bntp", query, learned_key)))
    total = own.sum(-1) + learned.sum(-1) + (0 if sinks is None else jnp.exp(sinks)[:, None])
    out = jnp.einsum("bnts,bsnh->btnh", own, value) + jnp.einsum("bntp,pnh->btnh", learned, learned_value)
    return out / jnp.moveaxis(total, 1, 2)[..., None]


@pytest.mark.parametrize(
    "implementation, window",
    [("reference", None), ("xla", None), ("xla", WINDOW), ("pallas_tpu", WINDOW)],
)
def test_values_and_gradients_are_those_of_one_softmax(implementation, window):
    dtype = np.float32 if implementation == "pallas_tpu" else np.float64
    sinks = np.array([0.3, -1.0, 0.0, 2.0], dtype) if implementation == "xla" else None
    weights = np.random.default_rng(1).normal(size=(B, T, N, H))

    def loss(arrays, attend):
        return jnp.sum(weights * attend(*arrays))

    with jax.enable_x64(dtype == np.float64):
        arrays, segments = inputs(dtype)

        def ours(query, key, value, prefix):
            places = jnp.arange(T, dtype=jnp.int32)[None]
            return dot_product_attention(
                query,
                key,
                value,
                scale=SCALE,
                sliding_window=window,
                logits_soft_cap=CAP,
                query_positions=places,
                key_positions=places,
                query_segment_ids=segments,
                key_segment_ids=segments,
                ordered_positions=True,
                sinks=sinks,
                prefix=prefix,
                implementation=implementation,
            )

        def wanted(*arrays):
            return dense(*arrays, segments, window=window, sinks=sinks)

        tolerance = 1e-9 if dtype == np.float64 else 2e-4
        np.testing.assert_allclose(jax.jit(ours)(*arrays), wanted(*arrays), atol=tolerance)
        found, expected = (jax.jit(jax.grad(partial(loss, attend=attend)))(arrays) for attend in (ours, wanted))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=10 * tolerance)


def test_a_gate_of_zero_is_no_prefix():
    (query, key, value, prefix), _ = inputs(np.float32)
    none = prefix._replace(gate=np.zeros(P, np.float32))
    options = dict(scale=SCALE, implementation="xla")
    with_none = dot_product_attention(query, key, value, prefix=none, **options)
    np.testing.assert_allclose(with_none, dot_product_attention(query, key, value, **options), atol=1e-6)


def test_an_implementation_that_gives_no_sums_is_refused():
    (query, key, value, prefix), _ = inputs(np.float32)
    with pytest.raises(NotImplementedError, match="'splash' does not support a prefix"):
        dot_product_attention(query, key, value, prefix=prefix, scale=SCALE, implementation="splash")
