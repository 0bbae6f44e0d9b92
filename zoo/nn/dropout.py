"""Dropout whose noise depends on a row's place in the batch alone, so that it is the same on every mesh."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def folded(keys: Key[Array, "b"], number: int | Int[Array, ""]) -> Key[Array, "b"]:
    """Other keys, one for each row, of a place in the model that `number` tells from the others."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def dropped(x: Float[Array, "b t d"], rate: float, keys: Key[Array, "b"] | None) -> Float[Array, "b t d"]:
    """x * m / (1 - rate), m being 0 with probability `rate` and else 1, drawn for every number of row i from keys[i]
    (Srivastava et al., JMLR 15, 2014). keys = None: x itself."""
    if keys is None or not rate:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)
