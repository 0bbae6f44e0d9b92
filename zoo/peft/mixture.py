"""Adapters put into a model, one or several, with weights chosen at run time; and adapters merged into its weights.

    sum of adapters   LoRA, bottlenecks and prefixes lie side by side in one of their widths together, the weight of
                      each in its gates; changes (bitfit, sparse) are added to the weights, times their weight
    stack             bottlenecks one behind the other: each reads what the one before gave

Weights are arrays: others, of all rows or of each row of a batch, are other arguments of the same compiled programs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from zoo.errors import UserError
from zoo.nn import lora
from zoo.nn.bottleneck import bottleneck_name
from zoo.nn.packed import PackedWeight
from zoo.peft import sparse
from zoo.peft.adapter import Adapter, variables
from zoo.peft.declare import DELTA, Declared, attach, declare
from zoo.peft.places import Matrix, Path, matrices

Weight = float | Float[np.ndarray, "b"]
"""Of one adapter: of all rows, or of each row of a batch."""


@dataclass
class _Slots:
    """What adapters have of one variable, side by side."""

    declared: Declared
    values: list[Array]


def with_adapters(
    model: Any,
    adapters: Sequence[Adapter],
    weights: Sequence[Weight] | None = None,
    *,
    stack: bool = False,
    place: Callable[[nnx.State], nnx.State] = lambda state: state,
) -> Any:
    """A model that computes `model` with these adapters; the arrays of its own are `model`'s, which stays as it is.

    Args:
        model: a model without adapters, with values.
        adapters: adapters that `check_adapter` has let through. Without any, `model` itself comes back.
        weights: one for each, not negative for a prefix; default 1. An array [B] has one for each row of a batch of B:
            for LoRA outside of experts, bottlenecks and prefixes.
        stack: bottlenecks one behind the other in this order, instead of side by side.
        place: puts new variables on devices.

    Raises:
        UserError: weights of rows for what has none, or changes of packed weights.
    """
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if len(weights) != len(adapters):
        raise UserError(f"{len(weights)} weights are given for {len(adapters)} adapters: one for each")
    if not adapters:
        return model
    graphdef, state = nnx.split(model)
    flat = dict(nnx.to_flat_state(state))
    slots: dict[Path, _Slots] = {}
    for number, (adapter, weight) in enumerate(zip(adapters, weights, strict=True)):
        if adapter.config.is_change:
            _add_change(flat, model, adapter, weight)
            continue
        if adapter.config.method == "prefix" and np.min(weight) < 0:
            raise UserError(f"{adapter.source}: the weight of a prefix is not negative, got {weight}")
        depth = number if stack and adapter.config.method == "bottleneck" else 0
        # Values have the names of an adapter at depth 0.
        plain, deep = declare(model, adapter.config), declare(model, adapter.config, depth=depth)
        found = variables(plain, adapter.values)
        for one, own in zip(plain, deep, strict=True):
            value = found[one.path].get_value()
            value = _weighted(value, weight) if one.buffer else value
            slots.setdefault(own.path, _Slots(own, [])).values.append(value)
    slots = _without_gaps(slots)
    changed = nnx.merge(graphdef, nnx.from_flat_state(list(flat.items())))
    attach(changed, place(nnx.from_flat_state([(path, _side_by_side(one)) for path, one in slots.items()])))
    return changed


def merged(model: Any, adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> Any:
    """A model without adapters that computes the same: W + sum_i w_i s_i A_i . B_i, and changes added, in the dtype of
    the weights. Raises `UserError` for bottlenecks and prefixes, which no weights express, and for packed weights."""
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    graphdef, state = nnx.split(model)
    before = dict(nnx.to_flat_state(state))
    flat = dict(before)
    for adapter, weight in zip(adapters, weights, strict=True):
        if adapter.config.is_change:
            _add_change(flat, model, adapter, weight)
        elif adapter.config.method == "lora":
            by_path = {matrix.leaf.path: matrix for matrix in matrices(model)}
            parts = variables(declare(model, adapter.config), adapter.values)
            for path, variable in parts.items():
                if str(path[-1]).endswith(lora.A):
                    own = (*path[:-1], str(path[-1]).removesuffix(lora.A))
                    b = parts[(*path[:-1], own[-1] + lora.B)]
                    change = weight * adapter.config.scale * _product(by_path[own], variable[...], b[...])
                    flat[own] = flat[own].replace(_unpacked(flat[own], adapter.source) + change)
        else:
            raise UserError(
                f"{adapter.source}: a {adapter.config.method} adapter is no change of weights and cannot be merged; "
                "load it beside the model (adapter=, --adapter)"
            )
    for path, leaf in flat.items():
        if leaf is not before[path]:
            flat[path] = leaf.replace(leaf.get_value().astype(before[path].get_value().dtype))
    return nnx.merge(graphdef, nnx.from_flat_state(list(flat.items())))


def _product(matrix: Matrix, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """A . B in float32, of each layer and expert."""
    lead = matrix.lead + matrix.leaf.scanned
    shape = (*a.shape[:-1], *b.shape[lead + 1 :])
    a, b = a.reshape(*a.shape[:lead], -1, a.shape[-1]), b.reshape(*b.shape[: lead + 1], -1)
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST).reshape(shape)


def _add_change(flat: dict[Path, nnx.Variable], model: Any, adapter: Adapter, weight: Weight) -> None:
    if np.ndim(weight):
        raise UserError(f"{adapter.source}: rows of a batch cannot have {adapter.config.method} adapters of their own")
    if adapter.config.method == "sparse":
        for path, values, index in sparse.from_host(model, adapter.values):
            add = jnp.asarray(weight * values, jnp.float32), jnp.asarray(index, jnp.int32)
            flat[path] = flat[path].replace(sparse.changed(_unpacked(flat[path], adapter.source), *add))
        return
    for path, variable in variables(declare(model, adapter.config), adapter.values).items():
        own, change = (*path[:-1], str(path[-1]).removesuffix(DELTA)), weight * variable[...]
        flat[own] = flat[own].replace(_unpacked(flat[own], adapter.source) + change)


def _unpacked(variable: nnx.Variable, where: str) -> Array:
    value = variable.get_value()
    if isinstance(value, PackedWeight):
        raise UserError(f"{where} changes weights that are packed: give the model that they were packed from")
    return value


def _weighted(gate: Float[Array, "*l n"], weight: Weight) -> Array:
    if not np.ndim(weight):
        return gate * weight
    return gate[..., None, :] * jnp.asarray(weight, gate.dtype)[:, None]


def _side_by_side(slots: _Slots) -> nnx.Variable:
    one, values = slots.declared, slots.values
    if one.buffer:
        rows = max(value.ndim for value in values)
        if rows > (1 + one.scanned):
            batch = max(value.shape[-2] for value in values if value.ndim == rows)
            values = [
                v if v.ndim == rows else jnp.broadcast_to(v[..., None, :], (*v.shape[:-1], batch, v.shape[-1]))
                for v in values
            ]
            joined = jnp.concatenate(values, axis=-1)
            return lora.AdapterBuffer(joined, axes=("batch", None))
        return lora.AdapterBuffer(jnp.concatenate(values, axis=-1), axes=one.axes)
    assert one.slot is not None
    return nnx.Param(jnp.concatenate(values, axis=one.slot + one.scanned), axes=one.axes)


def _without_gaps(slots: dict[Path, _Slots]) -> dict[Path, _Slots]:
    """Depths of stacked bottlenecks numbered 0, 1, ... in each sub-layer."""
    depths: dict[Path, set[int]] = {}
    found: dict[Path, _Slots] = {}
    for path in slots:
        name = str(path[-1])
        if name.startswith("bottleneck"):
            depths.setdefault(path[:-1], set()).add(int(name.removeprefix("bottleneck").partition("_")[0]))
    for path, slot in slots.items():
        name = str(path[-1])
        if name.startswith("bottleneck"):
            number, _, part = name.removeprefix("bottleneck").partition("_")
            path = (*path[:-1], bottleneck_name(sorted(depths[path[:-1]]).index(int(number)), part))
        found[path] = slot
    return found
