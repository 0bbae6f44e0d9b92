"""Architectures and presets by name."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from flax import nnx

from zoo.errors import UserError, nearest_name
from zoo.models import (
    bert,
    co_distilled,
    densenet,
    gemini,
    gemma2,
    gemma3n_audio,
    gpt_oss,
    mixtral,
    parakeet,
    qwen3_moe,
    resnet,
    reward_model,
    rims,
    siglip,
    vq_image,
    wav2vec2_conformer,
    whisper,
    workspace_decoder,
    workspace_transformer,
)
from zoo.nn import Execution

DecoderConfig = (
    gemma2.Gemma2Config
    | gemini.GeminiConfig
    | co_distilled.CoDistilledConfig
    | mixtral.MixtralConfig
    | qwen3_moe.Qwen3MoeConfig
    | gpt_oss.GptOssConfig
    | workspace_decoder.WorkspaceDecoderConfig
)
"""The configuration of a model that goes from tokens to logits."""

EncoderConfig = (
    siglip.SiglipConfig
    | gemma3n_audio.Gemma3nAudioConfig
    | whisper.WhisperConfig
    | parakeet.ParakeetConfig
    | wav2vec2_conformer.Wav2Vec2ConformerConfig
)
"""The configuration of a model that goes from an image or a sound to hidden states."""

TrainedConfig = DecoderConfig | vq_image.VqImageConfig | bert.BertConfig | reward_model.RewardModelConfig
"""The configuration of a model that a recipe can train."""

SpecialistsConfig = workspace_transformer.WorkspaceTransformerConfig | rims.RimsConfig
"""The configuration of a model that goes from sets of elements to answers or to their next states."""

ClassifierConfig = resnet.ResnetConfig | densenet.DensenetConfig
"""The configuration of a model that goes from an image to logits of classes."""

ModelConfig = TrainedConfig | EncoderConfig | SpecialistsConfig | ClassifierConfig
"""Any model's configuration."""

_ARCHITECTURES: dict[str, tuple[type, type]] = {
    "gemma2": (gemma2.Gemma2Config, gemma2.Gemma2),
    "gemini": (gemini.GeminiConfig, gemini.Gemini),
    "co_distilled": (co_distilled.CoDistilledConfig, co_distilled.CoDistilled),
    "mixtral": (mixtral.MixtralConfig, mixtral.Mixtral),
    "qwen3_moe": (qwen3_moe.Qwen3MoeConfig, qwen3_moe.Qwen3Moe),
    "gpt_oss": (gpt_oss.GptOssConfig, gpt_oss.GptOss),
    "reward_model": (reward_model.RewardModelConfig, reward_model.RewardModel),
    "vq_image": (vq_image.VqImageConfig, vq_image.VqImage),
    "bert": (bert.BertConfig, bert.Bert),
    "siglip": (siglip.SiglipConfig, siglip.Siglip),
    "gemma3n_audio": (gemma3n_audio.Gemma3nAudioConfig, gemma3n_audio.Gemma3nAudio),
    "whisper": (whisper.WhisperConfig, whisper.WhisperEncoder),
    "parakeet": (parakeet.ParakeetConfig, parakeet.Parakeet),
    "wav2vec2_conformer": (wav2vec2_conformer.Wav2Vec2ConformerConfig, wav2vec2_conformer.Wav2Vec2Conformer),
    "workspace_decoder": (workspace_decoder.WorkspaceDecoderConfig, workspace_decoder.WorkspaceDecoder),
    "workspace_transformer": (
        workspace_transformer.WorkspaceTransformerConfig,
        workspace_transformer.WorkspaceTransformer,
    ),
    "rims": (rims.RimsConfig, rims.Rims),
    "resnet": (resnet.ResnetConfig, resnet.Resnet),
    "densenet": (densenet.DensenetConfig, densenet.Densenet),
}

_WITH_PRESETS = (
    gemma2,
    gemini,
    co_distilled,
    mixtral,
    qwen3_moe,
    gpt_oss,
    reward_model,
    vq_image,
    bert,
    siglip,
    gemma3n_audio,
    whisper,
    workspace_decoder,
    workspace_transformer,
    rims,
    resnet,
    densenet,
)


def presets() -> dict[str, ModelConfig]:
    """All presets, by name."""
    return {name: config for module in _WITH_PRESETS for name, config in module.PRESETS.items()}


def preset(name: str) -> Any:
    """The preset of that name; UserError with the nearest name otherwise."""
    if name not in presets():
        raise UserError(f"unknown model {name!r}; {nearest_name(name, presets())}")
    return presets()[name]


def build(config: ModelConfig, *, execution: Execution | None = None, rngs: nnx.Rngs) -> Any:
    """A model with initial values."""
    for config_type, model_type in _ARCHITECTURES.values():
        if isinstance(config, config_type):
            return model_type(config, execution=execution, rngs=rngs)
    raise TypeError(f"no architecture for a {type(config).__name__}")


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """JSON-able form of a configuration; tuples become lists, parts of it dictionaries."""
    (architecture,) = (name for name, (kind, _) in _ARCHITECTURES.items() if isinstance(config, kind))
    return {"architecture": architecture, **_plain(dataclasses.asdict(config))}


def config_from_dict(fields: Mapping[str, Any]) -> ModelConfig:
    """Inverse of `config_to_dict`; UserError on an unknown architecture or field, or a missing one."""
    fields = dict(fields)
    architecture = fields.pop("architecture", None)
    if architecture not in _ARCHITECTURES:
        raise UserError(f"unknown architecture {architecture!r}; {nearest_name(str(architecture), _ARCHITECTURES)}")
    return _from_dict(_ARCHITECTURES[architecture][0], fields, architecture)


def _from_dict(kind: type, fields: Mapping[str, Any], where: str) -> Any:
    """A dataclass from its fields, those among them that are dataclasses themselves included."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name in fields:
        if name not in known:
            raise UserError(f"unknown field {name!r} of {where}; {nearest_name(name, known)}")
    missing = [n for n, f in known.items() if n not in fields and f.default is dataclasses.MISSING]
    if missing:
        raise UserError(f"missing field {missing[0]!r} of {where}")
    hints = typing.get_type_hints(kind)

    def value(name: str, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return _tuples(given)
        parts = [t for t in _alternatives(hints[name]) if dataclasses.is_dataclass(t)]
        # Of several kinds the first one that has all of these fields.
        fitting = [t for t in parts if set(given) <= {field.name for field in dataclasses.fields(t)}]
        part = next(iter([*fitting, *parts]), None)
        if part is None:
            raise UserError(f"field {name!r} of {where} must not be an object, got {sorted(given)}")
        return _from_dict(part, given, f"{where}.{name}")  # type: ignore[arg-type]

    return kind(**{name: value(name, given) for name, given in fields.items()})


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
