"""What the implementations of decode attention share: argument types, soft-cap, and which slots are visible."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from zoo.kernels.attention.block import NO_MAXIMUM_SOFT_CAP
from zoo.kernels.attention.visibility import visible_pairs

HeldKeys = tuple[Shaped[Array, "b k h s"], Shaped[Array, "b k s h"], Int[Array, "b s"]]
OwnKey = tuple[Float[Array, "b k h"], Float[Array, "b k h"], Int[Array, "b 1"]]


def takes_maximum(logits_soft_cap: float | None, dtype: jnp.dtype) -> bool:
    """Whether softmax has to subtract the largest score: exp(capped score) fits float32 and bfloat16 without."""
    return logits_soft_cap is None or logits_soft_cap > NO_MAXIMUM_SOFT_CAP or dtype == jnp.float16


def capped(scores: Float[Array, "*x"], scale: float, logits_soft_cap: float | None) -> Float[Array, "*x"]:
    """c * tanh(scale * s / c); without a cap scale * s."""
    scores = scale * scores
    return scores if logits_soft_cap is None else logits_soft_cap * jnp.tanh(scores / logits_soft_cap)


def visible_blocks(
    query_positions: Int[Array, "#b 1"], positions: Int[Array, "b s"], sliding_window: int | None, block: int
) -> tuple[Int[Array, "b"], Int[Array, "b"]]:
    """(first, last) block of `block` slots that holds a visible key, int32 per row; first > last where none does.

    A row's visible slots are taken as one range. In the caches of this project they are one, but for at most one slot:
    the ring of a local layer has no more slots than its window.
    """
    seen = visible_pairs(query_positions, positions, sliding_window=sliding_window)
    # Slots are divided before the reduction, of which XLA makes one kernel; dividing its results takes ten small ones.
    own_block = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, seen.shape, 1), jnp.int32(block))
    none = jnp.int32(positions.shape[-1]), jnp.int32(-1)
    return jax.lax.reduce(
        (jnp.where(seen, own_block, none[0]), jnp.where(seen, own_block, none[1])),
        none,
        lambda one, other: (jnp.minimum(one[0], other[0]), jnp.maximum(one[1], other[1])),
        (1,),
    )
