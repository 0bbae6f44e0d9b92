"""Collectives written out: between `spmd`'s brackets every device runs the same function on its own part of the arrays.

XLA can divide a program by itself, but which collectives it then chooses is its own affair: it adds up whole gradients
where a share would do (all-reduce for reduce-scatter, twice the traffic), or gathers weights that should stay. Here
they are these, for any mesh:

    parameters           all-gather over the axes of "embed" when a layer begins, in the compute dtype;
                         backward, reduce-scatter of the gradient (ZeRO-3)
    into a sub-layer     all-gather of the tokens over "tensor"; backward, reduce-scatter
    out of a sub-layer   reduce-scatter of the partial sums over "tensor"; backward, all-gather
    copies               one all-reduce of each parameter's gradient over "data" and "replica", after the last layer

Outside of `spmd` all functions here do nothing, so that a model is written once.
"""

import contextvars
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from zoo.parallel.sharding import ShardingRules, activation_context

Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class Manual:
    """What a function inside of `spmd` can know about the division of its arrays."""

    mesh: Mesh
    rules: ShardingRules
    sizes: Mapping[str, int]
    """Whole sizes of the logical axes of activations."""

    def mesh_axes(self, name: str) -> tuple[str, ...]:
        """The mesh axes of more than one device that divide a logical axis here.

        An activation axis whose size they do not divide is left whole: every device then computes all of it. Of
        "residual_length", what "length" has is kept if the rest does not divide.
        """
        axes = tuple(axis for axis in self.rules.mesh_axes(name) if self.mesh.shape[axis] > 1)
        if self.sizes.get(name, 0) % math.prod(self.mesh.shape[axis] for axis in axes):
            return self.mesh_axes("length") if name == "residual_length" else ()
        return axes

    def spec(self, axes: Axes) -> PartitionSpec:
        """The partition of an array with these logical axes."""
        return PartitionSpec(*(None if name is None else self.mesh_axes(name) or None for name in axes))


manual_context: contextvars.ContextVar[Manual | None] = contextvars.ContextVar("manual", default=None)


def spmd(function: Callable, in_axes: Any, out_axes: Any, sizes: Mapping[str, int]) -> Callable:
    """`function` of the whole arrays, run by every device of the active `activation_sharding` on its own part.

    Without a context, or on one device, it is `function` itself.

    Args:
      in_axes: a tuple, one entry for each argument: a tree of tuples of logical axes. A prefix of the argument's tree
        stands for all below it; None stands for None.
      out_axes: the same for the result.
      sizes: whole sizes of activation axes ("batch", "length", "residual_length"), which need not be divisible.
    """
    context = activation_context.get()
    if context is None or context[0].size == 1:
        return function
    manual = Manual(*context, sizes)

    def run(*arguments):
        tokens = activation_context.set(None), manual_context.set(manual)
        try:
            return function(*arguments)
        finally:
            activation_context.reset(tokens[0])
            manual_context.reset(tokens[1])

    def specs(axes: Any) -> Any:
        return jax.tree.map(manual.spec, axes, is_leaf=_is_axes)

    # Results of a pallas_call do not say along which mesh axes they vary, hence no check_vma.
    return jax.shard_map(run, mesh=manual.mesh, in_specs=specs(in_axes), out_specs=specs(out_axes), check_vma=False)


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple) and all(name is None or isinstance(name, str) for name in node)


def divided(name: str) -> tuple[str, ...]:
    """The mesh axes that divide a logical axis here; () outside of `spmd`.

    The backward function of a `custom_vjp` is traced outside: it has to be told the axes.
    """
    manual = manual_context.get()
    return () if manual is None else manual.mesh_axes(name)


def active_rules() -> ShardingRules:
    """The sharding rules inside of `spmd`; the default ones outside."""
    manual = manual_context.get()
    return ShardingRules() if manual is None else manual.rules


def shared(name: str | None) -> tuple[str, ...]:
    """The mesh axes whose devices share a logical axis of a parameter between layers, and gather it for a layer."""
    if name in ("embed", "expert_embed"):
        return divided(name)
    stays = {"mlp_in": "mlp", "expert_mlp_in": "expert_mlp"}.get(name or "")
    return () if name is None or stays is None else tuple(a for a in divided(name) if a not in divided(stays))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(x: jax.Array, axes: tuple[str, ...], axis: int) -> jax.Array:
    """The whole of an array that mesh axes divide along `axis`; backward, `sum_scatter` of the gradients."""
    return jax.lax.all_gather(x, axes, axis=axis, tiled=True) if axes else x


def _gather_forward(x, axes, axis):
    return gather(x, axes, axis), None


def _gather_backward(axes, axis, _, gradient):
    return (sum_scatter(gradient, axes, axis),)


gather.defvjp(_gather_forward, _gather_backward)


def sum_scatter(x: jax.Array, axes: tuple[str, ...], axis: int) -> jax.Array:
    """The sum over the devices of mesh axes, of which each receives its share along `axis`."""
    if not axes:
        return x
    # The shares get an axis of their own, the first: of others, TPUs add up everything everywhere and cut the share out
    # (unless a share is a multiple of 8 rows).
    devices = math.prod(jax.lax.axis_size(name) for name in axes)
    shares = x.reshape(*x.shape[:axis], devices, x.shape[axis] // devices, *x.shape[axis + 1 :])
    return jax.lax.psum_scatter(jnp.moveaxis(shares, axis, 0), axes, scatter_dimension=0)


def sum_over(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The sum over the devices of mesh axes."""
    return jax.lax.psum(x, axes) if axes else x


def own_part(x: jax.Array, name: str, axis: int) -> jax.Array:
    """This device's part of an array that is whole along a logical axis."""
    axes = divided(name)
    if not axes:
        return x
    size = x.shape[axis] // math.prod(jax.lax.axis_size(axis) for axis in axes)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size, axis)


def enter_sublayer(x: jax.Array) -> jax.Array:
    """[b, t, d] of the residual stream to all tokens that the sub-layer's tensor group works on together."""
    return gather(x, _extra_axes(), axis=1)


def leave_sublayer(x: jax.Array, name: str) -> jax.Array:
    """Partial sums [b, t, d] over the devices that divide the logical axis `name` ("heads", "mlp", "vocab"), summed and
    divided as the residual stream is."""
    summed, scattered = divided(name), _extra_axes()
    if scattered and scattered != summed:
        raise ValueError(f"residual_length is divided by {scattered} besides length, and {name} by {summed}")
    return checkpoint_name(sum_scatter(x, scattered, axis=1) if scattered else sum_over(x, summed), "sublayer_output")


def _extra_axes() -> tuple[str, ...]:
    """Mesh axes that divide the tokens of the residual stream, but not those inside of a sub-layer."""
    return tuple(axis for axis in divided("residual_length") if axis not in divided("length"))
