"""An adapter apart from any model: its values on the host, under per-layer names, and what they belong to."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from zoo.errors import UserError
from zoo.nn.packed import PackedWeight
from zoo.peft.config import PeftConfig
from zoo.peft.declare import Declared, as_variable, declare
from zoo.peft.places import leaves
from zoo.peft.sparse import check_sparse
from zoo.training.teacher import bit_sums


@dataclass(frozen=True)
class Adapter:
    """The values of an adapter, however the model that it is for keeps its layers."""

    config: PeftConfig
    """Its method and sizes."""
    values: Mapping[str, np.ndarray]
    """By per-layer name (`layers/3/attention/query_lora_a`), float32; indices of a sparse one are integers."""
    source: str
    """Where it comes from, for messages."""
    model: Mapping[str, Any] | None = None
    """The base's architecture as a dictionary; None if it is not known."""
    base: str | None = None
    """Checkpoint of the base, as its run named it."""
    base_sha256: str | None = None
    """`base_fingerprint` of the base; None if it is not known."""

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(value.size for value in self.values.values() if value.dtype.kind != "i")


def to_host(config: PeftConfig, declared: Sequence[Declared], params: nnx.State) -> dict[str, np.ndarray]:
    """The values of an adapter's parameters by per-layer name, float32."""
    found: dict[str, np.ndarray] = {}
    flat = dict(nnx.to_flat_state(params))
    for one in declared:
        if not one.buffer:
            value = np.asarray(flat[one.path].get_value(), np.float32)
            found |= dict(zip(one.names, value if one.scanned else value[None], strict=True))
    return found


def variables(declared: Sequence[Declared], values: Mapping[str, np.ndarray]) -> dict[tuple, nnx.Variable]:
    """The inverse for a model's own layout, gates with their first values included."""
    found: dict[tuple, nnx.Variable] = {}
    for one in declared:
        parts = [np.asarray(one.first(jax.random.key(0))) if one.buffer else values[name] for name in one.names]
        found[one.path] = as_variable(one, jnp.asarray(np.stack(parts) if one.scanned else parts[0]))
    return found


def check_adapter(adapter: Adapter, model: Any, architecture: str, fingerprint: str | None) -> None:
    """Raises `UserError`, in one line, if an adapter is not one for this model: another architecture, base or rank,
    parameters that are missing or unknown, values that are not finite.

    architecture: name of the model's. fingerprint: `base_fingerprint` of the model, None where it has none.
    """
    where = adapter.source
    if adapter.model is not None and adapter.model.get("architecture") != architecture:
        raise UserError(
            f"{where} is an adapter for another base model: a {adapter.model.get('architecture')}, this is a "
            f"{architecture}"
        )
    if adapter.config.method == "sparse":
        check_sparse(adapter.values, model, where)
    else:
        _check_declared(adapter, declare(model, adapter.config))
    for name, value in adapter.values.items():
        if not np.isfinite(value).all():
            raise UserError(f"{where} is damaged: {name} holds NaN or infinity")
    if None not in (adapter.base_sha256, fingerprint) and adapter.base_sha256 != fingerprint:
        raise UserError(
            f"{where} was trained on another base model: weights of sha256 {str(adapter.base_sha256)[:12]}... "
            f"({adapter.base}), these have {str(fingerprint)[:12]}..."
        )


def _check_declared(adapter: Adapter, declared: Sequence[Declared]) -> None:
    where, wanted = adapter.source, {name: one for one in declared if not one.buffer for name in one.names}
    missing = [name for name in wanted if name not in adapter.values]
    unknown = [name for name in adapter.values if name not in wanted]
    if missing or unknown:
        kind, names = ("lacks", missing) if missing else ("has", unknown)
        why = "" if missing else ", which this model or adapter has no place for"
        raise UserError(f"{where} {kind} {names[0]} ({len(names)} in all){why}: it is an adapter for another model")
    for name, one in wanted.items():
        have = tuple(adapter.values[name].shape)
        if have == one.shape:
            continue
        others = [axis for axis in range(len(one.shape)) if axis != one.slot]
        if one.slot is not None and len(have) == len(one.shape) and all(have[i] == one.shape[i] for i in others):
            what = {"lora": "rank", "prefix": "prefix_length"}.get(adapter.config.method, "bottleneck_dim")
            raise UserError(
                f"{where}: {name} is of {what} {have[one.slot]}, its configuration says {one.shape[one.slot]}"
            )
        raise UserError(
            f"{where} is an adapter for another base model: {name} has shape {have}, this model needs {one.shape}"
        )


def base_fingerprint(model: nnx.Module) -> str | None:
    """SHA-256 of a base's parameters, rounded to bfloat16, by per-layer name: the same for float32 and bfloat16 copies,
    for scanned and unrolled layers, on any mesh. None for packed weights. Against accidents, not an adversary."""
    state = nnx.state(model, nnx.Param)
    flat = dict(nnx.to_flat_state(state))
    if any(isinstance(variable.get_value(), PackedWeight) for variable in flat.values()):
        return None
    known = leaves(model)
    names, slices = [], []
    for path, variable in flat.items():
        leaf, value = known[path], variable.get_value()
        names += [f"{name} {leaf.shape}" for name in leaf.names]
        slices.append(value if leaf.scanned else value[None])
    where = slices[0].sharding
    everywhere = NamedSharding(where.mesh, PartitionSpec()) if isinstance(where, NamedSharding) else where

    def sums(stacks):
        return jnp.concatenate([bit_sums([one.astype(jnp.bfloat16) for one in stack]) for stack in stacks])

    found = dict(zip(names, np.asarray(jax.jit(sums, out_shardings=everywhere)(slices)), strict=True))
    return hashlib.sha256("\n".join(f"{name} {found[name]}" for name in sorted(found)).encode()).hexdigest()
