"""Attention sinks (gpt-oss): one learned logit per query head joins the denominator of the softmax, with no value.

    out = sum_s exp(score_s) v_s / (sum_s exp(score_s) + exp(sink))  =  sigmoid(lse - sink) * attention

A sink is one more part of the keys (`zoo.kernels.context_attention.parts`), of which nothing but its logit is known. So
every implementation that has parts has sinks, and their backward pass is that of the parts under the sum of all.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from zoo.kernels.attention.block import NO_KEY
from zoo.kernels.attention.inputs import RESIDUALS, AttentionInputs
from zoo.kernels.context_attention.parts import one_with_parts, part_backward, part_forward

_PLACES = ("query_positions", "key_positions", "query_segment_ids", "key_segment_ids")


def sink_attention(
    inputs: AttentionInputs, sinks: Float[Array, "n"], implementation: str | None
) -> Float[Array, "b t n h"]:
    """Attention whose softmax has the sinks in its denominator; differentiable in queries, keys, values and sinks.

    Without a name, "xla" does what the back end's best kernel cannot. Raises NotImplementedError for named ones that do
    not give the sum of exp(score).
    """
    implementation = one_with_parts(inputs, implementation, "attention sinks")
    places = {name: getattr(inputs, name) for name in _PLACES}
    no_arrays: Any = dict.fromkeys(("query", "key", "value", *_PLACES))
    options = replace(inputs, **no_arrays)
    return _attend((options, implementation), inputs.query, inputs.key, inputs.value, sinks, places)


def with_sinks(
    out: Float[Array, "*x n h"], lse: Float[Array, "*x n"], sinks: Float[Array, "n"]
) -> tuple[Float[Array, "*x n h"], Float[Array, "*x n"]]:
    """(out, lse) of a part of the keys and of the sinks; `NO_KEY` stays where no key was seen."""
    sinks = sinks.astype(lse.dtype)
    both = jnp.where(lse == NO_KEY, NO_KEY, jnp.logaddexp(lse, sinks))
    return (out.astype(lse.dtype) * jax.nn.sigmoid(lse - sinks)[..., None]).astype(out.dtype), both


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static, query, key, value, sinks, places):
    return _forward(static, query, key, value, sinks, places)[0]


def _forward(static, query, key, value, sinks, places):
    options, implementation = static
    out, lse = with_sinks(*part_forward(_inputs(options, query, key, value, places), implementation), sinks)
    out, lse = checkpoint_name(out.astype(query.dtype), RESIDUALS), checkpoint_name(lse, RESIDUALS)
    return out, (query, key, value, sinks, places, out, lse)


def _backward(static, residuals, out_gradient):
    options, implementation = static
    query, key, value, sinks, places, out, lse = residuals
    delta = (out_gradient.astype(lse.dtype) * out.astype(lse.dtype)).sum(-1)
    inputs = _inputs(options, query, key, value, places)
    of_query, of_key, of_value = part_backward(inputs, lse, delta, out_gradient, implementation)
    # The sink's weight times (its value, which is zero, minus the mean value): as for any other key.
    weight = jnp.where(lse == NO_KEY, 0, jnp.exp(sinks.astype(lse.dtype) - lse))
    of_sinks = -(weight * delta).sum((0, 1))
    return (
        of_query.astype(query.dtype),
        of_key.astype(key.dtype),
        of_value.astype(value.dtype),
        of_sinks.astype(sinks.dtype),
        None,
    )


_attend.defvjp(_forward, _backward)


def _inputs(options: AttentionInputs, query: Array, key: Array, value: Array, places: Any) -> AttentionInputs:
    return replace(options, query=query, key=key, value=value, **places)
