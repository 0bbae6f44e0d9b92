"""Gemma 3n's audio encoder in Hugging Face folders (`Gemma3nAudioEncoder`): config.json and tensors, there and back.

Axes: D and I width, N heads, H width of a head, F feed-forward width, C, A and B channels before, between and after the
convolutions, T and S frames and frequencies of their kernels, Q frequencies after them, K frames of the light
convolution, W its two halves. Source: transformers 5.23, models/gemma3n.
"""

from collections.abc import Mapping
from typing import Any

from zoo.interop.architecture import Architecture
from zoo.interop.config_fields import ConfigFields
from zoo.interop.encoder_fields import check_encoder, head_count
from zoo.interop.layouts import Layout
from zoo.interop.places import Place, whole_table
from zoo.models.gemma3n_audio import Gemma3nAudioConfig

_CLASS = "Gemma3nAudioEncoder"
# What a key that is missing from config.json means (`Gemma3nAudioConfig` of transformers).
_DEFAULTS = {
    "conf_attention_chunk_size": 12,
    "conf_attention_context_left": 13,
    "conf_attention_context_right": 0,
    "conf_attention_logit_cap": 50.0,
    "conf_conv_kernel_size": 5,
    "conf_num_attention_heads": 8,
    "conf_num_hidden_layers": 12,
    "conf_reduction_factor": 4,
    "conf_residual_weight": 0.5,
    "gradient_clipping": 1e10,
    "hidden_size": 1536,
    "input_feat_size": 128,
    "rms_norm_eps": 1e-6,
    "sscp_conv_channel_size": [128, 32],
    "sscp_conv_group_norm_eps": 1e-3,
    "sscp_conv_kernel_size": [[3, 3], [3, 3]],
    "sscp_conv_stride_size": [[2, 2], [2, 2]],
}


def config_from_huggingface(values: Mapping[str, Any], source: str) -> Gemma3nAudioConfig:
    """The architecture that a `config.json` describes. Raises `UserError` for what is not computed here."""
    fields = ConfigFields({**_DEFAULTS, **values}, source, "Gemma 3n audio")
    check_encoder(fields, _CLASS)
    if fields.size("hidden_size") % 2:
        fields.refuse("hidden_size", "is odd: the relative positions need pairs")
    right = fields.values["conf_attention_context_right"]
    if not isinstance(right, int) or isinstance(right, bool) or right < 0:
        fields.refuse("conf_attention_context_right", "is not supported: it must be a whole number from 0")
    return Gemma3nAudioConfig(
        embed_dim=fields.size("hidden_size"),
        num_layers=fields.size("conf_num_hidden_layers"),
        num_heads=head_count(fields, "conf_num_attention_heads", "hidden_size"),
        num_mel_bins=fields.size("input_feat_size"),
        chunk_size=fields.size("conf_attention_chunk_size"),
        left_context=fields.size("conf_attention_context_left"),
        right_context=right,
        attn_logit_soft_cap=fields.positive("conf_attention_logit_cap"),
        conv_kernel_size=fields.size("conf_conv_kernel_size"),
        residual_weight=fields.positive("conf_residual_weight"),
        reduction_factor=fields.size("conf_reduction_factor"),
        subsampling_channels=_pair(fields, "sscp_conv_channel_size", fields.values["sscp_conv_channel_size"]),
        subsampling_kernel=_common_pair(fields, "sscp_conv_kernel_size"),
        subsampling_stride=_common_pair(fields, "sscp_conv_stride_size"),
        group_norm_eps=fields.positive("sscp_conv_group_norm_eps"),
        norm_eps=fields.positive("rms_norm_eps"),
        clip=fields.positive("gradient_clipping"),
    )


def _common_pair(fields: ConfigFields, key: str) -> tuple[int, int]:
    """The pair that both convolutions have."""
    value = fields.values[key]
    if not isinstance(value, list) or len(value) != 2 or value[0] != value[1]:
        fields.refuse(key, "is not supported: it must be a list of two equal pairs, one for each convolution")
    return _pair(fields, key, value[0])


def _pair(fields: ConfigFields, key: str, value: Any) -> tuple[int, int]:
    whole = isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in value)
    if not whole or len(value) != 2:
        fields.refuse(key, "is not supported: it must hold pairs of whole numbers from 1")
    return value[0], value[1]


def config_to_huggingface(config: Gemma3nAudioConfig, dtype: str) -> dict[str, Any]:
    """A `config.json` that transformers 5 opens strictly."""
    return {
        "architectures": [_CLASS],
        "conf_attention_chunk_size": config.chunk_size,
        "conf_attention_context_left": config.left_context,
        "conf_attention_context_right": config.right_context,
        "conf_attention_logit_cap": config.attn_logit_soft_cap,
        "conf_conv_kernel_size": config.conv_kernel_size,
        "conf_num_attention_heads": config.num_heads,
        "conf_num_hidden_layers": config.num_layers,
        "conf_reduction_factor": config.reduction_factor,
        "conf_residual_weight": config.residual_weight,
        "dtype": dtype,
        "gradient_clipping": config.clip,
        "hidden_size": config.embed_dim,
        "input_feat_size": config.num_mel_bins,
        "model_type": "gemma3n_audio",
        "rms_norm_eps": config.norm_eps,
        "sscp_conv_channel_size": list(config.subsampling_channels),
        "sscp_conv_group_norm_eps": config.group_norm_eps,
        "sscp_conv_kernel_size": [list(config.subsampling_kernel)] * 2,
        "sscp_conv_stride_size": [list(config.subsampling_stride)] * 2,
    }


def axis_sizes(config: Gemma3nAudioConfig) -> dict[str, int]:
    """Sizes of the axes that layouts name."""
    return {
        "D": config.embed_dim,
        "I": config.embed_dim,
        "N": config.num_heads,
        "H": config.embed_dim // config.num_heads,
        "F": config.ffw_dim,
        "C": 1,
        "A": config.subsampling_channels[0],
        "B": config.subsampling_channels[1],
        "T": config.subsampling_kernel[0],
        "S": config.subsampling_kernel[1],
        "Q": config.subsampled_bins[1],
        "K": config.conv_kernel_size,
        "W": 2,
    }


def places(config: Gemma3nAudioConfig) -> dict[str, Place]:
    """The place of every parameter, in the order of the forward pass."""
    return whole_table(_FRONT | _layer_places(), config.num_layers)


_FRONT = {
    "first_convolution/kernel": Place("subsample_conv_projection.conv_0.conv.weight", Layout("A C T S -> T S C A")),
    "first_convolution/scale": Place("subsample_conv_projection.conv_0.norm.weight", Layout("A -> A")),
    "second_convolution/kernel": Place("subsample_conv_projection.conv_1.conv.weight", Layout("B A T S -> T S A B")),
    "second_convolution/scale": Place("subsample_conv_projection.conv_1.norm.weight", Layout("B -> B")),
    "projection": Place("subsample_conv_projection.input_proj_linear.weight", Layout("D (Q B) -> Q B D")),
}


def _layer_places() -> dict[str, Place]:
    heads = "(N H) D -> D N H"
    return {
        **_feed_forward("start"),
        **_layer("pre_attention_norm/scale", "attention.pre_attn_norm", "D -> D"),
        **_layer("attention/query", "attention.attn.q_proj", heads),
        **_layer("attention/key", "attention.attn.k_proj", heads),
        **_layer("attention/value", "attention.attn.v_proj", heads),
        **_layer("attention/relative", "attention.attn.relative_position_embedding.pos_proj", heads),
        "layers/{}/attention/per_dim_scale": Place("conformer.{}.attention.attn.per_dim_scale", Layout("H -> H")),
        **_layer("attention/output", "attention.post", "D (N H) -> N H D"),
        **_layer("post_attention_norm/scale", "attention.post_norm", "D -> D"),
        **_layer("convolution/pre_norm/scale", "lconv1d.pre_layer_norm", "D -> D"),
        **_layer("convolution/start", "lconv1d.linear_start", "(W I) D -> D W I"),
        **_layer("convolution/kernel", "lconv1d.depthwise_conv1d", "D 1 K -> K D"),
        **_layer("convolution/conv_norm/scale", "lconv1d.conv_norm", "D -> D"),
        **_layer("convolution/end", "lconv1d.linear_end", "D I -> I D"),
        **_feed_forward("end"),
        **_layer("final_norm/scale", "norm", "D -> D"),
    }


def _feed_forward(which: str) -> dict[str, Place]:
    ours, theirs = f"{which}_ffw", f"ffw_layer_{which}"
    return {
        **_layer(f"{ours}/pre_norm/scale", f"{theirs}.pre_layer_norm", "D -> D"),
        **_layer(f"{ours}/up", f"{theirs}.ffw_layer_1", "F D -> D F"),
        **_layer(f"{ours}/down", f"{theirs}.ffw_layer_2", "D F -> F D"),
        **_layer(f"{ours}/post_norm/scale", f"{theirs}.post_layer_norm", "D -> D"),
    }


def _layer(ours: str, theirs: str, layout: str) -> dict[str, Place]:
    return {f"layers/{{}}/{ours}": Place(f"conformer.{{}}.{theirs}.weight", Layout(layout))}


GEMMA3N_AUDIO = Architecture(
    family="Gemma 3n audio",
    config_type=Gemma3nAudioConfig,
    config_from=config_from_huggingface,
    config_to=config_to_huggingface,
    places=places,
    axis_sizes=axis_sizes,
    is_decoder=False,
)
