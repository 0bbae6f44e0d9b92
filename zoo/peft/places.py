"""Where adapters go in a model: the matrices that a low-rank change can have, the sub-layers, the biases."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flax import nnx

from zoo.errors import UserError
from zoo.nn import Attention, GatedFeedForward, PlainFeedForward, SparseFeedForward
from zoo.nn.encoder_block import EncoderAttention, FeedForward
from zoo.nn.fast_conformer import RelativeAttention as ConformerAttention
from zoo.nn.layer_names import layer_names, layer_units
from zoo.nn.relative_attention import LocalRelativeAttention
from zoo.training.parameters import matches
from zoo.training.routing import SELECTION_BIAS

_HEADS = {"query": 1, "key": 1, "value": 1, "output": 2}
MATRICES: dict[type[nnx.Module], Mapping[str, int]] = {
    Attention: _HEADS,
    EncoderAttention: _HEADS,
    LocalRelativeAttention: _HEADS,
    ConformerAttention: _HEADS,
    GatedFeedForward: {"gate": 1, "up": 1, "down": 1},
    FeedForward: {"up": 1, "down": 1},
    PlainFeedForward: {"up": 1, "down": 1},
    SparseFeedForward: {"gate": 1, "up": 1, "down": 1},
}
"""Matrices of each kind of sub-layer, and how many of its axes a product contracts."""

ATTENTIONS, FEED_FORWARDS = (Attention, EncoderAttention), (GatedFeedForward, FeedForward, SparseFeedForward)
"""Sub-layers that take a bottleneck behind them; attentions take a prefix, too."""

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Leaf:
    """A parameter of a model as the model keeps it: of one layer, or of the layers that are scanned together."""

    path: Path
    """In the model's state."""
    shape: tuple[int, ...]
    """Of one layer."""
    axes: tuple[str | None, ...]
    """Logical axes of one layer."""
    names: tuple[str, ...]
    """Per-layer names: one, or one for each scanned layer."""
    scanned: bool
    """Whether it has an axis of layers in front."""


@dataclass(frozen=True)
class Matrix:
    """A weight that a product contracts."""

    leaf: Leaf
    """The weight."""
    lead: int
    """Axes in front that are neither contracted nor of the result: 1 for experts."""
    contracted: int
    """Axes behind them that are contracted."""


def leaves(model: nnx.Module) -> dict[Path, Leaf]:
    """All parameters of a model, with values or without, by their paths."""
    state = nnx.state(model, nnx.Param)
    units, found = layer_units(state), {}
    for path, variable in nnx.to_flat_state(state):
        axes, shape = variable.get_metadata("axes"), tuple(variable.get_value().shape)
        lead = len(shape) - len(axes)
        found[path] = Leaf(path, shape[lead:], axes, tuple(layer_names(path, variable, units)), lead > 0)
    return found


def sublayers(model: nnx.Module, kinds: tuple[type[nnx.Module], ...]) -> Iterator[tuple[Path, nnx.Module]]:
    """(path, module) of every sub-layer of these kinds, but for the expert that a sparse layer has for all tokens."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, kinds) and path and path[-1] != "shared":
            yield path, module


def matrices(model: nnx.Module) -> list[Matrix]:
    """All weights that can have a low-rank change, in the order of the model's state."""
    known, found = leaves(model), {}
    for path, module in nnx.iter_modules(model):
        for name, contracted in next((MATRICES[kind] for kind in MATRICES if isinstance(module, kind)), {}).items():
            if "layers" in path:  # elsewhere nothing puts the change in the place of the weight
                found[*path, name] = Matrix(known[*path, name], int(isinstance(module, SparseFeedForward)), contracted)
    return [found[path] for path in known if path in found]


def chosen(found: Sequence[Matrix], targets: Sequence[str]) -> list[Matrix]:
    """Those that a target names: by the end of their name (`query`, `mlp/up`) or by a pattern over the whole of it.

    Raises:
        UserError: a target that names none, or a part of the layers that are scanned together.
    """
    taken: set[Path] = set()
    for target in targets:
        names = {name for matrix in found for name in matrix.leaf.names if _names(target, name)}
        if not names:
            there = {matrix.leaf.names[0].rsplit("/", 1)[-1] for matrix in found}
            ends = [end for end in dict.fromkeys(end for kind in MATRICES.values() for end in kind) if end in there]
            have = f"this model has {', '.join(ends)}" if ends else "this model has no such matrices"
            raise UserError(f"peft.target {target!r} names no matrix of a layer; {have}")
        for matrix in found:
            own = names.intersection(matrix.leaf.names)
            if own and len(own) < len(matrix.leaf.names):
                raise UserError(
                    f"peft.target {target!r} names some of the layers that are scanned together ({min(own)}): "
                    "set execution.scan_layers to false"
                )
            if own:
                taken.add(matrix.leaf.path)
    return [matrix for matrix in found if matrix.leaf.path in taken]


def _names(target: str, name: str) -> bool:
    return name == target or name.endswith("/" + target) or matches(target, name)


def vectors(model: nnx.Module, *, norm_scales: bool) -> list[Leaf]:
    """The biases of a model, and its norms' scales if they are asked for. Raises `UserError` if there are none."""
    ends = ("bias", "scale") if norm_scales else ("bias",)
    no_gradient = SELECTION_BIAS.rsplit("/", 1)[-1]
    found = [leaf for path, leaf in leaves(model).items() if str(path[-1]).endswith(ends) and path[-1] != no_gradient]
    if not found:
        raise UserError(
            "peft.method=bitfit: this model has no biases; --peft.norm-scales trains the scales of its norms instead"
        )
    return found
