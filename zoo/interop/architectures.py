"""The public architectures that are read and written: one table, by `model_type` of config.json."""

from collections.abc import Mapping
from typing import Any

from zoo.errors import UserError
from zoo.interop.architecture import Architecture
from zoo.interop.bert_names import BERT
from zoo.interop.gemma2_config import gemma2_from_huggingface, gemma2_to_huggingface
from zoo.interop.gemma2_names import HUGGINGFACE_HEAD, PADDED_ROWS, axis_sizes, huggingface_places
from zoo.interop.gemma3n_audio_names import GEMMA3N_AUDIO
from zoo.interop.gpt_oss_names import GPT_OSS
from zoo.interop.mixtral_names import MIXTRAL
from zoo.interop.parakeet_names import PARAKEET
from zoo.interop.qwen3_moe_names import QWEN3_MOE
from zoo.interop.resnet_names import RESNET
from zoo.interop.siglip_names import SIGLIP
from zoo.interop.wav2vec2_conformer_names import WAV2VEC2_CONFORMER
from zoo.interop.whisper_names import WHISPER
from zoo.models.gemma2 import Gemma2Config

GEMMA2 = Architecture(
    family="Gemma 2",
    config_type=Gemma2Config,
    config_from=gemma2_from_huggingface,
    config_to=gemma2_to_huggingface,
    places=huggingface_places,
    axis_sizes=axis_sizes,
    repeats={HUGGINGFACE_HEAD: "model.embed_tokens.weight"},
    padded_rows=PADDED_ROWS,
)

ARCHITECTURES: dict[str, Architecture] = {
    "gemma2": GEMMA2,
    "mixtral": MIXTRAL,
    "qwen3_moe": QWEN3_MOE,
    "gpt_oss": GPT_OSS,
    "bert": BERT,
    "siglip_vision_model": SIGLIP,
    "gemma3n_audio": GEMMA3N_AUDIO,
    "whisper": WHISPER,
    "parakeet_encoder": PARAKEET,
    "wav2vec2-conformer": WAV2VEC2_CONFORMER,
    "resnet": RESNET,
}
"""By `model_type`."""


def architecture_of_json(values: Mapping[str, Any], source: str = "config.json") -> Architecture:
    """The entry for a config.json. Raises `UserError`, listing what is supported, for another `model_type`."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(f"{source}: model_type {kind!r} is not supported (supported: {', '.join(ARCHITECTURES)})")
    return ARCHITECTURES[kind]


def find_architecture(config: Any) -> Architecture | None:
    """The entry for one of our configs; None for a model that has no public counterpart."""
    return next((entry for entry in ARCHITECTURES.values() if isinstance(config, entry.config_type)), None)


def architecture_of(config: Any) -> Architecture:
    """The entry for one of our configs. Raises `UserError` for a model that has no public counterpart."""
    found = find_architecture(config)
    if found is not None:
        return found
    known = ", ".join(architecture.family for architecture in ARCHITECTURES.values())
    kind = type(config).__name__.removesuffix("Config")
    raise UserError(f"a {kind} has no Hugging Face format (there is one for {known}): use the format orbax")


def config_from_huggingface(values: Mapping[str, Any], source: str = "config.json") -> Any:
    """Our config of the architecture that a `config.json` describes. `source` is the file's name in messages.

    Raises:
        UserError: another architecture; a key is missing, has a wrong type or an absurd value, or asks for what is not
            computed here.
    """
    return architecture_of_json(values, source).config_from(values, source)


def config_to_huggingface(config: Any, dtype: str) -> dict[str, Any]:
    """A `config.json` that transformers 5 opens strictly. Raises `UserError` for what it could not express."""
    return architecture_of(config).config_to(config, dtype)
