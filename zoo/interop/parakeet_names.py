"""Parakeet's encoder in Hugging Face folders (`ParakeetEncoder`): config.json and tensors, there and back.

Axes: D and I width, N heads, H width of a head, F feed-forward width, A and B channels in front, C one channel, T and S
frames and frequencies of their kernels, Q frequencies after them, K frames of a layer's convolution, W its two halves.
Source: transformers 5.23, models/parakeet.
"""

from collections.abc import Mapping
from typing import Any

from zoo.interop.architecture import Architecture
from zoo.interop.config_fields import ConfigFields
from zoo.interop.encoder_fields import check_encoder, head_count
from zoo.interop.layouts import Layout
from zoo.interop.places import Place, whole_table
from zoo.models.parakeet import STRIDE, ParakeetConfig

_CLASS = "ParakeetEncoder"
# What a key that is missing from config.json means (`ParakeetEncoderConfig`).
_DEFAULTS = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_mel_bins": 80,
    "conv_kernel_size": 9,
    "subsampling_factor": 8,
    "subsampling_conv_channels": 256,
    "subsampling_conv_kernel_size": 3,
    "scale_input": True,
}


def config_from_huggingface(values: Mapping[str, Any], source: str) -> ParakeetConfig:
    """The architecture that a `config.json` describes. Raises `UserError` for what is not computed here."""
    fields = ConfigFields({**_DEFAULTS, **values}, source, "Parakeet")
    check_encoder(fields, _CLASS)
    fields.only("hidden_act", ["silu"], "silu")
    fields.only("attention_bias", [True], True)
    fields.only("convolution_bias", [True], True)
    fields.only("subsampling_conv_stride", [STRIDE], STRIDE)
    fields.only("scale_input", [True, False], True)
    heads = head_count(fields, "num_attention_heads", "hidden_size")
    fields.only("num_key_value_heads", [heads], heads)
    return ParakeetConfig(
        embed_dim=fields.size("hidden_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_heads=heads,
        hidden_dim=fields.size("intermediate_size"),
        num_mel_bins=fields.size("num_mel_bins"),
        conv_kernel_size=fields.size("conv_kernel_size"),
        subsampling_factor=fields.size("subsampling_factor"),
        subsampling_channels=fields.size("subsampling_conv_channels"),
        subsampling_kernel=fields.size("subsampling_conv_kernel_size"),
        scale_input=fields.values["scale_input"],
    )


def config_to_huggingface(config: ParakeetConfig, dtype: str) -> dict[str, Any]:
    """A `config.json` that transformers 5 opens strictly."""
    return {
        "architectures": [_CLASS],
        "attention_bias": True,
        "conv_kernel_size": config.conv_kernel_size,
        "convolution_bias": True,
        "dtype": dtype,
        "hidden_act": "silu",
        "hidden_size": config.embed_dim,
        "intermediate_size": config.hidden_dim,
        "model_type": "parakeet_encoder",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_heads,
        "num_mel_bins": config.num_mel_bins,
        "scale_input": config.scale_input,
        "subsampling_conv_channels": config.subsampling_channels,
        "subsampling_conv_kernel_size": config.subsampling_kernel,
        "subsampling_conv_stride": STRIDE,
        "subsampling_factor": config.subsampling_factor,
    }


def axis_sizes(config: ParakeetConfig) -> dict[str, int]:
    """Sizes of the axes that layouts name."""
    return {
        "D": config.embed_dim,
        "I": config.embed_dim,
        "N": config.num_heads,
        "H": config.embed_dim // config.num_heads,
        "F": config.hidden_dim,
        "A": config.subsampling_channels,
        "B": config.subsampling_channels,
        "C": 1,
        "U": 1,
        "V": 1,
        "T": config.subsampling_kernel,
        "S": config.subsampling_kernel,
        "Q": config.subsampled_bins,
        "K": config.conv_kernel_size,
        "W": 2,
    }


def places(config: ParakeetConfig) -> dict[str, Place]:
    """The place of every parameter, in the order of the forward pass."""
    table = pair("first/kernel", "first/bias", "subsampling.layers.0", "A C T S -> T S C A", "A -> A")
    for i in range(config.num_convolutions - 1):
        # Torch counts the activations between them as layers, too.
        across, within = f"subsampling.layers.{3 * i + 2}", f"subsampling.layers.{3 * i + 3}"
        table |= pair(f"depthwise/{i}/kernel", f"depthwise/{i}/bias", across, "A C T S -> T S C A", "A -> A")
        table |= pair(f"pointwise/{i}/kernel", f"pointwise/{i}/bias", within, "B A U V -> U V A B", "B -> B")
    table |= pair("projection", "projection_bias", "subsampling.linear", "D (A Q) -> Q A D", "D -> D")
    return whole_table(table | fast_conformer_places("layers.{}", _NAMES), config.num_layers)


def pair(ours: str, our_bias: str, theirs: str, weight: str, bias: str) -> dict[str, Place]:
    """The places of what torch keeps as `.weight` and `.bias`."""
    return {ours: Place(f"{theirs}.weight", Layout(weight)), our_bias: Place(f"{theirs}.bias", Layout(bias))}


def fast_conformer_places(prefix: str, names: Mapping[str, str], *, conv_biases: bool = True) -> dict[str, Place]:
    """Templates of a `FastConformerBlock` by the names of its parts, in the order of the forward pass.

    Axes: D and I width, N heads, H width of a head, F feed-forward width, K frames and W halves of the convolution.
    """
    table: dict[str, Place] = {}
    for ours, theirs in names.items():
        weight, bias = _LAYOUTS[ours]
        name, stored = f"layers/{{}}/{ours}", f"{prefix}.{theirs}"
        convolution = ours.startswith("convolution/")
        if bias is None:
            table[name] = Place(stored, Layout(weight))
        elif weight == bias == "D -> D":
            table |= pair(f"{name}/scale", f"{name}/bias", stored, weight, bias)
        else:
            both = pair(name, f"{name}_bias", stored, weight, bias)
            table |= both if conv_biases or not convolution else {name: both[name]}
        if ours == "convolution":
            table[f"{name}/mean"] = Place(f"{stored}.running_mean", Layout("D -> D"))
            table[f"{name}/variance"] = Place(f"{stored}.running_var", Layout("D -> D"))
    return table


_NORM, _HEADS = ("D -> D", "D -> D"), ("(N H) D -> D N H", "(N H) -> N H")
_UP, _DOWN = ("F D -> D F", "F -> F"), ("D F -> F D", "D -> D")
_LAYOUTS: dict[str, tuple[str, str | None]] = {
    "start_norm": _NORM,
    "start_ffw/up": _UP,
    "start_ffw/down": _DOWN,
    "attention_norm": _NORM,
    "attention/query": _HEADS,
    "attention/key": _HEADS,
    "attention/value": _HEADS,
    "attention/relative": (_HEADS[0], None),
    "attention/content_bias": ("N H -> N H", None),
    "attention/position_bias": ("N H -> N H", None),
    "attention/output": ("D (N H) -> N H D", "D -> D"),
    "convolution_norm": _NORM,
    "convolution/start": ("(W I) D 1 -> D W I", "(W I) -> W I"),
    "convolution/kernel": ("D 1 K -> K D", "D -> D"),
    "convolution": _NORM,
    "convolution/end": ("D I 1 -> I D", "D -> D"),
    "end_norm": _NORM,
    "end_ffw/up": _UP,
    "end_ffw/down": _DOWN,
    "final_norm": _NORM,
}
"""Layouts of weight and bias of each part; without the second, the stored tensor is named in full."""

_NAMES = {
    "start_norm": "norm_feed_forward1",
    "start_ffw/up": "feed_forward1.linear1",
    "start_ffw/down": "feed_forward1.linear2",
    "attention_norm": "norm_self_att",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/relative": "self_attn.relative_k_proj.weight",
    "attention/content_bias": "self_attn.bias_u",
    "attention/position_bias": "self_attn.bias_v",
    "attention/output": "self_attn.o_proj",
    "convolution_norm": "norm_conv",
    "convolution/start": "conv.pointwise_conv1",
    "convolution/kernel": "conv.depthwise_conv",
    "convolution": "conv.norm",
    "convolution/end": "conv.pointwise_conv2",
    "end_norm": "norm_feed_forward2",
    "end_ffw/up": "feed_forward2.linear1",
    "end_ffw/down": "feed_forward2.linear2",
    "final_norm": "norm_out",
}


def _counters(config: ParakeetConfig) -> tuple[str, ...]:
    return tuple(f"layers.{layer}.conv.norm.num_batches_tracked" for layer in range(config.num_layers))


PARAKEET = Architecture(
    family="Parakeet's encoder",
    config_type=ParakeetConfig,
    config_from=config_from_huggingface,
    config_to=config_to_huggingface,
    places=places,
    axis_sizes=axis_sizes,
    ignored=(r"layers\.\d+\.conv\.norm\.num_batches_tracked",),
    counters=_counters,
    is_decoder=False,
)
