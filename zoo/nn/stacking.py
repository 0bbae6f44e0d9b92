"""Repeating layers: built and run one by one, or stacked over the repeating unit and scanned. Same numbers either way.

Unrolled, ``layers[i]`` is layer i. Scanned, ``layers[j]`` holds position j of the repeating unit, with a leading axis
over the units in every parameter: layer i is slice i // P of ``layers[i % P]`` for a unit of P layers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.errors import UserError
from zoo.nn.execution import Execution
from zoo.nn.lora import with_lora
from zoo.parallel import gather, shared


def build_layers(
    make_layer: Callable[[int, nnx.Rngs], nnx.Module],
    num_layers: int,
    unit: int,
    *,
    execution: Execution,
    rngs: nnx.Rngs,
) -> nnx.List:
    """Layers from ``make_layer(position in the unit, rngs)``; layer i gets the same initial values in both layouts."""
    keys = jax.random.split(rngs.params(), num_layers)
    if not execution.scan_layers:
        return nnx.List([make_layer(i % unit, nnx.Rngs(params=keys[i])) for i in range(num_layers)])
    if num_layers % unit:
        raise UserError(
            f"execution.scan_layers needs num_layers to be a multiple of the repeating unit: {num_layers} is not one "
            f"of {unit}; set scan_layers to false"
        )
    layers = []
    for position in range(unit):
        graphdef, _ = nnx.split(nnx.eval_shape(lambda p=position: make_layer(p, nnx.Rngs(params=0))))
        state = jax.vmap(lambda key, p=position: nnx.state(make_layer(p, nnx.Rngs(params=key))))(keys[position::unit])
        layers.append(nnx.merge(graphdef, state))
    return nnx.List(layers)


def run_layers(
    layers: nnx.List,
    x: jax.Array,
    apply: Callable[[Any, jax.Array, Any, Any], tuple[jax.Array, Any, Any]],
    caches: Sequence[Any] | None,
    execution: Execution,
) -> tuple[jax.Array, tuple[Any, ...] | None, Any]:
    """Runs ``x, cache, statistics = apply(layer, x, cache, index)`` through all layers under the remat policy.

    Returns the last x, the caches (None if none were given), and the statistics of those layers that give any (not
    None), stacked in the order of the layers; None if no layer does.
    """
    held = (None,) * len(layers) if caches is None else tuple(caches)
    graphdefs, states = zip(*(nnx.split(layer) for layer in layers), strict=True)
    if execution.scan_layers:

        def unit(x, slices):
            number, *parts = slices
            new, found = [], []
            for position, (graphdef, state, cache) in enumerate(zip(graphdefs, *parts, strict=True)):
                layer, index = _layer(graphdef, state, execution), number * len(layers) + position
                x, cache, statistics = apply(layer, x, cache, index)
                new.append(cache)
                found += [] if statistics is None else [statistics]
            return x, (tuple(new), _stacked(found))

        units = len(jax.tree.leaves(states)[0])
        x, (held, statistics) = jax.lax.scan(execution.remat(unit), x, (jnp.arange(units), states, held))
        statistics = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), statistics)
    else:
        new, found = [], []
        for index, (graphdef, state, cache) in enumerate(zip(graphdefs, states, held, strict=True)):
            one = execution.remat(
                lambda state, x, cache, graphdef=graphdef, index=index: apply(
                    _layer(graphdef, state, execution), x, cache, index
                )
            )
            x, cache, statistics = one(state, x, cache)
            new.append(cache)
            found += [] if statistics is None else [statistics]
        held, statistics = tuple(new), _stacked(found)
    return x, None if caches is None else held, statistics


def _layer(graphdef: nnx.GraphDef, state: nnx.State, execution: Execution) -> Any:
    """A layer with whole parameters, and with the changes that adapters make to its weights."""
    return nnx.merge(graphdef, with_lora(gathered(state, execution)))


def _stacked(found: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found) if found else None


def gathered(state: nnx.State, execution: Execution) -> nnx.State:
    """A layer's parameters with all that devices share of them, in the compute dtype where they do."""

    def whole(variable: nnx.Variable) -> nnx.Variable:
        gathered = [(axis, shared(name)) for axis, name in enumerate(variable.get_metadata("axes")) if shared(name)]
        if not gathered:
            return variable
        value = variable[...].astype(execution.dtype)
        for axis, mesh_axes in gathered:
            value = gather(value, mesh_axes, axis)
        return variable.replace(value)

    return nnx.from_flat_state([(path, whole(variable)) for path, variable in _paths(state)])


def gathered_outside_layers(module: nnx.Module, execution: Execution) -> nnx.Module:
    """The module with all that devices share of its parameters, but for those of `module.layers`, which `run_layers`
    gathers one after the other."""
    graphdef, state = nnx.split(module)
    inside = [(path, variable) for path, variable in _paths(state) if path[0] == "layers"]
    outside = [(path, variable) for path, variable in _paths(state) if path[0] != "layers"]
    whole = gathered(nnx.from_flat_state(outside), execution)
    return nnx.merge(graphdef, nnx.from_flat_state([*inside, *_paths(whole)]))


def unstack_layers(state: nnx.State, unit: int) -> nnx.State:
    """The unrolled layout of a scanned model's state; `unit` = length of the repeating pattern."""
    flat: list[tuple[Any, nnx.Variable]] = []
    for path, variable in _paths(state):
        if path[0] != "layers":
            flat.append((path, variable))
            continue
        value = variable[...]
        for i in range(value.shape[0]):
            flat.append((("layers", i * unit + path[1], *path[2:]), variable.replace(value[i])))
    return nnx.from_flat_state(flat)


def stack_layers(state: nnx.State, unit: int) -> nnx.State:
    """The scanned layout of an unrolled model's state; `unit` = length of the repeating pattern."""
    flat: list[tuple[Any, nnx.Variable]] = []
    groups: dict[tuple[Any, ...], dict[int, nnx.Variable]] = {}
    for path, variable in _paths(state):
        if path[0] != "layers":
            flat.append((path, variable))
            continue
        groups.setdefault(("layers", path[1] % unit, *path[2:]), {})[path[1] // unit] = variable
    for path, members in groups.items():
        stacked = jnp.stack([members[i][...] for i in range(len(members))])
        flat.append((path, members[0].replace(stacked)))
    return nnx.from_flat_state(flat)


def _paths(state: nnx.State) -> Iterator[tuple[tuple[Any, ...], nnx.Variable]]:
    yield from nnx.to_flat_state(state)
