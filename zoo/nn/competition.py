"""Competition for a slot of a shared workspace, and the gate of its memory. Functions without parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from zoo.nn.parameters import precision_of


def competition(
    scores: Float[Array, "*b n"],
    visible: Bool[Array, "*#b n"] | None = None,
    top_k: int | None = None,
    renormalised: bool = True,
    losers_gradient: bool = False,
) -> Float32[Array, "*b n"]:
    """softmax over the last axis, of which the k largest weights stay and the others become 0.

    Of equal scores the first ones win, so that exactly k do; fewer where fewer are visible, and all weights are 0 where
    nothing is. Losers have no gradient whatever.

    Args:
      visible: what takes part at all; None = everything.
      top_k: k; None = no competition.
      renormalised: the softmax is over the winners, whose weights sum to 1; otherwise over all that is visible.
      losers_gradient: without renormalisation, the losers' scores keep their gradient as terms of the denominator.
    """
    scores = scores.astype(jnp.float32)
    seen = jnp.ones((), bool) if visible is None else visible
    kept = _winners(scores, seen, top_k) if top_k is not None and top_k < scores.shape[-1] else seen
    if not (renormalised or losers_gradient):
        scores = jnp.where(kept, scores, jax.lax.stop_gradient(scores))
    masked = jnp.where(kept if renormalised else seen, scores, -jnp.inf)
    largest = jax.lax.stop_gradient(jnp.max(masked, axis=-1, keepdims=True))
    terms = jnp.exp(masked - jnp.where(jnp.isfinite(largest), largest, 0))
    total = jnp.sum(terms, axis=-1, keepdims=True)
    return jnp.where(kept, terms / jnp.where(total == 0, 1, total), 0)


def _winners(scores, seen, top_k: int) -> Bool[Array, "*b n"]:
    """Where the k largest are. lax.top_k gives the first of equal ones first, so that its last entry says all: no array
    of [.., k, n] is needed."""
    masked = jax.lax.stop_gradient(jnp.where(seen, scores, -jnp.inf))
    values, places = jax.lax.top_k(masked, top_k)
    least, place = values[..., -1:], places[..., -1:]
    first = jnp.arange(scores.shape[-1]) <= place
    return seen & ((masked > least) | ((masked == least) & first))


def per_head_scores(
    query: Float[Array, "b q h k"], key: Float[Array, "b s h k"], scaled: bool
) -> Float32[Array, "b h q s"]:
    """query . key in each head, in float32, divided by the root of their width if `scaled`."""
    scores = jnp.einsum(
        "bqhk,bshk->bhqs", query, key, precision=precision_of(query.dtype), preferred_element_type=jnp.float32
    )
    return scores * query.shape[-1] ** -0.5 if scaled else scores


def gated_memory(
    memory: Float32[Array, "*b w"],
    update: Float32[Array, "*b w"],
    into: Float32[Array, "*b w"],
    keep: Float32[Array, "*b w"],
) -> Float32[Array, "*b w"]:
    """sigmoid(into) * tanh(update) + sigmoid(keep) * memory."""
    return jax.nn.sigmoid(into) * jnp.tanh(update) + jax.nn.sigmoid(keep) * memory


def identity_memory(batch_size: int, num_slots: int, width: int) -> Float32[Array, "b m w"]:
    """Slot j is row j of the identity. Slots that were alike would stay alike."""
    return jnp.broadcast_to(jnp.eye(num_slots, width, dtype=jnp.float32), (batch_size, num_slots, width))
