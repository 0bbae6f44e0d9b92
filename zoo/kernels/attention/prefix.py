"""Attention to the keys of a sequence and to a prefix of learned keys and values (Li and Liang, arXiv 2101.00190).

    out = (sum_s exp(score_s) v_s + sum_p g_p exp(score_p) v_p) / (sum_s exp(score_s) + sum_p g_p exp(score_p))

Every query sees the whole prefix, whatever its position, window and segment. g_p is 1, or what a mixture of prefixes
gives to one of them. The keys of the sequence are one part (`zoo.kernels.context_attention.parts`), so every
implementation that has parts has prefixes; the part of the prefix is small, and plain XLA.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from zoo.kernels.attention.block import NO_KEY
from zoo.kernels.attention.inputs import RESIDUALS, AttentionInputs
from zoo.kernels.context_attention.parts import Partial, merge, one_with_parts, part_backward, part_forward

_PLACES = ("query_positions", "key_positions", "query_segment_ids", "key_segment_ids")


class Prefix(NamedTuple):
    """Learned keys and values, which have no positions: queries are rotated, these keys are not."""

    key: Float[Array, "p k h"]
    """Of the key/value heads that the queries read."""
    value: Float[Array, "p k h"]
    """As many."""
    gate: Float[Array, "*#b p"]
    """g_p, not negative, of all rows [P] or of each row [B, P]; 0 = not there."""


def attention_with_prefix(
    inputs: AttentionInputs, prefix: Prefix, implementation: str | None
) -> tuple[Float[Array, "b t n h"], Float[Array, "b t n"]]:
    """(out, logarithm of the denominator) in the dtype of sums; differentiable in queries, keys, values and prefix.

    Without a name, "xla" does what the back end's best kernel cannot. Raises NotImplementedError for named ones that do
    not give the sum of exp(score).
    """
    implementation = one_with_parts(inputs, implementation, "a prefix")
    places = {name: getattr(inputs, name) for name in _PLACES}
    no_arrays: Any = dict.fromkeys(("query", "key", "value", *_PLACES))
    static = (replace(inputs, **no_arrays), implementation)
    own = _part(static, inputs.query, inputs.key, inputs.value, places)
    return merge(own, prefix_part(inputs.query, prefix, inputs.scale, inputs.logits_soft_cap))


def prefix_part(
    query: Float[Array, "b t n h"], prefix: Prefix, scale: float, soft_cap: float | None
) -> tuple[Float[Array, "b t n h"], Float[Array, "b t n"]]:
    """(out, lse) of the queries for the prefix alone, in the dtype of sums."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    batch, length, heads, head_dim = query.shape
    kv_heads = prefix.key.shape[1]
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    key, value = (x.astype(query.dtype) for x in (prefix.key, prefix.value))
    options: Any = dict(
        preferred_element_type=wide, precision=jax.lax.Precision.HIGHEST if wide == query.dtype else None
    )
    scores = scale * jnp.einsum("btkgh,pkh->btkgp", grouped, key, **options)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    gate = prefix.gate.astype(wide)
    gate = gate if gate.ndim == 1 else gate[:, None, None, None]
    scores = scores + jnp.where(gate > 0, jnp.log(jnp.where(gate > 0, gate, 1)), NO_KEY)
    lse = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - lse[..., None]).astype(query.dtype)
    out = jnp.einsum("btkgp,pkh->btkgh", weights, value, **options)
    return out.reshape(query.shape), lse.reshape(query.shape[:-1])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _part(static, query, key, value, places) -> Partial:
    options, implementation = static
    return part_forward(replace(options, query=query, key=key, value=value, **places), implementation)


def _forward(static, query, key, value, places):
    out, lse = _part(static, query, key, value, places)
    out, lse = checkpoint_name(out, RESIDUALS), checkpoint_name(lse, RESIDUALS)
    return (out, lse), (query, key, value, places, out, lse)


def _backward(static, residuals, gradients):
    options, implementation = static
    query, key, value, places, out, lse = residuals
    of_out, of_lse = gradients
    # d lse / d score = p, and d out / d score = p (v - out): both at once are a smaller delta.
    delta = (of_out * out).sum(-1) - of_lse
    inputs = replace(options, query=query, key=key, value=value, **places)
    found = part_backward(inputs, lse, delta, of_out, implementation)
    return *(x.astype(like.dtype) for x, like in zip(found, (query, key, value), strict=True)), None


_part.defvjp(_forward, _backward)
