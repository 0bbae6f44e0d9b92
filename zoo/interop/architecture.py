"""What interop knows of one public architecture: how its config.json and its tensors map to ours, and back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.interop.places import Place


@dataclass(frozen=True)
class Architecture:
    """One entry of `zoo.interop.architectures.ARCHITECTURES`."""

    family: str
    """Its name in messages."""
    config_type: type
    """Our config, which `zoo.models.build` makes a model of."""
    config_from: Callable[[Mapping[str, Any], str], Any]
    """(config.json, its name in messages) -> our config. Refuses with `UserError` what is not computed here."""
    config_to: Callable[[Any, str], dict[str, Any]]
    """(our config, dtype of the weights) -> a config.json that transformers opens strictly."""
    places: Callable[[Any], dict[str, Place]]
    """(our config) -> the place of every parameter, by our per-layer name, in the order of the forward pass."""
    axis_sizes: Callable[[Any], dict[str, int]]
    """(our config) -> sizes of the axes that the layouts name."""
    repeats: Mapping[str, str] = field(default_factory=dict)
    """Stored tensors that may be there and must repeat another one (the head of a model whose head is tied)."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of stored tensors that hold nothing learned, or that the class of config.json has not."""
    old_endings: Mapping[str, str] = field(default_factory=dict)
    """Endings of tensors' names in files of older software, and what stands for them in today's."""
    counters: Callable[[Any], tuple[str, ...]] = lambda _: ()
    """(our config) -> stored int64 scalars among those, which transformers misses where they are not: written as 0."""
    padded_rows: frozenset[int] = frozenset()
    """Vocabulary sizes that are the same model with and without filler rows of the embedding."""
    is_decoder: bool = True
    """Whether it generates text; other models have no vocabulary and no generation_config.json."""
