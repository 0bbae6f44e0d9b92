"""A model's parameters one by one, under per-layer names (``layers/3/attention/query``), however it keeps them.

`build_model` makes a model out of a function that reads one parameter; `ParameterReader` is its inverse. Both see the
scanned layout (`zoo.nn.stacking`) as what it is: slices of the same per-layer parameters.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from zoo.errors import UserError
from zoo.models import ModelConfig, build
from zoo.nn import Execution
from zoo.nn.layer_names import LAYERS as LAYERS
from zoo.nn.layer_names import is_scanned, layer_names, layer_units, parameter_name
from zoo.nn.layer_names import with_layout as with_layout
from zoo.parallel import ShardingRules, state_shardings

ParamDtype = Literal["float32", "bfloat16", "stored"]
"""Dtype of parameters in memory: as named, or each as it lies in the checkpoint."""

OnTensor = Callable[[str], None]
"""Called with a parameter's name when it has been read or written."""


def abstract_model(config: ModelConfig, execution: Execution) -> tuple[nnx.GraphDef, nnx.State]:
    """(graphdef, state of `jax.ShapeDtypeStruct`s) of a model, nothing allocated."""
    return nnx.split(nnx.eval_shape(lambda: build(config, execution=execution, rngs=nnx.Rngs(0))))


def target_shardings(state: nnx.State, mesh: Mesh | None, rules: ShardingRules | None) -> dict[tuple, NamedSharding]:
    """Sharding of every leaf by its path; empty without a mesh."""
    if mesh is None:
        if rules is not None:
            raise ValueError("sharding rules without a mesh")
        return {}
    shardings = state_shardings(state, mesh, rules or ShardingRules())
    return {path: leaf.get_value() for path, leaf in nnx.to_flat_state(shardings)}


def build_model(
    config: ModelConfig,
    execution: Execution,
    read: Callable[[str], np.ndarray],
    *,
    order: Iterable[str] = (),
    param_dtype: ParamDtype,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    on_tensor: OnTensor | None = None,
) -> Any:
    """A model whose parameters come from `read(name)`, each on its devices before the next one is read.

    Args:
        config: the architecture.
        execution: layout of the layers and how the model computes; its `param_dtype` is not looked at.
        read: gives a per-layer parameter in our layout and its stored dtype.
        order: names in the order in which reading is cheapest; a scanned leaf is read whole when its first name comes.
        param_dtype: dtype in memory.
        mesh: with it, every parameter goes straight to its shards (`rules`); no device holds all of it.
        rules: which logical axis lies on which mesh axis.
        on_tensor: progress.
    """
    graphdef, abstract = abstract_model(config, execution)
    shardings = target_shardings(abstract, mesh, rules)
    units = layer_units(abstract)
    leaves = {path: (leaf, layer_names(path, leaf, units)) for path, leaf in nnx.to_flat_state(abstract)}
    rank = {name: i for i, name in enumerate(order)}
    made = {}
    for path, (leaf, names) in sorted(leaves.items(), key=lambda item: min(rank.get(name, 0) for name in item[1][1])):
        made[path] = leaf.replace(_place(_gather(leaf.shape, names, read, param_dtype, on_tensor), shardings.get(path)))
    return nnx.merge(graphdef, nnx.from_flat_state(list(made.items())))


def _gather(shape, names: list[str], read, param_dtype: ParamDtype, on_tensor: OnTensor | None) -> np.ndarray:
    """One leaf: a parameter, or the slices of one parameter in all units of a scanned stack."""
    array: np.ndarray | None = None
    for i, name in enumerate(names):
        part = read(name)
        dtype = part.dtype if param_dtype == "stored" else jnp.dtype(param_dtype)
        if part.shape == shape:
            array = part.astype(dtype, copy=False)
        else:
            if array is None:
                array = np.empty(shape, dtype)
            if param_dtype == "stored" and dtype != array.dtype:
                raise UserError(
                    f"{name} is stored as {dtype}, but {names[0]} as {array.dtype}: layers cannot be stacked"
                )
            array[i] = part
        if on_tensor:
            on_tensor(name)
    assert array is not None and array.shape == shape, (names, shape)
    return array


def _place(array: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    """The array on its devices; a copy, so that what is on the device may be donated and the host's memory freed."""
    if sharding is None:
        return jax.device_put(array, jax.local_devices()[0], may_alias=False)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: np.array(array[index]))


class ParameterReader:
    """Reads a model's parameters to the host, one at a time; nothing of them is kept on the host afterwards."""

    def __init__(self, model: Any):
        """Raises `UserError` if a parameter lies on devices of other processes."""
        state = nnx.state(model)
        units = layer_units(state)
        self._slices: dict[str, tuple[nnx.Variable, int | None]] = {}
        for path, leaf in nnx.to_flat_state(state):
            if not leaf.get_value().is_fully_addressable:
                raise UserError(
                    f"{parameter_name(path)} lies on several hosts: export in one process, from the checkpoint"
                )
            names = layer_names(path, leaf, units)
            self._slices |= {name: (leaf, i if is_scanned(leaf) else None) for i, name in enumerate(names)}

    def dtype(self, name: str) -> np.dtype:
        """Dtype of a parameter in the model."""
        return np.dtype(self._slices[name][0].get_value().dtype)

    def read(self, name: str, index: int | None = None) -> np.ndarray:
        """One parameter, or its slice `index`, as a numpy array (possibly a read-only view of the model's memory)."""
        leaf, layer = self._slices[name]
        at = tuple(i for i in (layer, index) if i is not None)
        array = leaf.get_value()
        return _to_host(array[at] if at else array)


def _to_host(array: jax.Array) -> np.ndarray:
    """jax keeps the host copy of an array that numpy has looked at: look at a copy, or at the CPU's own memory."""
    if next(iter(array.devices())).platform != "cpu":
        array = jnp.copy(array)
    if len(array.sharding.device_set) == 1:
        return np.asarray(array)
    host = np.empty(array.shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            host[shard.index] = np.asarray(shard.data)
    return host
