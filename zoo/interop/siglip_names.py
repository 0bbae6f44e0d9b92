"""SigLIP's vision tower in Hugging Face folders (`SiglipVisionModel`): config.json and tensors, there and back.

Axes: D width, N heads, H width of a head, F feed-forward width, C channels, R and S rows and columns of a patch, G
cells of the position table. Source: transformers 5.23, models/siglip (torch keeps a linear map as [out, in], a
convolution as [out, in, rows, columns], and the three projections of the head's attention in one matrix).
"""

from collections.abc import Mapping
from typing import Any

from zoo.interop.architecture import Architecture
from zoo.interop.config_fields import ConfigFields
from zoo.interop.encoder_fields import block_places, check_encoder, head_count
from zoo.interop.layouts import Layout
from zoo.interop.places import Place, whole_table
from zoo.models.siglip import SiglipConfig

_CLASS = "SiglipVisionModel"
_ACTIVATION = "gelu_pytorch_tanh"
# What a key that is missing from config.json means (`SiglipVisionConfig`).
_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}


def config_from_huggingface(values: Mapping[str, Any], source: str) -> SiglipConfig:
    """The architecture that a `config.json` describes. Raises `UserError` for what is not computed here."""
    fields = ConfigFields({**_DEFAULTS, **values}, source, "SigLIP vision")
    check_encoder(fields, _CLASS)
    fields.only("hidden_act", [_ACTIVATION], _ACTIVATION)
    fields.only("vision_use_head", [True, False], True)
    patch_size, image_size = fields.size("patch_size"), fields.size("image_size")
    if image_size < patch_size:
        fields.refuse("image_size", f"is less than patch_size = {patch_size}")
    return SiglipConfig(
        embed_dim=fields.size("hidden_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_heads=head_count(fields, "num_attention_heads", "hidden_size"),
        hidden_dim=fields.size("intermediate_size"),
        patch_size=patch_size,
        image_size=image_size,
        num_channels=fields.size("num_channels"),
        use_head=fields.values["vision_use_head"],
        norm_eps=fields.positive("layer_norm_eps"),
    )


def config_to_huggingface(config: SiglipConfig, dtype: str) -> dict[str, Any]:
    """A `config.json` that transformers 5 opens strictly."""
    return {
        "architectures": [_CLASS],
        "attention_dropout": 0.0,
        "dtype": dtype,
        "hidden_act": _ACTIVATION,
        "hidden_size": config.embed_dim,
        "image_size": config.image_size,
        "intermediate_size": config.hidden_dim,
        "layer_norm_eps": config.norm_eps,
        "model_type": "siglip_vision_model",
        "num_attention_heads": config.num_heads,
        "num_channels": config.num_channels,
        "num_hidden_layers": config.num_layers,
        "patch_size": config.patch_size,
        "vision_use_head": config.use_head,
    }


def axis_sizes(config: SiglipConfig) -> dict[str, int]:
    """Sizes of the axes that layouts name."""
    return {
        "D": config.embed_dim,
        "N": config.num_heads,
        "H": config.embed_dim // config.num_heads,
        "F": config.hidden_dim,
        "C": config.num_channels,
        "R": config.patch_size,
        "S": config.patch_size,
        "G": config.grid**2,
    }


def places(config: SiglipConfig) -> dict[str, Place]:
    """The place of every parameter, in the order of the forward pass."""
    vector = Layout("D -> D")
    table = {
        "embedding/kernel": Place("embeddings.patch_embedding.weight", Layout("D C R S -> R S C D")),
        "embedding/bias": Place("embeddings.patch_embedding.bias", vector),
        "embedding/position": Place("embeddings.position_embedding.weight", Layout("G D -> G D")),
        **block_places("encoder.layers.{}.", norms=("layer_norm1", "layer_norm2"), feed_forward="mlp."),
        "final_norm/scale": Place("post_layernorm.weight", vector),
        "final_norm/bias": Place("post_layernorm.bias", vector),
    }
    return whole_table(table, config.num_layers) | (_head_places() if config.use_head else {})


def _head_places() -> dict[str, Place]:
    table = {"head/probe": Place("head.probe", Layout("1 1 D -> D"))}
    weight, bias = Layout("(P N H) D -> P D N H"), Layout("(P N H) -> P N H")
    for slot, name in enumerate(("query", "key", "value")):
        table[f"head/attention/{name}"] = Place("head.attention.in_proj_weight", weight, slot=slot, parts=3)
        table[f"head/attention/{name}_bias"] = Place("head.attention.in_proj_bias", bias, slot=slot, parts=3)
    return table | {
        "head/attention/output": Place("head.attention.out_proj.weight", Layout("D (N H) -> N H D")),
        "head/attention/output_bias": Place("head.attention.out_proj.bias", Layout("D -> D")),
        "head/mlp_norm/scale": Place("head.layernorm.weight", Layout("D -> D")),
        "head/mlp_norm/bias": Place("head.layernorm.bias", Layout("D -> D")),
        "head/mlp/up": Place("head.mlp.fc1.weight", Layout("F D -> D F")),
        "head/mlp/up_bias": Place("head.mlp.fc1.bias", Layout("F -> F")),
        "head/mlp/down": Place("head.mlp.fc2.weight", Layout("D F -> F D")),
        "head/mlp/down_bias": Place("head.mlp.fc2.bias", Layout("D -> D")),
    }


SIGLIP = Architecture(
    family="SigLIP vision",
    config_type=SiglipConfig,
    config_from=config_from_huggingface,
    config_to=config_to_huggingface,
    places=places,
    axis_sizes=axis_sizes,
    ignored=(r"embeddings\.position_ids",),
    is_decoder=False,
)
