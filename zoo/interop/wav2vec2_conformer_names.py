"""wav2vec 2.0 conformers in Hugging Face folders (`Wav2Vec2ConformerModel`): config.json and tensors, there and back.

Axes: D and I width, N heads, H width of a head, F feed-forward width, K frames of a layer's convolution, W its two
halves, L features in front, G channels of a group of the unused convolution, P its frames; of convolution i in front Ai
inputs, Bi outputs, Ki frames. Source: transformers 5.23, models/wav2vec2_conformer.
"""

from collections.abc import Mapping
from typing import Any

from zoo.interop.architecture import Architecture
from zoo.interop.config_fields import ConfigFields
from zoo.interop.encoder_fields import check_encoder, head_count
from zoo.interop.layouts import Layout
from zoo.interop.parakeet_names import fast_conformer_places, pair
from zoo.interop.places import Place, whole_table
from zoo.models.wav2vec2_conformer import Wav2Vec2ConformerConfig

_CLASS = "Wav2Vec2ConformerModel"
_LAYER = "encoder.layers.{}"
# What a key that is missing from config.json means (`Wav2Vec2ConformerConfig` of transformers).
_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "conv_depthwise_kernel_size": 31,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "feat_extract_norm": "group",
    "layer_norm_eps": 1e-5,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "mask_time_prob": 0.05,
    "mask_feature_prob": 0.0,
}


def config_from_huggingface(values: Mapping[str, Any], source: str) -> Wav2Vec2ConformerConfig:
    """The architecture that a `config.json` describes. Raises `UserError` for what is not computed here."""
    fields = ConfigFields({**_DEFAULTS, **values}, source, "wav2vec 2.0 conformer")
    check_encoder(fields, _CLASS)
    for key, value in {
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "position_embeddings_type": "relative",
        "add_adapter": False,
    }.items():
        fields.only(key, [value], value)
    fields.only("feat_extract_norm", ["layer"], None)
    fields.only("conv_bias", [True, False], False)
    fronts = {key: tuple(_sizes(fields, key)) for key in ("conv_dim", "conv_kernel", "conv_stride")}
    if len({len(front) for front in fronts.values()}) != 1:
        fields.refuse("conv_dim", "is not as long as conv_kernel and conv_stride")
    masks = [fields.values[key] for key in ("mask_time_prob", "mask_feature_prob")]
    return Wav2Vec2ConformerConfig(
        embed_dim=fields.size("hidden_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_heads=head_count(fields, "num_attention_heads", "hidden_size"),
        hidden_dim=fields.size("intermediate_size"),
        conv_kernel_size=fields.size("conv_depthwise_kernel_size"),
        front_channels=fronts["conv_dim"],
        front_kernels=fronts["conv_kernel"],
        front_strides=fronts["conv_stride"],
        front_biases=fields.values["conv_bias"],
        norm_eps=fields.positive("layer_norm_eps"),
        position_kernel=fields.size("num_conv_pos_embeddings"),
        position_groups=head_count(fields, "num_conv_pos_embedding_groups", "hidden_size"),
        has_mask_embedding=any(masks),
    )


def _sizes(fields: ConfigFields, key: str) -> list[int]:
    value = fields.values[key]
    if not isinstance(value, list) or not value or not all(type(size) is int and size >= 1 for size in value):
        fields.refuse(key, "is not supported: it must be a list of whole numbers from 1")
    return value


def config_to_huggingface(config: Wav2Vec2ConformerConfig, dtype: str) -> dict[str, Any]:
    """A `config.json` that transformers 5 opens strictly."""
    return {
        "add_adapter": False,
        "architectures": [_CLASS],
        "conv_bias": config.front_biases,
        "conv_depthwise_kernel_size": config.conv_kernel_size,
        "conv_dim": list(config.front_channels),
        "conv_kernel": list(config.front_kernels),
        "conv_stride": list(config.front_strides),
        "dtype": dtype,
        "feat_extract_activation": "gelu",
        "feat_extract_norm": "layer",
        "hidden_act": "gelu",
        "hidden_size": config.embed_dim,
        "intermediate_size": config.hidden_dim,
        "layer_norm_eps": config.norm_eps,
        # Whether there is a vector of masked frames follows from this.
        "mask_feature_prob": 0.0,
        "mask_time_prob": 0.05 if config.has_mask_embedding else 0.0,
        "model_type": "wav2vec2-conformer",
        "num_attention_heads": config.num_heads,
        "num_conv_pos_embedding_groups": config.position_groups,
        "num_conv_pos_embeddings": config.position_kernel,
        "num_feat_extract_layers": len(config.front_channels),
        "num_hidden_layers": config.num_layers,
        "position_embeddings_type": "relative",
    }


def axis_sizes(config: Wav2Vec2ConformerConfig) -> dict[str, int]:
    """Sizes of the axes that layouts name."""
    sizes = {
        "D": config.embed_dim,
        "I": config.embed_dim,
        "N": config.num_heads,
        "H": config.embed_dim // config.num_heads,
        "F": config.hidden_dim,
        "K": config.conv_kernel_size,
        "W": 2,
        "L": config.front_channels[-1],
        "G": config.embed_dim // config.position_groups,
        "S": config.position_kernel,
    }
    inputs = (1, *config.front_channels[:-1])
    for i, front in enumerate(zip(inputs, config.front_channels, config.front_kernels, strict=True)):
        sizes |= {f"{axis}{i}": size for axis, size in zip("ABK", front, strict=True)}
    return sizes


def places(config: Wav2Vec2ConformerConfig) -> dict[str, Place]:
    """The place of every parameter, in the order of the forward pass."""
    table: dict[str, Place] = {}
    for i in range(len(config.front_channels)):
        theirs, vector = f"feature_extractor.conv_layers.{i}", f"B{i} -> B{i}"
        table[f"front/{i}/kernel"] = Place(f"{theirs}.conv.weight", Layout(f"B{i} A{i} K{i} -> K{i} A{i} B{i}"))
        if config.front_biases:
            table[f"front/{i}/bias"] = Place(f"{theirs}.conv.bias", Layout(vector))
        table |= pair(f"front/{i}/norm/scale", f"front/{i}/norm/bias", f"{theirs}.layer_norm", vector, vector)
    table |= pair("front_norm/scale", "front_norm/bias", "feature_projection.layer_norm", "L -> L", "L -> L")
    table |= pair("projection", "projection_bias", "feature_projection.projection", "D L -> L D", "D -> D")
    table |= fast_conformer_places(_LAYER, _NAMES, conv_biases=False)
    table |= pair("final_norm/scale", "final_norm/bias", "encoder.layer_norm", "D -> D", "D -> D")
    conv = "encoder.pos_conv_embed.conv"
    weight = f"{conv}.parametrizations.weight.original"
    table["unused/position_scale"] = Place(f"{weight}0", Layout("1 1 S -> S"))
    table["unused/position_kernel"] = Place(f"{weight}1", Layout("D G S -> S G D"))
    table["unused/position_bias"] = Place(f"{conv}.bias", Layout("D -> D"))
    if config.has_mask_embedding:
        table["unused/mask_embedding"] = Place("masked_spec_embed", Layout("D -> D"))
    return whole_table(table, config.num_layers)


_NAMES = {
    "start_norm": "ffn1_layer_norm",
    "start_ffw/up": "ffn1.intermediate_dense",
    "start_ffw/down": "ffn1.output_dense",
    "attention_norm": "self_attn_layer_norm",
    "attention/query": "self_attn.linear_q",
    "attention/key": "self_attn.linear_k",
    "attention/value": "self_attn.linear_v",
    "attention/relative": "self_attn.linear_pos.weight",
    "attention/content_bias": "self_attn.pos_bias_u",
    "attention/position_bias": "self_attn.pos_bias_v",
    "attention/output": "self_attn.linear_out",
    "convolution_norm": "conv_module.layer_norm",
    "convolution/start": "conv_module.pointwise_conv1",
    "convolution/kernel": "conv_module.depthwise_conv",
    "convolution": "conv_module.batch_norm",
    "convolution/end": "conv_module.pointwise_conv2",
    "end_norm": "ffn2_layer_norm",
    "end_ffw/up": "ffn2.intermediate_dense",
    "end_ffw/down": "ffn2.output_dense",
    "final_norm": "final_layer_norm",
}


def _counters(config: Wav2Vec2ConformerConfig) -> tuple[str, ...]:
    names = (_LAYER.format(layer) for layer in range(config.num_layers))
    return tuple(f"{name}.conv_module.batch_norm.num_batches_tracked" for name in names)


WAV2VEC2_CONFORMER = Architecture(
    family="wav2vec 2.0 conformer",
    config_type=Wav2Vec2ConformerConfig,
    config_from=config_from_huggingface,
    config_to=config_to_huggingface,
    places=places,
    axis_sizes=axis_sizes,
    ignored=(r"encoder\.layers\.\d+\.conv_module\.batch_norm\.num_batches_tracked",),
    counters=_counters,
    is_decoder=False,
)
