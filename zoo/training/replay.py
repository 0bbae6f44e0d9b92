"""Replay check: a step is computed twice from the same state and batch, and both results must agree in every bit.

A chip that computes wrongly now and then, and says nothing, spoils a run before the loss shows it (silent data
corruption). The Gemini report (arXiv 2312.11805, section 3) describes finding such machines by replaying steps, which
works because the program is deterministic. On GPUs XLA must be told so: XLA_FLAGS=--xla_gpu_deterministic_ops=true.

Cost of a check: one step's time, plus a copy and a comparison of the state at memory bandwidth; a second copy of the
state (parameters, moments) lies in memory while it lasts. Both runs use the program that trains, since another one
could round in another way. Only scalars travel to the host unless something differs.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32

from zoo.training.parameters import flatten_with_names

StepResult = tuple[Any, Mapping[str, Array]]


class ReplayMismatch(Exception):
    """A step computed twice gave two results; the message is one line with the step and what differs first."""


def copy_state(state: Any) -> Any:
    """The state once more, in memory of its own on the same devices: the step consumes the one that it is given."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(_copies, out_shardings=shardings)(state)


def check_replay(first: StepResult, second: StepResult, number: int) -> None:
    """Raises `ReplayMismatch`, on all processes alike, unless both results of step `number` have the same bits.

    All arrays of the state lie on one mesh; metrics may lie anywhere on it.
    """
    one, two = _arrays(first), _arrays(second)
    counts, largest = _compare(one, two)
    if int(jnp.max(counts)):  # a sum could wrap around to 0
        raise ReplayMismatch(_message(number, one, counts, largest))


def _copies(state: Any) -> Any:
    return jax.tree.map(jnp.copy, state)


def _arrays(result: StepResult) -> dict[str, Array]:
    """Every array of a step's result by name: parameters first, then the rest of the state, then the metrics."""
    state, metrics = result
    named = {name: _key_data(leaf) for name, leaf in flatten_with_names(state).items()}
    named = dict(sorted(named.items(), key=lambda item: not item[0].startswith("params")))
    return named | {f"metrics/{name}": value for name, value in metrics.items()}


def _key_data(leaf: Array) -> Array:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _compare(one: Mapping[str, Array], two: Mapping[str, Array]) -> tuple[Int32[Array, "D A"], Float32[Array, "D A"]]:
    """For each device of the mesh and each array: elements whose bits differ, and the largest difference.

    Every device compares what it holds, copies that others hold too included: a copy that is wrong on one device would
    not be seen in an array read as a whole.
    """
    mesh = next(leaf.sharding.mesh for leaf in one.values() if isinstance(leaf.sharding, NamedSharding))
    specs = tuple(
        leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else PartitionSpec() for leaf in one.values()
    )
    return _comparison(mesh, specs)(tuple(one.values()), tuple(two.values()))


@functools.cache
def _comparison(mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Callable[..., Any]:
    def compare(one: tuple[Array, ...], two: tuple[Array, ...]) -> tuple[Array, Array]:
        found = [_differences(a, b) for a, b in zip(one, two, strict=True)]
        counts, largest = zip(*found, strict=True)
        return jnp.stack(counts)[None], jnp.stack(largest)[None]

    each_device = PartitionSpec(mesh.axis_names)
    return jax.jit(
        jax.shard_map(
            compare, mesh=mesh, in_specs=(specs, specs), out_specs=(each_device, each_device), check_vma=False
        )
    )


def _differences(a: Array, b: Array) -> tuple[Int32[Array, ""], Float32[Array, ""]]:
    """Elements whose bits differ (a NaN equals itself, 0.0 does not equal -0.0), and the largest |a - b| of them."""
    unequal = _bits(a) != _bits(b)
    distance = jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32))
    return jnp.count_nonzero(unequal).astype(jnp.int32), jnp.max(jnp.where(unequal, distance, 0.0), initial=0.0)


def _bits(x: Array) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.itemsize])


def _message(number: int, arrays: Mapping[str, Array], counts: Array, largest: Array) -> str:
    """Names step, array, number of elements, largest difference and devices."""
    table, distances = (np.asarray(_on_every_host(x)) for x in (counts, largest))
    index = int(np.flatnonzero(table.sum(0))[0])
    name, leaf = list(arrays.items())[index]
    assert isinstance(counts.sharding, NamedSharding)
    devices = [device for device, row in zip(counts.sharding.mesh.devices.flat, table) if row[index]]
    places = ", ".join(f"{device} of process {device.process_index}" for device in devices[:4])
    places += f" and {len(devices) - 4} more" if len(devices) > 4 else ""
    size = math.prod(leaf.shape)
    copies = counts.sharding.mesh.size * math.prod(leaf.sharding.shard_shape(leaf.shape)) // max(size, 1)
    held = f"{size * copies} elements" + (f" ({copies} copies)" if copies > 1 else "")
    others = np.count_nonzero(table.sum(0)) - 1
    return (
        f"step {number}, computed twice from the same state and batch, gave two results: {name} {leaf.shape} differs "
        f"in {table[:, index].sum()} of {held}, by up to {distances[:, index].max():.3g}, on "
        f"{places}" + (f"; {others} other arrays differ too" if others else "")
    )


def _on_every_host(x: Array) -> Any:
    return x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)
