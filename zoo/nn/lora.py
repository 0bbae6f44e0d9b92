"""Low-rank changes of weights (LoRA, arXiv 2106.09685), computed where a weight is multiplied.

    y = x . W + (x . A * g) . B        A [*in, R],  B [R, *out],  g [R] or [rows, R]

g is alpha / r of LoRA (arXiv 2106.09685, section 4.1) or alpha / sqrt(r) of rsLoRA (arXiv 2312.03732), times the weight
that a mixture of adapters gives to the one that a slot of R belongs to: a mixture is one change of a larger rank, and a
row of a batch may have weights of its own. The product A . B is never formed.

`A` and `B` are parameters beside their weight, NAME_lora_a and NAME_lora_b, and g is NAME_lora_gate (`AdapterBuffer`).
A model knows nothing of them: where its layers are taken apart (`zoo.nn.stacking.run_layers`), `with_lora` puts a
`LoraWeight` in the place of the weight, which `zoo.nn.parameters.project` and experts multiply with.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt32

from zoo.nn.packed import PackedWeight
from zoo.parallel import divided

A, B, GATE, KEY = "_lora_a", "_lora_b", "_lora_gate", "_lora_key"
"""Endings of the names of what belongs to one weight."""


class AdapterBuffer(nnx.Variable):
    """What an adapter needs besides its parameters, and what no gradient reaches: gates, keys of dropout."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weight", "a", "b", "gate", "key"], meta_fields=["rate"]
)
@dataclass(frozen=True, eq=False)
class LoraWeight:
    """A weight and its low-rank change, in place of an array."""

    weight: Float[Array, "..."] | PackedWeight
    """What stays as it is. It may be packed."""
    a: Float[Array, "*in r"]
    """Of experts [E, in, R]."""
    b: Float[Array, "r *out"]
    """Of experts [E, R, out]."""
    gate: Float[Array, "*b r"]
    """Factor of each slot, of all rows or of each."""
    key: UInt32[Array, "2"] | None
    """Data of the key that dropout draws from; None = no dropout."""
    rate: float
    """Probability that an input of A is zeroed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.weight.shape

    @property
    def dtype(self) -> jnp.dtype:
        """Of the weight."""
        return self.weight.dtype

    def __getitem__(self, index: Any) -> "LoraWeight":
        """`...`: itself. It has no parts."""
        if index is not Ellipsis:
            raise IndexError("a weight with a low-rank change is multiplied with, and has no parts")
        return self

    def inputs(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """What A is multiplied with: x, or in training x * m / (1 - rate), m being 0 with probability `rate`."""
        if self.key is None:
            return x
        kept = jax.random.bernoulli(jax.random.wrap_key_data(self.key), 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), 0).astype(x.dtype)


def gated(hidden: Float[Array, "b ... r"], gate: Float[Array, "*b r"]) -> Float[Array, "b ... r"]:
    """hidden * gate; a gate of each row [B, R] belongs to the first axis of `hidden`."""
    gate = gate.astype(hidden.dtype)
    if gate.ndim == 1:
        return hidden * gate
    if len(gate) != len(hidden):
        raise ValueError(f"weights of adapters are given for {len(gate)} rows, the batch has {len(hidden)}")
    return hidden * gate.reshape(len(gate), *(1,) * (hidden.ndim - 2), -1)


def with_lora(state: nnx.State) -> nnx.State:
    """A layer's state with a `LoraWeight` in place of every weight that has a low-rank change beside it; the state
    itself where none has."""
    flat = dict(nnx.to_flat_state(state))
    changed = [(*path[:-1], str(path[-1]).removesuffix(A)) for path in flat if str(path[-1]).endswith(A)]
    if not changed:
        return state
    for path in changed:
        a, b, gate, key = (flat.get((*path[:-1], f"{path[-1]}{end}")) for end in (A, B, GATE, KEY))
        assert a is not None and b is not None and gate is not None, path
        rate = 0.0 if key is None else key.get_metadata("rate")
        data = None if key is None else _own_key(key[...], a.get_metadata("axes"))
        weight = LoraWeight(flat[path].get_value(), a[...], b[...], gate[...], data, rate)
        flat[path] = flat[path].replace(weight)
    return nnx.from_flat_state(list(flat.items()))


def _own_key(data: UInt32[Array, "2"], axes: tuple[str | None, ...]) -> UInt32[Array, "2"]:
    """Of this device: another key where it has other tokens, or another part of what A contracts."""
    names = ("batch", "length", *(name for name in axes if name and name not in ("embed", "expert_embed")))
    mesh_axes = tuple(dict.fromkeys(axis for name in names for axis in divided(name)))
    if not mesh_axes:
        return data
    key = jax.random.fold_in(jax.random.wrap_key_data(data), jax.lax.axis_index(mesh_axes))
    return jax.random.key_data(key)
