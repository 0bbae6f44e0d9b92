"""ResNets and DenseNets under torchvision's names of tensors, which timm's folders use as well: in, from safetensors.

Such files have no config.json that says what they are; names and shapes do. torchvision's own files are pickles, which
are not read here: `safetensors.torch.save_file(model.state_dict(), "model.safetensors")` writes what is.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.interop.parameters import OnTensor, build_model
from zoo.interop.places import Place, read_parameter
from zoo.interop.resnet_names import (
    COUNTER,
    convolution_place,
    linear_places,
    norm_places,
    sizes_of,
    torchvision_places,
)
from zoo.interop.safetensors_folder import SINGLE_FILE, SafetensorsFolder, StoredTensor
from zoo.models.densenet import DensenetConfig
from zoo.models.resnet import ResnetConfig
from zoo.nn import Execution

_OLD = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.")


def load_torchvision(path: str | Path, *, execution: Execution | None = None, on_tensor: OnTensor | None = None) -> Any:
    """The ResNet or DenseNet of a safetensors file, or of the model.safetensors in a folder; its architecture, read off
    names and shapes, is `.config`. Parameters have the execution's dtype.

    Raises `UserError` that names the file, for tensors that are missing, unexpected, misshapen or damaged, and for
    ResNets that are wider or grouped (ResNeXt, Wide ResNet).
    """
    path = Path(path)
    folder, file = (path, SINGLE_FILE) if path.is_dir() else (path.parent, path.name)
    if not (folder / file).is_file():
        raise UserError(f"{folder / file}: no such file")
    stored = SafetensorsFolder(folder, file=file)
    # The pickles of DenseNets have names that an old version of torch gave ("norm.1"); torchvision renames them so.
    names = {_OLD.sub(r"\1\2.", name): name for name in stored.tensors}
    tensors = {name: stored.tensors[old] for name, old in names.items()}
    config = config_of(tensors, str(folder / file))
    places = torchvision_places(config) if isinstance(config, ResnetConfig) else densenet_places(config)
    sizes = sizes_of(places)
    _check(tensors, places, sizes, folder / file)
    execution = execution or Execution()

    def read(name: str) -> Any:
        return read_parameter(places[name], sizes, lambda theirs: stored.read(names[theirs]))

    order, dtype = list(places), execution.param_dtype
    return build_model(config, execution, read, order=order, param_dtype=dtype, on_tensor=on_tensor)


def config_of(tensors: Mapping[str, StoredTensor], source: str) -> ResnetConfig | DensenetConfig:
    """The architecture that names and shapes say. Raises `UserError` where they are of neither network."""

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) != dims:
            raise UserError(f"{source}: no tensor {name} of {dims} axes: it is no ResNet or DenseNet of torchvision")
        return tensors[name].shape

    def counted(pattern: str) -> int:
        found = (re.match(pattern, name) for name in tensors)
        return max((int(match[1]) for match in found if match), default=0)

    if "features.conv0.weight" in tensors:
        stem = shape("features.conv0.weight", 4)
        blocks = counted(r"features\.denseblock(\d+)\.")
        depths = [counted(rf"features\.denseblock{block}\.denselayer(\d+)\.") for block in range(1, blocks + 1)]
        inner, growth = (shape(f"features.denseblock1.denselayer1.conv{number}.weight", 4)[0] for number in (1, 2))
        return DensenetConfig(
            depths=tuple(depths),
            growth=growth,
            stem_width=stem[0],
            bottleneck=inner // growth,
            num_channels=stem[1],
            num_classes=shape("classifier.weight", 2)[0] if "classifier.weight" in tensors else 0,
        )
    stem, stages = shape("conv1.weight", 4), counted(r"layer(\d+)\.")
    last = 3 if "layer1.0.conv3.weight" in tensors else 2
    widths = [shape(f"layer{stage}.0.conv{last}.weight", 4)[0] for stage in range(1, stages + 1)]
    return ResnetConfig(
        depths=tuple(counted(rf"layer{stage}\.(\d+)\.") + 1 for stage in range(1, stages + 1)),
        widths=tuple(widths),
        block="bottleneck" if last == 3 else "basic",
        stem_width=stem[0],
        num_channels=stem[1],
        num_classes=shape("fc.weight", 2)[0] if "fc.weight" in tensors else 0,
    )


def densenet_places(config: DensenetConfig) -> dict[str, Place]:
    """The place of every parameter, in the order of the forward pass."""
    inner, stem = config.bottleneck * config.growth, config.stem_width
    table = convolution_place("stem", "features.conv0", config.num_channels, stem, 7)
    table |= norm_places("stem_norm", "features.norm0", stem)
    for number, (depth, width) in enumerate(zip(config.depths, config.inputs)):
        for index in range(depth):
            ours, theirs = f"blocks/{number}/{index}", f"features.denseblock{number + 1}.denselayer{index + 1}"
            table |= norm_places(f"{ours}/first_norm", f"{theirs}.norm1", width)
            table |= convolution_place(f"{ours}/first", f"{theirs}.conv1", width, inner, 1)
            table |= norm_places(f"{ours}/second_norm", f"{theirs}.norm2", inner)
            table |= convolution_place(f"{ours}/second", f"{theirs}.conv2", inner, config.growth, 3)
            width += config.growth
        if number + 1 < len(config.depths):
            ours, theirs = f"transitions/{number}", f"features.transition{number + 1}"
            table |= norm_places(f"{ours}/norm", f"{theirs}.norm", width)
            table |= convolution_place(f"{ours}/convolution", f"{theirs}.conv", width, width // 2, 1)
    table |= norm_places("final_norm", "features.norm5", config.feature_dim)
    return table | linear_places(config.num_classes, config.feature_dim, "classifier")


def _check(tensors: Mapping[str, StoredTensor], places: Mapping[str, Place], sizes: Mapping[str, int], file: Path):
    wanted = {place.name: place.stored_shape(sizes) for place in places.values()}
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise UserError(f"{file}: tensor {missing[0]} is missing ({len(missing)} of {len(wanted)} are)")
    unexpected = [name for name in tensors if name not in wanted and not name.endswith(f".{COUNTER}")]
    if unexpected:
        raise UserError(f"{file}: unexpected tensor {unexpected[0]} ({len(unexpected)} in all): this is another model")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise UserError(f"{file}: tensor {name} has shape {tensors[name].shape}; this architecture has {shape}")
        if tensors[name].dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"{file}: tensor {name} is {tensors[name].dtype}; supported: F32, BF16, F16")
