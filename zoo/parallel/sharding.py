"""Sharding by one declaration: parameters name logical axes, `ShardingRules` says which mesh axis each one lies on."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo.errors import UserError

MeshAxes = str | tuple[str, ...] | None


@dataclass(frozen=True)
class ShardingRules:
    """Mesh axes of each logical axis. Parameters and activations have axes of their own; None = not divided."""

    batch: MeshAxes = ("replica", "data", "fsdp", "expert")
    """Sequences of a batch."""
    length: MeshAxes = "context"
    """Tokens of a sequence."""
    residual_length: MeshAxes = ("context", "tensor")
    """Tokens of a sequence in the residual stream, between the sub-layers: with "tensor", norms and what is saved for
    the backward pass are divided among the devices of a tensor group (Korthikanti et al., arXiv 2205.05198)."""
    vocab: MeshAxes = "tensor"
    """Rows of the embedding."""
    embed: MeshAxes = ("fsdp", "context", "expert")
    """Model width of parameters (ZeRO-3)."""
    heads: MeshAxes = "tensor"
    """Query heads."""
    kv_heads: MeshAxes = "tensor"
    """Key/value heads."""
    head_dim: MeshAxes = None
    """Width of one head."""
    mlp: MeshAxes = "tensor"
    """Feed-forward width."""
    mlp_in: MeshAxes = ("tensor", "fsdp", "context", "expert")
    """Feed-forward width of the down projection, whose memory is contiguous along it: as mlp, then as embed."""
    experts: MeshAxes = "expert"
    """Experts of a sparse layer. Tokens travel to them and back; their widths have axes of their own, without this."""
    expert_embed: MeshAxes = ("fsdp", "context")
    """Model width of experts (ZeRO-3)."""
    expert_mlp: MeshAxes = "tensor"
    """Feed-forward width of experts."""
    expert_mlp_in: MeshAxes = ("tensor", "fsdp", "context")
    """Feed-forward width of the experts' down projections: as expert_mlp, then as expert_embed."""
    norm: MeshAxes = None
    """Norm scales: small, kept whole."""
    layers: MeshAxes = None
    """Leading axis of scanned layers."""
    slots: MeshAxes = "context"
    """Slots of a global layer's cache. A local layer's ring is small and kept whole."""
    context_exchange: Literal["auto", "ring", "gather"] = "auto"
    """How global layers see the keys of other devices where "length" is divided: they travel around in a ring, or every
    device gathers all of them; auto: see `zoo.kernels.context_attention.choose_exchange`."""

    def mesh_axes(self, axis: str) -> tuple[str, ...]:
        """The mesh axes of one logical axis, outermost first."""
        part = asdict(self)[axis]
        return (part,) if isinstance(part, str) else tuple(part or ())

    def spec(self, axes: tuple[str | None, ...]) -> PartitionSpec:
        """The partition of an array with these logical axes; ValueError when one mesh axis would divide two of them."""
        table = asdict(self)
        parts = [None if axis is None else table[axis] for axis in axes]
        used = [name for part in parts for name in ((part,) if isinstance(part, str) else part or ())]
        if len(used) != len(set(used)):
            raise ValueError(f"logical axes {axes} use a mesh axis twice: {parts}")
        return PartitionSpec(*parts)


def logical_axes(variable: nnx.Variable) -> tuple[str | None, ...]:
    """Axis names of a parameter as it was declared, with the leading axis of scanned layers where it has one."""
    axes = variable.get_metadata("axes")
    return axes if len(axes) == len(variable.shape) else ("layers", *axes)


def state_axes(state: nnx.State) -> nnx.State:
    """The state with the logical axes in place of every array."""
    return nnx.from_flat_state([(path, v.replace(logical_axes(v))) for path, v in nnx.to_flat_state(state)])


def state_shardings(abstract_state: nnx.State, mesh: Mesh, rules: ShardingRules) -> nnx.State:
    """The state with a `NamedSharding` in place of every array. An axis that its mesh axes do not divide raises."""

    def sharding(path, variable):
        spec = rules.spec(logical_axes(variable))
        for size, part in zip(variable.shape, spec, strict=True):
            names = (part,) if isinstance(part, str) else part or ()
            devices = math.prod(mesh.shape[name] for name in names)
            if size % devices:
                where = "/".join(map(str, path))
                raise UserError(f"mesh: {where} {variable.shape} is not divisible by {devices} devices of axis {part}")
        return variable.replace(NamedSharding(mesh, spec))

    return nnx.from_flat_state([(path, sharding(path, v)) for path, v in nnx.to_flat_state(abstract_state)])


def batch_sharding(mesh: Mesh, rules: ShardingRules) -> NamedSharding:
    """Sharding of token arrays [B, T]."""
    return NamedSharding(mesh, rules.spec(("batch", "length")))


def init_sharded(make_model: Callable[[], nnx.Module], mesh: Mesh, rules: ShardingRules) -> tuple[Any, nnx.State]:
    """(graphdef, state) of a new model whose parameters are born sharded: no device ever holds all of them."""
    graphdef, abstract = nnx.split(nnx.eval_shape(make_model))
    shardings = state_shardings(abstract, mesh, rules)
    with activation_sharding(mesh, rules):
        state = jax.jit(lambda: nnx.state(make_model()), out_shardings=shardings)()
    return graphdef, state


activation_context: contextvars.ContextVar[tuple[Mesh, ShardingRules] | None] = contextvars.ContextVar(
    "activation_sharding", default=None
)


@contextlib.contextmanager
def activation_sharding(mesh: Mesh, rules: ShardingRules) -> Iterator[None]:
    """While model code is traced inside, `spmd` divides it among the devices of `mesh` by `rules`."""
    token = activation_context.set((mesh, rules))
    try:
        yield
    finally:
        activation_context.reset(token)


def axis_divisions(axis: str) -> int:
    """In how many parts the active `activation_sharding` divides a logical axis; 1 outside of it."""
    context = activation_context.get()
    if context is None:
        return 1
    mesh, rules = context
    return math.prod(mesh.shape[name] for name in rules.mesh_axes(axis))
