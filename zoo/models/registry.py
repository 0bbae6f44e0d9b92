"""Architectures and presets by name."""

import dataclasses
from typing import Any

from flax import nnx

from zoo.errors import UserError, nearest_name
from zoo.models import gemma2
from zoo.nn import Execution

ModelConfig = gemma2.Gemma2Config
"""Any model's configuration."""

_ARCHITECTURES: dict[str, tuple[type, type]] = {"gemma2": (gemma2.Gemma2Config, gemma2.Gemma2)}


def presets() -> dict[str, ModelConfig]:
    """All presets, by name."""
    return dict(gemma2.PRESETS)


def preset(name: str) -> ModelConfig:
    """The preset of that name; UserError with the nearest name otherwise."""
    if name not in presets():
        raise UserError(f"unknown model {name!r}; {nearest_name(name, presets())}")
    return presets()[name]


def build(config: ModelConfig, *, execution: Execution | None = None, rngs: nnx.Rngs) -> nnx.Module:
    """A model with initial values."""
    for config_type, model_type in _ARCHITECTURES.values():
        if isinstance(config, config_type):
            return model_type(config, execution=execution, rngs=rngs)
    raise TypeError(f"no architecture for a {type(config).__name__}")


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """JSON-able form of a configuration; tuples become lists."""
    (architecture,) = (name for name, (kind, _) in _ARCHITECTURES.items() if isinstance(config, kind))
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    return {"architecture": architecture, **fields}


def config_from_dict(fields: dict[str, Any]) -> ModelConfig:
    """Inverse of `config_to_dict`; UserError on an unknown architecture or field, or a missing one."""
    fields = dict(fields)
    architecture = fields.pop("architecture", None)
    if architecture not in _ARCHITECTURES:
        raise UserError(f"unknown architecture {architecture!r}; {nearest_name(str(architecture), _ARCHITECTURES)}")
    kind = _ARCHITECTURES[architecture][0]
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name in fields:
        if name not in known:
            raise UserError(f"unknown field {name!r} of {architecture}; {nearest_name(name, known)}")
    missing = [n for n, f in known.items() if n not in fields and f.default is dataclasses.MISSING]
    if missing:
        raise UserError(f"missing field {missing[0]!r} of {architecture}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
