"""Per-layer names of a model's parameters (``layers/3/attention/query``), scanned or not (`zoo.nn.stacking`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def parameter_name(path: Sequence[Any]) -> str:
    """``layers/3/attention/query`` for a path in an nnx.State."""
    return "/".join(map(str, path))


LAYERS = "layers"


def layer_units(state: nnx.State) -> dict[tuple, int]:
    """Number of entries of every list of layers, by the path of the list: the unit that repeats where it is scanned."""
    found: dict[tuple, set[Any]] = {}
    for path, _ in nnx.to_flat_state(state):
        if LAYERS in path:
            at = path.index(LAYERS) + 1
            found.setdefault(tuple(path[:at]), set()).add(path[at])
    return {path: len(entries) for path, entries in found.items()}


def is_scanned(variable: nnx.Variable) -> bool:
    """Whether a leaf holds one parameter of several layers, along its first axis."""
    return len(variable.get_metadata("axes")) < len(variable.shape)


def layer_names(path: Sequence[Any], variable: nnx.Variable, units: Mapping[tuple, int]) -> list[str]:
    """Names of the per-layer parameters that a state's leaf holds: one, or one for each slice of a scanned leaf."""
    if not is_scanned(variable):
        return [parameter_name(path)]
    at = list(path).index(LAYERS) + 1
    lead, position, rest = path[:at], path[at], path[at + 1 :]
    unit = units[tuple(lead)]
    return [parameter_name((*lead, i * unit + int(position), *rest)) for i in range(variable.shape[0])]


def with_layout(state: nnx.State, wanted: nnx.State) -> nnx.State:
    """The values of `state` in the layout of `wanted`, another state of the same model: scanned or not."""
    units = layer_units(state)
    held: dict[str, tuple[nnx.Variable, int | None]] = {}
    for path, leaf in nnx.to_flat_state(state):
        scanned = is_scanned(leaf)
        held |= {name: (leaf, i if scanned else None) for i, name in enumerate(layer_names(path, leaf, units))}

    def value(name: str) -> jax.Array:
        leaf, i = held[name]
        return leaf[...] if i is None else leaf[i]

    units, made = layer_units(wanted), []
    for path, leaf in nnx.to_flat_state(wanted):
        values = [value(name) for name in layer_names(path, leaf, units)]
        made.append((path, leaf.replace(jnp.stack(values) if is_scanned(leaf) else values[0])))
    return nnx.from_flat_state(made)
