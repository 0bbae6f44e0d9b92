"""Sparse fine-tuning: a few entries of the weights are trained (lottery-ticket, Ansell et al., arXiv 2110.07560).

    mask  the K entries with the largest |theta_tuned - theta_base| over all targets together
    W     base + sum_j value_j at index_j          values begin at zero: the base again, of which only these move

A run that tunes everything on the same task gives theta_tuned. Values and indices are as long as the mask is, and so is
the state of the optimizer.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.errors import UserError
from zoo.nn.lora import AdapterBuffer
from zoo.peft.places import Leaf, Path, chosen, leaves, matrices

VALUES, INDEX = "_sparse", "_sparse_index"
"""Endings of the names of what belongs to one weight."""

Mask = dict[Path, Int[np.ndarray, "k axes"]]
"""Indices into a leaf of the model (with its axis of scanned layers), in rising order."""


def targets(model: nnx.Module, patterns: Sequence[str]) -> list[Leaf]:
    """The weights that a mask chooses from: those that the patterns name, or all matrices of layers."""
    found = matrices(model)
    return [matrix.leaf for matrix in (chosen(found, patterns) if patterns else found)]


def top_k_changed(base: nnx.Module, tuned: nnx.Module, patterns: Sequence[str], density: float) -> Mask:
    """The ceil(density * n) of the targets' n entries that changed most. One weight and the entries chosen so far are
    on the host at a time. Raises `UserError` for models of other shapes, and if too few entries changed."""
    ours, theirs = (dict(nnx.to_flat_state(nnx.state(model, nnx.Param))) for model in (base, tuned))
    found = targets(base, patterns)
    count = math.ceil(density * sum(math.prod(ours[leaf.path].get_value().shape) for leaf in found))
    sizes, places, owners = np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int32)
    for number, leaf in enumerate(found):
        one, other = ours[leaf.path].get_value(), theirs[leaf.path].get_value() if leaf.path in theirs else None
        if other is None or other.shape != one.shape:
            raise UserError(f"peft.mask_from: {leaf.names[0]} is not as in the base, {one.shape}: it is another model")
        change = np.abs(np.asarray(other, np.float32) - np.asarray(one, np.float32)).reshape(-1)
        most = _largest(change, min(count, change.size))
        sizes, places = np.concatenate([sizes, change[most]]), np.concatenate([places, most])
        owners = np.concatenate([owners, np.full(len(most), number, np.int32)])
        kept = _largest(sizes, min(count, sizes.size))
        sizes, places, owners = sizes[kept], places[kept], owners[kept]
    if (sizes == 0).any():
        raise UserError(
            f"peft.mask_from changed {np.count_nonzero(sizes)} entries of the targets, peft.density asks for {count}"
        )
    shapes = [ours[leaf.path].get_value().shape for leaf in found]
    return {
        leaf.path: np.stack(np.unravel_index(np.sort(places[owners == number]), shapes[number]), axis=-1)
        for number, leaf in enumerate(found)
        if (owners == number).any()
    }


def _largest(values: Float[np.ndarray, "n"], count: int) -> Int[np.ndarray, "count"]:
    """Places of the largest, of equal ones the first."""
    if count == len(values):
        return np.arange(len(values))
    return np.sort(np.argsort(-values, kind="stable")[:count])


def variables(mask: Mask) -> tuple[nnx.State, nnx.State]:
    """(values of zero, indices) as variables beside their weights."""
    values = [(_with(path, VALUES), nnx.Param(jnp.zeros(len(index)), axes=(None,))) for path, index in mask.items()]
    indices = [
        (_with(path, INDEX), AdapterBuffer(jnp.asarray(index, jnp.int32), axes=(None, None)))
        for path, index in mask.items()
    ]
    return nnx.from_flat_state(values), nnx.from_flat_state(indices)


def changed(weight: Array, values: Float[Array, "k"], index: Int[Array, "k axes"]) -> Array:
    """The weight with the values added at their places."""
    places = tuple(index.T)
    return weight.at[places].add(values.astype(weight.dtype), indices_are_sorted=True, unique_indices=True)


def to_host(model: nnx.Module, params: nnx.State, mask: Mask) -> dict[str, np.ndarray]:
    """Values and indices by per-layer name."""
    known, flat = leaves(model), dict(nnx.to_flat_state(params))
    found: dict[str, np.ndarray] = {}
    for path, index in mask.items():
        values = np.asarray(flat[_with(path, VALUES)].get_value(), np.float32)
        found |= _by_layer(known[path], index, values)
    return found


def mask_to_host(model: nnx.Module, mask: Mask) -> dict[str, np.ndarray]:
    """The indices of a mask by per-layer name."""
    known = leaves(model)
    parts = (_by_layer(known[path], index, np.zeros(len(index), np.float32)) for path, index in mask.items())
    return {name: value for part in parts for name, value in part.items() if name.endswith(INDEX)}


def _by_layer(leaf: Leaf, index: np.ndarray, values: np.ndarray) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for layer, name in enumerate(leaf.names):
        own = index[:, 0] == layer if leaf.scanned else np.ones(len(index), bool)
        if own.any():
            found[name + VALUES] = values[own]
            found[name + INDEX] = index[own][:, 1:] if leaf.scanned else index[own]
    return {name: value.astype(np.int64) if name.endswith(INDEX) else value for name, value in found.items()}


def from_host(model: nnx.Module, stored: Mapping[str, np.ndarray]) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
    """(path of a leaf, values, indices into it) of an adapter, in the layout of this model; values of zero where the
    adapter has none."""
    for path, leaf in leaves(model).items():
        values, indices = [], []
        for layer, name in enumerate(leaf.names):
            if name + INDEX in stored:
                index = stored[name + INDEX]
                lead = np.full((len(index), 1), layer, index.dtype)
                indices.append(np.concatenate([lead, index], axis=1) if leaf.scanned else index)
                values.append(stored.get(name + VALUES, np.zeros(len(index), np.float32)))
        if indices:
            yield path, np.concatenate(values), np.concatenate(indices)


def check_sparse(stored: Mapping[str, np.ndarray], model: Any, where: str) -> None:
    """Raises `UserError` if values and indices are not those of entries of this model's parameters."""
    shapes = {name: leaf.shape for leaf in leaves(model).values() for name in leaf.names}
    for name in stored:
        weight = name.removesuffix(INDEX).removesuffix(VALUES)
        if weight == name or weight not in shapes:
            raise UserError(
                f"{where} has {name}, which this model has no place for: it is an adapter for another model"
            )
        if weight + INDEX not in stored or weight + VALUES not in stored:
            raise UserError(f"{where} has {name} and not both of {weight}{VALUES} and {weight}{INDEX}")
        index, values = stored[weight + INDEX], stored[weight + VALUES]
        if index.dtype.kind != "i" or index.shape != (*values.shape, len(shapes[weight])) or values.ndim != 1:
            raise UserError(f"{where}: {weight}{INDEX} {index.shape} are no indices of {values.shape} entries")
        if (index < 0).any() or (index >= np.array(shapes[weight])).any():
            raise UserError(
                f"{where} is an adapter for another base model: {weight}{INDEX} lies outside of {shapes[weight]}"
            )
        if (np.diff(np.ravel_multi_index(tuple(index.T), shapes[weight])) <= 0).any():
            raise UserError(f"{where} is damaged: {weight}{INDEX} does not rise, or has an entry twice")


def _with(path: Path, ending: str) -> Path:
    return (*path[:-1], f"{path[-1]}{ending}")
