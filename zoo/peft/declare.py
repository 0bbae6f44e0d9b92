"""The parameters of an adapter, declared once: where they hang in the model, shape, logical axes, first values."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from zoo.nn import lora, prefix
from zoo.nn.bottleneck import bottleneck_name
from zoo.nn.lora import AdapterBuffer
from zoo.nn.parameters import fan_in_normal
from zoo.peft.config import PeftConfig
from zoo.peft.places import ATTENTIONS, FEED_FORWARDS, Leaf, Matrix, Path, chosen, leaves, matrices, sublayers, vectors

DELTA = "_delta"
"""Ending of the name of a change that has the shape of its parameter."""

PREFIX_STDDEV = 0.02
"""Of the first keys and values of a prefix."""

DEFAULT_TARGET = ("query", "value")


@dataclass(frozen=True)
class Declared:
    """One parameter or buffer of an adapter."""

    path: Path
    """Where it is in the state of the adapted model."""
    shape: tuple[int, ...]
    """Of one layer."""
    axes: tuple[str | None, ...]
    """Logical axes of one layer; a width of the adapter itself is never divided."""
    names: tuple[str, ...]
    """Per-layer names, one for each scanned layer."""
    scanned: bool
    """Whether it has an axis of layers in front."""
    first: Callable[[Key[Array, ""]], Array]
    """Values of one layer before training, float32."""
    slot: int | None
    """The axis of one layer along which adapters are put side by side; None: their values are added."""
    buffer: bool = False
    """Whether it is trained or a constant."""
    rate: float = 0.0
    """Of a key: the probability of dropout."""


def declare(model: nnx.Module, config: PeftConfig, *, training: bool = False, depth: int = 0) -> list[Declared]:
    """What an adapter of this kind has in this model (with values or without). `training` adds what training alone
    needs, `depth` is the place of a bottleneck in its stack. A sparse adapter is `zoo.peft.sparse`'s.

    Raises:
        UserError: a target that names nothing, or a model without biases for bitfit.
    """
    match config.method:
        case "lora":
            found = chosen(matrices(model), config.target or DEFAULT_TARGET)
            return [part for matrix in found for part in _lora(matrix, config, training)]
        case "bottleneck":
            kinds = FEED_FORWARDS if config.placement == "pfeiffer" else ATTENTIONS + FEED_FORWARDS
            known = leaves(model)
            return [
                part
                for path, sublayer in sublayers(model, kinds)
                for part in _bottleneck(path, known[*path, _first_matrix(sublayer)], config.bottleneck_dim, depth)
            ]
        case "prefix":
            known = leaves(model)
            return [
                part
                for path, _ in sublayers(model, ATTENTIONS)
                for part in _prefix(path, known[*path, "key"], config.prefix_length)
            ]
        case "bitfit":
            return [_delta(leaf) for leaf in vectors(model, norm_scales=config.norm_scales)]
    raise ValueError(f"{config.method!r} declares no parameters here")


def first_values(declared: Sequence[Declared], seed: int) -> nnx.State:
    """Variables with the values before training, by path. Of a parameter they depend on the seed and on its per-layer
    name alone."""
    root = jax.random.key(seed)

    def variable(one: Declared) -> nnx.Variable:
        values = [one.first(jax.random.fold_in(root, zlib.crc32(name.encode()))) for name in one.names]
        return as_variable(one, jnp.stack(values) if one.scanned else values[0])

    return nnx.from_flat_state([(one.path, variable(one)) for one in declared])


def as_variable(one: Declared, value: Any) -> nnx.Variable:
    """A value under the metadata of its declaration."""
    if not one.buffer:
        return nnx.Param(value, axes=one.axes)
    return AdapterBuffer(value, axes=one.axes, rate=one.rate) if one.rate else AdapterBuffer(value, axes=one.axes)


def attach(model: nnx.Module, variables: nnx.State) -> None:
    """Hangs variables into a model, each beside what it belongs to."""
    for path, variable in nnx.to_flat_state(variables):
        module: Any = model
        for part in path[:-1]:
            module = module[part] if isinstance(part, int) else getattr(module, str(part))
        setattr(module, str(path[-1]), variable)


def _constant(value: Any) -> Callable[[Key[Array, ""]], Array]:
    return lambda _: jnp.asarray(value)


def _lora(matrix: Matrix, config: PeftConfig, training: bool) -> list[Declared]:
    """A [*lead, *in, r] like 1 / sqrt(in), B [*lead, r, *out] zero, the gate, and in training the key of dropout."""
    leaf, rank = matrix.leaf, config.rank
    at, end = matrix.lead, matrix.lead + matrix.contracted
    fan_in = 1
    for size in leaf.shape[at:end]:
        fan_in *= size
    a, b = (*leaf.shape[:end], rank), (*leaf.shape[:at], rank, *leaf.shape[end:])
    a_axes, b_axes = (*leaf.axes[:end], None), (*leaf.axes[:at], None, *leaf.axes[end:])
    gate = jnp.full((rank,), config.scale, jnp.float32)
    parts = [
        _beside(leaf, lora.A, a, a_axes, lambda key: fan_in_normal(fan_in)(key, a, jnp.float32), slot=end),
        _beside(leaf, lora.B, b, b_axes, _constant(jnp.zeros(b)), slot=at),
        _beside(leaf, lora.GATE, (rank,), (None,), _constant(gate), slot=0, buffer=True),
    ]
    if training and config.dropout:
        zero = _constant(jnp.zeros(2, jnp.uint32))
        parts.append(_beside(leaf, lora.KEY, (2,), (None,), zero, slot=None, buffer=True, rate=config.dropout))
    return parts


def _beside(leaf: Leaf, ending: str, shape, axes, first, *, slot, buffer: bool = False, rate: float = 0.0) -> Declared:
    path, names = (*leaf.path[:-1], f"{leaf.path[-1]}{ending}"), tuple(name + ending for name in leaf.names)
    return Declared(path, shape, axes, names, leaf.scanned, first, slot, buffer, rate)


def _in(path: Path, leaf: Leaf, name: str, shape, axes, first, *, slot: int, buffer: bool = False) -> Declared:
    """Of a sub-layer; `leaf` is any of its parameters."""
    names = tuple(f"{own.rsplit('/', 1)[0]}/{name}" for own in leaf.names)
    return Declared((*path, name), shape, axes, names, leaf.scanned, first, slot, buffer)


def _first_matrix(sublayer: nnx.Module) -> str:
    """Name of a matrix whose last or only contracted axis has the model's width."""
    return next(name for name in ("query", "gate", "up") if hasattr(sublayer, name))


def _bottleneck(path: Path, leaf: Leaf, width: int, depth: int) -> list[Declared]:
    dim = leaf.shape[1 if leaf.axes[0] == "experts" else 0]
    down, up = (dim, width), (width, dim)

    def part(name: str, *rest, **options) -> Declared:
        return _in(path, leaf, bottleneck_name(depth, name), *rest, **options)

    return [
        part("down", down, ("embed", None), lambda key: fan_in_normal(dim)(key, down, jnp.float32), slot=1),
        part("down_bias", (width,), (None,), _constant(jnp.zeros(width)), slot=0),
        part("up", up, (None, "embed"), _constant(jnp.zeros(up)), slot=0),
        part("gate", (width,), (None,), _constant(jnp.ones(width)), slot=0, buffer=True),
    ]


def _prefix(path: Path, key: Leaf, length: int) -> list[Declared]:
    shape, axes = (length, *key.shape[1:]), (None, *key.axes[1:])
    normal = jax.nn.initializers.normal(PREFIX_STDDEV)
    return [
        *(
            _in(path, key, name, shape, axes, lambda one: normal(one, shape, jnp.float32), slot=0)
            for name in (prefix.KEY, prefix.VALUE)
        ),
        _in(path, key, prefix.GATE, (length,), (None,), _constant(jnp.ones(length)), slot=0, buffer=True),
    ]


def _delta(leaf: Leaf) -> Declared:
    return _beside(leaf, DELTA, leaf.shape, leaf.axes, _constant(jnp.zeros(leaf.shape)), slot=None)
