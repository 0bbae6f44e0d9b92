"""Rates of learning that differ between parts of a model."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from zoo.training.parameters import flatten_with_names


def scale_updates(factor: float, chosen: Callable[[str], bool]) -> optax.GradientTransformation:
    """Multiplies the updates of the chosen parameters, by name ("embedder/embedding"); to be chained behind an
    optimizer, whose weight decay is scaled as well. Its update raises ValueError if none is chosen."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        named = flatten_with_names(updates)
        if not any(map(chosen, named)):
            raise ValueError(f"no parameter is chosen among {sorted(named)}")
        leaves = [factor * leaf if chosen(name) else leaf for name, leaf in named.items()]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
