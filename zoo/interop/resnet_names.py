"""ResNet in Hugging Face folders (`ResNetForImageClassification`, `ResNetModel`): config.json and tensors, there and
back; and the names that torchvision, and timm after it, give the same tensors.

An axis is named by what it is and how long it is (O64: 64 outputs), since every convolution has sizes of its own.
Source: transformers 5.23, models/resnet; torchvision, models/resnet.py.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from zoo.interop.architecture import Architecture
from zoo.interop.config_fields import ConfigFields
from zoo.interop.layouts import Layout
from zoo.interop.places import Place
from zoo.models.resnet import ResnetConfig

_WITH_CLASSIFIER, _BARE = "ResNetForImageClassification", "ResNetModel"
# What a key that is missing from config.json means (`ResNetConfig`).
_DEFAULTS = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
    "architectures": [_WITH_CLASSIFIER],
}
COUNTER = "num_batches_tracked"
"""What torch counts beside a norm's statistics; nothing here reads it."""


def config_from_huggingface(values: Mapping[str, Any], source: str) -> ResnetConfig:
    """The architecture that a `config.json` describes. Raises `UserError` for what is not computed here."""
    fields = ConfigFields({**_DEFAULTS, **values}, source, "ResNet")
    classes = fields.values["architectures"] or [_WITH_CLASSIFIER]
    if classes not in ([_WITH_CLASSIFIER], [_BARE]):
        fields.refuse("architectures", f'is not supported: it must be ["{_WITH_CLASSIFIER}"] or ["{_BARE}"]')
    fields.only("auto_map", [None], None)
    fields.only("quantization_config", [None], None)
    fields.only("hidden_act", ["relu"], "relu")
    fields.only("layer_type", ["basic", "bottleneck"], "bottleneck")
    fields.only("downsample_in_first_stage", [False], False)
    fields.only("downsample_in_bottleneck", [False], False)
    depths, widths = _sizes(fields, "depths"), _sizes(fields, "hidden_sizes")
    if len(depths) != len(widths):
        fields.refuse("depths", f"is not as long as hidden_sizes = {list(widths)}")
    return ResnetConfig(
        depths=depths,
        widths=widths,
        block=fields.values["layer_type"],
        stem_width=fields.size("embedding_size"),
        num_channels=fields.size("num_channels"),
        num_classes=_classes(fields) if classes == [_WITH_CLASSIFIER] else 0,
    )


def _sizes(fields: ConfigFields, key: str) -> tuple[int, ...]:
    found = fields.values[key]
    if not isinstance(found, list) or not found or not all(type(size) is int and size >= 1 for size in found):
        fields.refuse(key, "is not supported: it must be a list of whole numbers above 0")
    return tuple(found)


def _classes(fields: ConfigFields) -> int:
    """As transformers has it: the labels that are named, else `num_labels`, else 2."""
    labels = fields.values.get("id2label")
    if labels is None:
        return fields.size("num_labels") if "num_labels" in fields.values else 2
    if not isinstance(labels, dict) or not labels:
        fields.refuse("id2label", "is not supported: it must name a label or more")
    return len(labels)


def config_to_huggingface(config: ResnetConfig, dtype: str) -> dict[str, Any]:
    """A `config.json` that transformers 5 opens strictly."""
    named = {str(i): f"LABEL_{i}" for i in range(config.num_classes)}
    labels = {"id2label": named, "label2id": {name: int(i) for i, name in named.items()}} if named else {}
    return {
        "architectures": [_WITH_CLASSIFIER if config.num_classes else _BARE],
        "depths": list(config.depths),
        "downsample_in_bottleneck": False,
        "downsample_in_first_stage": False,
        "dtype": dtype,
        "embedding_size": config.stem_width,
        "hidden_act": "relu",
        "hidden_sizes": list(config.widths),
        "layer_type": config.block,
        "model_type": "resnet",
        "num_channels": config.num_channels,
        **labels,
    }


def huggingface_places(config: ResnetConfig) -> dict[str, Place]:
    """The place of every parameter, in the order of the forward pass."""
    prefix = "resnet." if config.num_classes else ""
    stem = f"{prefix}embedder.embedder"
    shape = (config.num_channels, config.stem_width, 7)
    table = _normed("stem", f"{stem}.convolution", f"{stem}.normalization", *shape)
    for stage, depth in enumerate(config.depths):
        for index in range(depth):
            ours, theirs = f"stages/{stage}/{index}", f"{prefix}encoder.stages.{stage}.layers.{index}"
            for name, part, *shape in _block_parts(config, stage, index):
                stored = f"{theirs}.shortcut" if part is None else f"{theirs}.layer.{part}"
                table |= _normed(f"{ours}/{name}", f"{stored}.convolution", f"{stored}.normalization", *shape)
    return table | linear_places(config.num_classes, config.feature_dim, "classifier.1")


def torchvision_places(config: ResnetConfig) -> dict[str, Place]:
    """The same in torchvision's and timm's names."""
    table = _normed("stem", "conv1", "bn1", config.num_channels, config.stem_width, 7)
    for stage, depth in enumerate(config.depths):
        for index in range(depth):
            ours, theirs = f"stages/{stage}/{index}", f"layer{stage + 1}.{index}"
            for name, part, *shape in _block_parts(config, stage, index):
                if part is None:
                    convolution, norm = f"{theirs}.downsample.0", f"{theirs}.downsample.1"
                else:
                    convolution, norm = f"{theirs}.conv{part + 1}", f"{theirs}.bn{part + 1}"
                table |= _normed(f"{ours}/{name}", convolution, norm, *shape)
    return table | linear_places(config.num_classes, config.feature_dim, "fc")


def _block_parts(config: ResnetConfig, stage: int, index: int) -> Iterable[tuple]:
    """(our name in the block, number of the convolution or None for the shortcut, inputs, outputs, kernel)."""
    if config.has_shortcut(stage, index):
        yield "shortcut", None, config.entry(stage, index)[0], config.widths[stage], 1
    for part, (inputs, outputs, kernel, _) in enumerate(config.convolutions(stage, index)):
        yield f"convolutions/{part}", part, inputs, outputs, kernel


def _normed(ours: str, convolution: str, norm: str, inputs: int, outputs: int, kernel: int) -> dict[str, Place]:
    return convolution_place(f"{ours}/convolution", convolution, inputs, outputs, kernel) | norm_places(
        f"{ours}/norm", norm, outputs
    )


def convolution_place(ours: str, theirs: str, inputs: int, outputs: int, kernel: int) -> dict[str, Place]:
    """The kernel of a `Convolution`, which torch keeps as [out, in, rows, columns]."""
    axes = f"O{outputs} I{inputs} R{kernel} S{kernel}"
    layout = Layout(f"{axes} -> R{kernel} S{kernel} I{inputs} O{outputs}")
    return {f"{ours}/kernel": Place(f"{theirs}.weight", layout)}


def norm_places(ours: str, theirs: str, dim: int) -> dict[str, Place]:
    """Parameters and statistics of a `BatchNorm`."""
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
    return {f"{ours}/{mine}": Place(f"{theirs}.{name}", Layout(f"O{dim} -> O{dim}")) for mine, name in names.items()}


def linear_places(num_classes: int, dim: int, theirs: str) -> dict[str, Place]:
    """Weights and bias of the classifier, if there is one."""
    if not num_classes:
        return {}
    weight = Layout(f"O{num_classes} I{dim} -> I{dim} O{num_classes}")
    bias = Layout(f"O{num_classes} -> O{num_classes}")
    return {"classifier": Place(f"{theirs}.weight", weight), "classifier_bias": Place(f"{theirs}.bias", bias)}


def sizes_of(places: Mapping[str, Place]) -> dict[str, int]:
    """Sizes of the axes that the layouts name: each says its own."""
    axes = {axis for place in places.values() for axis in place.layout.equation.split("->")[1].split()}
    return {axis: int(axis[1:]) for axis in axes}


def counters_of(places: Mapping[str, Place]) -> tuple[str, ...]:
    """Torch's counters beside the statistics."""
    ending = ".running_mean"
    stored = (place.name for place in places.values())
    return tuple(f"{name.removesuffix(ending)}.{COUNTER}" for name in stored if name.endswith(ending))


RESNET = Architecture(
    family="ResNet",
    config_type=ResnetConfig,
    config_from=config_from_huggingface,
    config_to=config_to_huggingface,
    places=huggingface_places,
    axis_sizes=lambda config: sizes_of(huggingface_places(config)),
    ignored=(r".*\.num_batches_tracked",),
    counters=lambda config: counters_of(huggingface_places(config)),
    is_decoder=False,
)
