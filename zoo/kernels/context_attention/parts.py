"""Attention to a part of the keys, by every implementation that has it: what rings and sinks are made of."""

import functools
import importlib
import logging
from dataclasses import replace
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.kernels.attention.block import NO_KEY
from zoo.kernels.attention.dispatch import best_implementation
from zoo.kernels.attention.inputs import AttentionInputs
from zoo.kernels.platform import target_platform

_MODULES = {
    "reference": "zoo.kernels.attention.xla_part",
    "xla": "zoo.kernels.attention.xla_part",
    "pallas_tpu": "zoo.kernels.local_attention.tpu",
    "pallas_gpu": "zoo.kernels.local_attention.gpu",
}

Partial = tuple[Float[Array, "b t n h"], Float[Array, "b t n"]]
"""(out, lse): the attention of each query to some keys, and the logarithm of the sum of its exp(score)."""


def has_parts(inputs: AttentionInputs, implementation: str | None) -> bool:
    """Whether the implementation gives results of these shapes that can be merged. Splash, cuDNN and the Hopper kernel
    do not; our TPU kernel does with a window, and without one where the gradients of all queries fit into VMEM."""
    name = implementation or best_implementation(inputs, target_platform())
    if name != "pallas_tpu" or inputs.sliding_window is not None:
        return name in _MODULES
    return _load(name).takes_all_keys(inputs)


def one_with_parts(inputs: AttentionInputs, implementation: str | None, feature: str) -> str | None:
    """The implementation for attention with something besides keys in its softmax (`feature`: sinks, a prefix), which
    needs the sum of exp(score): the one that is named, or without a name "xla" where the back end's best kernel does
    not give it. Raises NotImplementedError for a named one that does not."""
    if has_parts(inputs, implementation):
        return implementation
    if implementation is None:
        return "xla"
    raise NotImplementedError(
        f"attention implementation {implementation!r} does not support {feature} here, because it does not give the "
        "sum of exp(score); use 'xla'"
    )


def part_forward(inputs: AttentionInputs, implementation: str | None) -> Partial:
    """(out, lse) of the queries for these keys, in the dtype of sums; lse is `NO_KEY` where a query sees none."""
    module, inputs = _prepare(inputs, implementation)
    out, lse = module.part_forward(inputs)
    return out.astype(lse.dtype), jnp.where(lse == jnp.inf, NO_KEY, lse)


def part_backward(
    inputs: AttentionInputs,
    lse: Float[Array, "b t n"],
    delta: Float[Array, "b t n"],
    out_gradient: Float[Array, "b t n h"],
    implementation: str | None,
) -> tuple[Float[Array, "b t n h"], Float[Array, "b s k h"], Float[Array, "b s k h"]]:
    """(dq, dk, dv) through these keys, in the dtype of sums; lse, delta = sum(out * out_gradient) are of all keys."""
    module, inputs = _prepare(inputs, implementation)
    lse = jnp.where(lse == NO_KEY, jnp.inf, lse)
    gradients = module.part_backward(inputs, lse, delta, out_gradient.astype(inputs.query.dtype))
    dq, dk, dv = (x.astype(lse.dtype) for x in gradients)
    return dq, dk, dv


def merge(one: Partial, other: Partial) -> Partial:
    """The attention to the keys of both: outs weighted with exp(lse), lse = log(exp(lse_1) + exp(lse_2))."""
    (out, lse), (other_out, other_lse) = one, other
    largest = jnp.maximum(lse, other_lse)
    both = largest + jnp.log(jnp.exp(lse - largest) + jnp.exp(other_lse - largest))
    # Of two that have seen nothing: no key, not twice no key.
    both = jnp.where(largest == NO_KEY, NO_KEY, both)
    weight, other_weight = jnp.exp(lse - both), jnp.exp(other_lse - both)
    return weight[..., None] * out + other_weight[..., None] * other_out, both


def _prepare(inputs: AttentionInputs, implementation: str | None) -> tuple[ModuleType, AttentionInputs]:
    name = implementation or best_implementation(inputs, target_platform())
    if name == "reference":
        # Dense products of exact operands; without the promise of order nothing is left out.
        wide = jnp.promote_types(inputs.query.dtype, jnp.float32)
        query, key, value = jax.tree.map(lambda x: x.astype(wide), (inputs.query, inputs.key, inputs.value))
        inputs = replace(inputs, query=query, key=key, value=value, ordered_positions=False)
    if not has_parts(inputs, name):
        raise NotImplementedError(
            f"attention implementation {name!r} cannot attend to the keys of one device after the other (of "
            f"{inputs.query.shape[1]} tokens each, heads of {inputs.query.shape[3]}), as a ring of devices does; use "
            'context_exchange="gather" in the sharding rules'
        )
    _log(name)
    return _load(name), inputs


@functools.cache
def _load(name: str) -> ModuleType:
    # Imported when used: Pallas takes as long as all the rest.
    return importlib.import_module(_MODULES[name])


@functools.cache
def _log(name: str) -> None:
    # Cached: once per process.
    logging.getLogger(__name__).info("attention implementation of parts of the keys: %s", name)
