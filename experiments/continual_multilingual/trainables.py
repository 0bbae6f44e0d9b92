"""What an arm trains, what stays, and how both are one model: all of it, the output layer, or a zoo.peft adapter."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32

from experiments.continual_multilingual.arms import Kind
from experiments.continual_multilingual.network import HEAD
from experiments.continual_multilingual.sizes import Size
from zoo.nn.lora import AdapterBuffer
from zoo.peft import AdaptedModel, PeftConfig, adapted_model, first_parameters, put_together


@dataclass(frozen=True)
class Trainable:
    """The structure of a model of which a part trains; numbers are arguments."""

    kind: Kind
    """What trains."""
    graphdef: Any
    """Of the model without an adapter."""
    adapted: AdaptedModel | None
    """Of the model with one."""

    def first(self, base: nnx.State, seed: int) -> tuple[nnx.State, nnx.State]:
        """(what trains, with its first values; the adapter's constants). Arrays are new ones."""
        if self.adapted is not None:
            return first_parameters(self.adapted, seed)
        own = base if self.kind == "full" else _only(base, HEAD)
        return jax.tree.map(jnp.copy, own), nnx.State({})

    def model(
        self, trained: nnx.State, base: nnx.State, buffers: nnx.State, gates: Float32[Array, "b r"] | None
    ) -> Any:
        """The model. gates: of the bottleneck's slots, for each row of the batch."""
        if self.adapted is not None:
            buffers = buffers if gates is None else with_gates(buffers, gates)
            return put_together(self.adapted, trained, base, buffers)
        if self.kind == "full":
            return nnx.merge(self.graphdef, trained)
        return nnx.merge(self.graphdef, _updated(base, trained))


def trainable(kind: Kind, network: nnx.Module, size: Size) -> Trainable:
    """Of one kind. A bottleneck has twice the width of one delta: room for two updated languages."""
    graphdef, state = nnx.split(network)
    config = {
        "bitfit": PeftConfig("bitfit"),
        "lora": PeftConfig("lora", rank=size.rank, alpha=2.0 * size.rank),
        "bottleneck": PeftConfig("bottleneck", bottleneck_dim=2 * size.width),
    }.get(kind)
    adapted = None if config is None else adapted_model(nnx.merge(graphdef, state), config)
    return Trainable(kind, graphdef, adapted)


def with_gates(buffers: nnx.State, gates: Float32[Array, "b r"]) -> nnx.State:
    """The same gates in every layer: row i of the batch has gates[i], one for each slot."""
    flat = [
        (path, AdapterBuffer(gates, axes=("batch", None)) if str(path[-1]).endswith("_gate") else variable)
        for path, variable in nnx.to_flat_state(buffers)
    ]
    return nnx.from_flat_state(flat)


def between(before: nnx.State, after: nnx.State, part: float) -> nnx.State:
    """before + part * (after - before), number by number."""
    return jax.tree.map(lambda one, other: one + part * (other - one), before, after)


def _only(state: nnx.State, names: tuple[str, ...]) -> nnx.State:
    return nnx.from_flat_state([(path, leaf) for path, leaf in nnx.to_flat_state(state) if path[0] in names])


def _updated(base: nnx.State, trained: nnx.State) -> nnx.State:
    return nnx.from_flat_state(list((dict(nnx.to_flat_state(base)) | dict(nnx.to_flat_state(trained))).items()))
