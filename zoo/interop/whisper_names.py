"""Whisper's encoder, saved by itself, in Hugging Face folders (`WhisperEncoder`): config and tensors, there and back.

Axes: D width, N heads, H width of a head, F feed-forward width, M mel bins, K frames of a convolution, T positions, E
the width again. Source: transformers 5.23, models/whisper. What config.json says of the decoder is passed over, and an
export leaves it at the defaults.
"""

from collections.abc import Mapping
from typing import Any

from zoo.interop.architecture import Architecture
from zoo.interop.config_fields import ConfigFields
from zoo.interop.encoder_fields import block_places, check_encoder, head_count
from zoo.interop.layouts import Layout
from zoo.interop.places import Place, whole_table
from zoo.models.whisper import KERNEL, WhisperConfig

_CLASS = "WhisperEncoder"
# What a key that is missing from config.json means (`WhisperConfig`).
_DEFAULTS = {
    "d_model": 384,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "encoder_layers": 4,
    "max_source_positions": 1500,
    "num_mel_bins": 80,
}


def config_from_huggingface(values: Mapping[str, Any], source: str) -> WhisperConfig:
    """The architecture that a `config.json` describes. Raises `UserError` for what is not computed here."""
    fields = ConfigFields({**_DEFAULTS, **values}, source, "Whisper")
    check_encoder(fields, _CLASS)
    fields.only("activation_function", ["gelu"], "gelu")
    if fields.size("d_model") % 2:
        fields.refuse("d_model", "is odd: the positions need pairs")
    return WhisperConfig(
        embed_dim=fields.size("d_model"),
        num_layers=fields.size("encoder_layers"),
        num_heads=head_count(fields, "encoder_attention_heads", "d_model"),
        hidden_dim=fields.size("encoder_ffn_dim"),
        num_mel_bins=fields.size("num_mel_bins"),
        max_positions=fields.size("max_source_positions"),
    )


def config_to_huggingface(config: WhisperConfig, dtype: str) -> dict[str, Any]:
    """A `config.json` that transformers 5 opens strictly."""
    return {
        "activation_dropout": 0.0,
        "activation_function": "gelu",
        "architectures": [_CLASS],
        "attention_dropout": 0.0,
        "d_model": config.embed_dim,
        "dropout": 0.0,
        "dtype": dtype,
        "encoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.hidden_dim,
        "encoder_layerdrop": 0.0,
        "encoder_layers": config.num_layers,
        "max_source_positions": config.max_positions,
        "model_type": "whisper",
        "num_mel_bins": config.num_mel_bins,
        "scale_embedding": False,
    }


def axis_sizes(config: WhisperConfig) -> dict[str, int]:
    """Sizes of the axes that layouts name."""
    return {
        "D": config.embed_dim,
        "E": config.embed_dim,
        "N": config.num_heads,
        "H": config.embed_dim // config.num_heads,
        "F": config.hidden_dim,
        "M": config.num_mel_bins,
        "K": KERNEL,
        "T": config.max_positions,
    }


def places(config: WhisperConfig) -> dict[str, Place]:
    """The place of every parameter, in the order of the forward pass."""
    vector = Layout("D -> D")
    table = {
        "first_kernel": Place("conv1.weight", Layout("D M K -> K M D")),
        "first_bias": Place("conv1.bias", vector),
        "second_kernel": Place("conv2.weight", Layout("D E K -> K E D")),
        "second_bias": Place("conv2.bias", vector),
        "position": Place("embed_positions.weight", Layout("T D -> T D")),
        **block_places("layers.{}.", norms=("self_attn_layer_norm", "final_layer_norm"), key_bias=False),
        "final_norm/scale": Place("layer_norm.weight", vector),
        "final_norm/bias": Place("layer_norm.bias", vector),
    }
    return whole_table(table, config.num_layers)


WHISPER = Architecture(
    family="Whisper's encoder",
    config_type=WhisperConfig,
    config_from=config_from_huggingface,
    config_to=config_to_huggingface,
    places=places,
    axis_sizes=axis_sizes,
    is_decoder=False,
)
