"""What an adapter costs: trained numbers, and bytes of the state of its optimizer."""

import math
from typing import Any

import jax
from flax import nnx


def num_values(tree: Any) -> int:
    """Numbers of a tree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def trainable_report(params: Any, base: Any, optimizer_state: Any) -> str:
    """One line: how many numbers are trained, of how many, and what the optimizer keeps for them.

    params: of the adapter. base: the model's own. optimizer_state: of any optimizer.
    """
    trained, fixed = num_values(params), num_values(base)
    state = num_bytes(optimizer_state)
    size = f"{state / 2**20:,.2f} MiB" if state >= 2**20 else f"{state / 2**10:,.1f} KiB"
    return f"{trained:,} trained beside {fixed:,} that stay ({trained / fixed:.3%}); optimizer state {size}"


def trained_by_kind(params: nnx.State) -> dict[str, int]:
    """Trained numbers by the last part of their name, summed over layers: `{"query_lora_a": 4096, ...}`."""
    found: dict[str, int] = {}
    for path, variable in nnx.to_flat_state(params):
        name = str(path[-1])
        found[name] = found.get(name, 0) + math.prod(variable.get_value().shape)
    return found
