"""Size on disk by the formula, and the header of the file in addition, of models that nobody has weights of."""

import functools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from experiments.quantisation.kinds import EXECUTION, PACKINGS
from zoo.interop import Packing, packed_bytes
from zoo.interop.parameters import abstract_model, parameter_name
from zoo.interop.quantised import packed_structure
from zoo.models import preset

PRESETS = ("gemini-nano-1", "gemini-nano-2")


@dataclass(frozen=True)
class Size:
    """A preset's packed weights, in one file."""

    model: str
    """Preset."""
    kind: str
    """Kind of weights."""
    parameters: int
    """Of the model."""
    formula: int
    """`packed_bytes`."""
    header: int
    """Bytes of the file's header, made from the names and shapes of its tensors."""


@functools.cache
def _shapes(config: Any) -> tuple[tuple[str, Any], ...]:
    """Name, and shape and dtype, of every parameter."""
    leaves = nnx.to_flat_state(abstract_model(config, EXECUTION)[1])
    return tuple((parameter_name(path), leaf.get_value()) for path, leaf in leaves)


def packed_tensors(config: Any, packing: Packing) -> list[tuple[str, tuple[int, ...], np.dtype]]:
    """(name, shape, dtype) of every tensor of a packed model."""
    found = []
    for name, leaf in _shapes(config):
        structure = packed_structure(name, leaf.shape, packing)
        parts = {"": leaf} if structure is None else {"/packed": structure.packed, "/scales": structure.scales}
        found += [(name + part, tuple(struct.shape), np.dtype(struct.dtype)) for part, struct in parts.items()]
    return found


def header_bytes(config: Any, packing: Packing) -> int:
    """Length of the JSON in front of the tensors and of the number in front of it, as `zoo.export` writes them."""
    names = {"float32": "F32", "float16": "F16", "uint8": "U8", "int8": "I8"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape, dtype in sorted(packed_tensors(config, packing), key=lambda entry: -entry[2].itemsize):
        begin, end = end, end + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": names[dtype.name], "shape": list(shape), "data_offsets": [begin, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + -length % 8


def preset_sizes() -> list[Size]:
    """Nano-1 and Nano-2 with every kind of packed weights of another size whose groups divide their widths."""
    return [
        Size(name, kind, config.num_parameters(), packed_bytes(config, packing), header_bytes(config, packing))
        for name, config in ((name, preset(name)) for name in PRESETS)
        for kind, packing in PACKINGS.items()
        if packing.search and config.hidden_dim % packing.group == 0
    ]
