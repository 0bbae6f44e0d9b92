"""A model and its adapter taken apart for training: what is trained, what stays, and how both are one model."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from zoo.nn import lora
from zoo.peft import sparse
from zoo.peft.config import PeftConfig
from zoo.peft.declare import DELTA, Declared, attach, declare, first_values
from zoo.peft.places import Path


@dataclass(frozen=True)
class AdaptedModel:
    """The structure of a model with an adapter; its numbers are arguments of `put_together`."""

    config: PeftConfig
    """The adapter's."""
    graphdef: nnx.GraphDef
    """Of the model with the adapter in it; of the model alone where the adapter changes the model's own parameters."""
    declared: tuple[Declared, ...]
    """Parameters and buffers of the adapter; none of a sparse one."""
    mask: sparse.Mask
    """Which entries a sparse adapter trains."""


def adapted_model(
    model: nnx.Module, config: PeftConfig, *, mask: sparse.Mask | None = None, training: bool = False
) -> AdaptedModel:
    """The structure of `model` (with values or without; it is used up) with an adapter. Raises `UserError` as
    `declare` does."""
    if config.method == "sparse":
        return AdaptedModel(config, nnx.split(model)[0], (), mask or {})
    declared = tuple(declare(model, config, training=training))
    if not config.is_change:
        attach(model, nnx.eval_shape(lambda: first_values(declared, 0)))
    return AdaptedModel(config, nnx.split(model)[0], declared, {})


def first_parameters(adapted: AdaptedModel, seed: int) -> tuple[nnx.State, nnx.State]:
    """(parameters, buffers) of the adapter before training; traceable."""
    if adapted.config.method == "sparse":
        return sparse.variables(adapted.mask)
    trained = tuple(one for one in adapted.declared if not one.buffer)
    constant = tuple(one for one in adapted.declared if one.buffer)
    return first_values(trained, seed), first_values(constant, seed)


def put_together(
    adapted: AdaptedModel, params: nnx.State, base: nnx.State, buffers: nnx.State, rng: Key[Array, ""] | None = None
) -> Any:
    """The model of a base's and an adapter's numbers. `rng`: in training, where low-rank changes have dropout."""
    if adapted.config.is_change:
        return nnx.merge(adapted.graphdef, with_changes(base, params, buffers))
    flat = list(nnx.to_flat_state(base)) + list(nnx.to_flat_state(params)) + list(_with_keys(buffers, rng))
    return nnx.merge(adapted.graphdef, nnx.from_flat_state(flat))


def with_changes(base: nnx.State, params: nnx.State, buffers: nnx.State) -> nnx.State:
    """The base's parameters with the changes of an adapter that is nothing else: bitfit or sparse."""
    flat, constants = dict(nnx.to_flat_state(base)), dict(nnx.to_flat_state(buffers))
    for path, change in nnx.to_flat_state(params):
        name = str(path[-1])
        if name.endswith(DELTA):
            own = (*path[:-1], name.removesuffix(DELTA))
            # In the wider of both dtypes: small changes of bfloat16 numbers would be rounded away.
            flat[own] = flat[own].replace(flat[own][...] + change[...])
        else:
            own = (*path[:-1], name.removesuffix(sparse.VALUES))
            index = constants[(*path[:-1], name.removesuffix(sparse.VALUES) + sparse.INDEX)]
            flat[own] = flat[own].replace(sparse.changed(flat[own][...], change[...], index[...]))
    return nnx.from_flat_state(list(flat.items()))


def is_key(path: Path) -> bool:
    """Whether a buffer is a key of dropout, which only training has."""
    return str(path[-1]).endswith(lora.KEY)


def _with_keys(buffers: nnx.State, rng: Key[Array, ""] | None):
    """Buffers with keys of dropout of their own, one for each weight and layer."""
    for number, (path, variable) in enumerate(nnx.to_flat_state(buffers)):
        if is_key(path) and rng is not None:
            data = variable[...]
            own = jax.random.fold_in(rng, number)
            keys = own if data.ndim == 1 else jax.random.split(own, len(data))
            variable = variable.replace(jax.random.key_data(keys).astype(jnp.uint32))
        yield path, variable
