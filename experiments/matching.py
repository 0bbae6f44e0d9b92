"""How models of experiments are begun that must learn to match what is asked with what was told."""

from typing import Any

import jax.numpy as jnp


def begin_queries_like_keys(model: Any, likeness: float) -> None:
    """Changes W_Q of every global layer to c W_K + sqrt(1 - c^2) W_Q, c = `likeness`, each query head with the key head
    that it reads: the same content at two places is then alike before anything is learnt."""
    for number, layer in enumerate(model.layers):
        if model.config.window(number) is None:
            attention = layer.attention
            repeats = attention.query[...].shape[1] // attention.key[...].shape[1]
            key = jnp.repeat(attention.key[...], repeats, axis=1)
            attention.query[...] = likeness * key + (1 - likeness**2) ** 0.5 * attention.query[...]
