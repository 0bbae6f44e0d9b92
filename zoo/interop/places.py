"""Where each of our parameters lies in a foreign checkpoint, and the ways there and back.

A parameter is one stored tensor in another layout, or one of several that a stored tensor joins (gpt-oss keeps gate and
up in one), or the stack of one stored tensor per expert (Mixtral, Qwen3-MoE). Import and export read the same table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from zoo.errors import UserError
from zoo.interop.layouts import Layout

LAYER, EXPERT = "{}", "{expert}"
EXPERTS_AXIS, PARTS_AXIS = "E", "P"


@dataclass(frozen=True)
class Place:
    """One of our parameters in a foreign checkpoint."""

    name: str
    """The stored tensor. `{}` stands for the layer. With `{expert}` there is one such tensor for each expert, and ours
    is their stack."""
    layout: Layout
    """The stored axes and ours; of one expert where each has a tensor of its own."""
    slot: int | None = None
    """Of a stored tensor that joins several parameters: which of them is ours along axis P, the first on our side."""
    parts: int = 1
    """Size of axis P."""

    def stored_names(self, sizes: Mapping[str, int]) -> list[str]:
        """The stored tensors that ours is made of."""
        if EXPERT not in self.name:
            return [self.name]
        return [self.name.replace(EXPERT, str(expert)) for expert in range(sizes[EXPERTS_AXIS])]

    def stored_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of each stored tensor."""
        return self.layout.stored_shape(self._sizes(sizes))

    def to_ours(self, stored: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Our parameter out of a stored tensor (one expert's, where each has its own)."""
        ours = self.layout.to_ours(stored, self._sizes(sizes))
        return ours if self.slot is None else ours[self.slot]

    def to_stored(self, ours: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """The inverse; of parameters that are joined, takes all of them, stacked."""
        return self.layout.to_stored(ours, self._sizes(sizes))

    def _sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {**sizes, PARTS_AXIS: self.parts}


@dataclass(frozen=True)
class Source:
    """What a stored tensor is made of."""

    place: Place
    """Its shape and layout."""
    names: tuple[str, ...]
    """Our parameters that it joins, by slot."""
    expert: int | None
    """Which expert of them; None = all."""


def per_layer(templates: Mapping[str, Place], layer: int) -> dict[str, Place]:
    """A table with the layer's number in place of `{}`, in our names and in theirs."""
    number = str(layer)
    return {
        name.replace(LAYER, number): replace(place, name=place.name.replace(LAYER, number))
        for name, place in templates.items()
    }


def whole_table(templates: Mapping[str, Place], num_layers: int) -> dict[str, Place]:
    """The table of a model whose layers are alike: what stands before the layers' templates, the layers, the rest."""
    names = list(templates)
    layered = {name: templates[name] for name in names if LAYER in name}
    first = names.index(next(iter(layered)))
    table = {name: templates[name] for name in names[:first]}
    for layer in range(num_layers):
        table |= per_layer(layered, layer)
    return table | {name: templates[name] for name in names[first:] if name not in layered}


def stored_sources(places: Mapping[str, Place], sizes: Mapping[str, int]) -> dict[str, Source]:
    """Every stored tensor, in the order of our parameters, and what it is made of."""
    joined: dict[str, dict[int, str]] = {}
    for name, place in places.items():
        joined.setdefault(place.name, {})[place.slot or 0] = name
    sources: dict[str, Source] = {}
    for place in places.values():
        owners = joined[place.name]
        names = tuple(owners[slot] for slot in range(place.parts))
        stored = place.stored_names(sizes)
        for expert, stored_name in enumerate(stored):
            sources.setdefault(stored_name, Source(place, names, expert if EXPERT in place.name else None))
    return sources


def read_parameter(place: Place, sizes: Mapping[str, int], read: Callable[[str], np.ndarray]) -> np.ndarray:
    """Our parameter, in its stored dtype, by `read(stored name)`."""
    if EXPERT not in place.name:
        return place.to_ours(read(place.name), sizes)
    whole: np.ndarray | None = None
    for expert, name in enumerate(place.stored_names(sizes)):
        part = place.to_ours(read(name), sizes)
        if whole is None:
            whole = np.empty((sizes[EXPERTS_AXIS], *part.shape), part.dtype)
        if part.dtype != whole.dtype:
            raise UserError(f"tensor {name} is stored as {part.dtype}, those of other experts as {whole.dtype}")
        whole[expert] = part
    assert whole is not None
    return whole


def read_stored(source: Source, sizes: Mapping[str, int], read: Callable[[str, int | None], np.ndarray]) -> np.ndarray:
    """A stored tensor, by `read(our name, expert or None)`."""
    parts = [read(name, source.expert) for name in source.names]
    return source.place.to_stored(parts[0] if source.place.slot is None else np.stack(parts), sizes)
