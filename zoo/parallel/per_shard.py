"""Functions that every device runs on its own part of the arrays: for kernels, which XLA does not partition."""

import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh, PartitionSpec

from zoo.parallel.sharding import ShardingRules, activation_context, axis_divisions

Axes = tuple[str | None, ...]


def per_shard(
    function: Callable[..., jax.Array], in_axes: Sequence[Axes], out_axes: Axes, *, exchanged: str | None = None
) -> Callable[..., jax.Array]:
    """`function` of the whole arrays, computed by every device of the active `activation_sharding` on its own part.

    Outside of a context it is `function` itself. XLA cannot divide a `pallas_call`: without this it would gather the
    operands on every device, or refuse (TPU). `function` has to be independent along every axis that the rules divide,
    as attention is along batch and heads; along the axis `exchanged` it exchanges parts itself. It gets every array as
    an argument and closes over none; inside it no context is active.

    * A logical axis that its mesh axes do not divide (a batch of 1 on 8 devices) is left whole: every device computes
      all of it, which is exact, but no faster. An array whose size along an axis is 1 is broadcast.
    * Query heads keep the key/value heads that they read, n // (N / K): where "heads" is divided and "kv_heads" is not
      divided alike (fewer of them than devices, or by the rules), every device takes those that its heads read.

    Args:
      in_axes: logical axes of each argument; an argument may be None.
      out_axes: logical axes of the result; all of them occur in `in_axes`.
      exchanged: a logical axis along which devices depend on each other: `function` calls collectives over the mesh
        axes that the rules give it.

    Raises:
      NotImplementedError: mesh and rules divide "length", and it is not `exchanged`.
      ValueError: arguments that differ in the size of an axis, heads of a device that begin or end within a group, or
        an exchanged axis that its mesh axes do not divide.
    """
    context = activation_context.get()
    if context is None:
        return function
    mesh, rules = context
    if exchanged != "length" and axis_divisions("length") > 1 and any("length" in axes for axes in in_axes):
        raise NotImplementedError(f"per_shard does not support a divided length (rules.length = {rules.length!r})")

    def sharded(*arrays: jax.Array | None) -> jax.Array:
        given = [(x, axes) for x, axes in zip(arrays, in_axes, strict=True) if x is not None]
        sizes = _axis_sizes(given)
        parts = {name: _parts(mesh, rules, name, size) for name, size in sizes.items()}
        if exchanged is not None and parts[exchanged] != axis_divisions(exchanged):
            raise ValueError(
                f"per_shard: axis {exchanged!r} of size {sizes[exchanged]} is not divisible by "
                f"{axis_divisions(exchanged)} devices"
            )
        alike = rules.mesh_axes("heads") == rules.mesh_axes("kv_heads")
        if "heads" in parts and "kv_heads" in parts and not (alike and parts["heads"] == parts["kv_heads"]):
            parts["kv_heads"] = 1
        take_kv_heads = parts.get("heads", 1) > 1 and parts.get("kv_heads") == 1
        if take_kv_heads and "kv_heads" in out_axes:
            raise ValueError("per_shard: a result with key/value heads needs them divided like the query heads")

        def run(*shards):
            if take_kv_heads:
                own_heads = sizes["heads"] // parts["heads"]
                take = kv_heads_read(own_heads, sizes["kv_heads"], rules.mesh_axes("heads"))
                shards = [
                    take(x, axes.index("kv_heads")) if "kv_heads" in axes else x
                    for x, (_, axes) in zip(shards, given, strict=True)
                ]
            remaining = iter(shards)
            token = activation_context.set(None)
            try:
                return function(*(None if x is None else next(remaining) for x in arrays))
            finally:
                activation_context.reset(token)

        def spec(axes: Axes, shape: tuple[int, ...] | None = None) -> PartitionSpec:
            broadcast = [False] * len(axes) if shape is None else [size == 1 for size in shape]
            divided = [name is not None and parts[name] > 1 and not one for name, one in zip(axes, broadcast)]
            return rules.spec(tuple(name if divide else None for name, divide in zip(axes, divided)))

        return jax.shard_map(
            run,
            mesh=mesh,
            in_specs=tuple(spec(axes, x.shape) for x, axes in given),
            out_specs=spec(out_axes),
            # The results of a pallas_call do not say along which mesh axes they vary.
            check_vma=False,
        )(*(x for x, _ in given))

    return sharded


def _axis_sizes(given: list[tuple[jax.Array, Axes]]) -> dict[str, int]:
    """Size of each logical axis; an array of size 1 along it is broadcast and does not count."""
    sizes: dict[str, int] = {}
    for x, axes in given:
        for size, name in zip(x.shape, axes, strict=True):
            if name is None:
                continue
            known = sizes.get(name, 1)
            if size != known and 1 not in (size, known):
                raise ValueError(f"per_shard: arrays of sizes {known} and {size} along axis {name!r}")
            sizes[name] = max(size, known)
    return sizes


def _parts(mesh: Mesh, rules: ShardingRules, name: str, size: int) -> int:
    """In how many parts a logical axis of this size is divided; 1 when its mesh axes do not divide it."""
    devices = math.prod(mesh.shape[axis] for axis in rules.mesh_axes(name))
    return 1 if size % devices else devices


def kv_heads_read(own_heads: int, kv_heads: int, axes: tuple[str, ...]) -> Callable[[jax.Array, int], jax.Array]:
    """A function (array, axis) -> the array with the key/value heads that this device's query heads read, for whole
    key/value heads and query heads that mesh axes divide; to be called inside of `jax.shard_map`.

    Raises:
      ValueError: heads of a device that begin or end within a group.
    """
    group = own_heads * math.prod(jax.lax.axis_size(name) for name in axes) // kv_heads
    if own_heads % group and group % own_heads:
        raise ValueError(
            f"per_shard: {own_heads} query heads per device are neither whole groups of {group} nor an even part of one"
        )
    first, count = jax.lax.axis_index(axes) * own_heads // group, max(own_heads // group, 1)
    return lambda x, axis: jax.lax.dynamic_slice_in_dim(x, first, count, axis)
