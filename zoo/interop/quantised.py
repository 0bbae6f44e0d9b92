"""Models with packed weights, in memory and in folders of our own: `quantised.json` and safetensors.

The matrices of attention and feed-forward layers, those of experts one by one, and the embedding are packed
(`zoo.nn.packed`); norms, biases, routers and encoders of media stay as they are. A packed parameter NAME is stored as
NAME/packed (uint8, int8) and NAME/scales.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.data import Tokenizer
from zoo.errors import UserError
from zoo.interop.config_fields import read_json_object
from zoo.interop.new_folder import new_folder
from zoo.interop.parameters import OnTensor, ParamDtype, abstract_model, is_scanned, layer_names, layer_units
from zoo.interop.safetensors_folder import SafetensorsFolder
from zoo.interop.safetensors_writer import TensorToWrite, write_folder
from zoo.models import config_from_dict, config_to_dict
from zoo.models.gemini import GeminiConfig
from zoo.models.gemma2 import Gemma2Config
from zoo.models.sparse_decoder import SparseDecoderConfig
from zoo.nn import Execution
from zoo.nn.packed import PackedWeight, packed_shapes
from zoo.nn.quantise import ScaleDtype, quantise

DESCRIPTION = "quantised.json"
"""The file by which such a folder is known."""

_VERSION = 1
_MATRIX = re.compile(r"layers/\d+/(?:attention/(?:query|key|value|output)|mlp/(?:shared/)?(?:gate|up|down))")
_TABLE = re.compile(r"embedder/(?:embedding|head)")

Value = np.ndarray | PackedWeight
"""A parameter on the host; a packed one holds numpy arrays."""


@dataclass(frozen=True)
class Packing:
    """How the weights of a model are packed."""

    bits: Literal[4, 8] = 4
    """Of the matrices of attention and feed-forward layers."""
    embedding_bits: Literal[4, 8] | None = None
    """Of the embedding and the output head; None = as `bits`."""
    group: int = 32
    """Consecutive elements that share a scale. GGUF's 4- and 8-bit blocks have 32."""
    scale_dtype: ScaleDtype = "float16"
    """Dtype of the scales. GGUF's is float16."""
    search: bool = True
    """4 bits: look for the scale with the smallest error, instead of the one at which the largest element fits."""

    def bits_of(self, name: str) -> int | None:
        """Bits of a parameter, by its per-layer name; None = it is not packed."""
        if _TABLE.fullmatch(name):
            return self.embedding_bits or self.bits
        return self.bits if _MATRIX.fullmatch(name) else None


def packed_bytes(config: Any, packing: Packing = Packing(), rest_dtype: str = "float32") -> int:
    """Size of a packed model: b / 8 + s / g bytes per weight, of b bits in groups of g with scales of s bytes, and what
    is not packed in `rest_dtype`. On disk the header of the file comes in addition (some 200 bytes per parameter).

    Raises `UserError` for a model that is not packed here.
    """
    _check_family(config)
    experts = getattr(config, "experts", None)
    sparse = 0 if experts is None else config.num_sparse_layers
    attention = 2 * config.embed_dim * config.head_dim * (config.num_heads + config.num_kv_heads)
    matrices = config.num_layers * attention
    if experts is not None:
        width = experts.num_experts * experts.hidden_dim + experts.shared_hidden_dim
        matrices += sparse * 3 * config.embed_dim * width
    if sparse < config.num_layers:
        matrices += (config.num_layers - sparse) * 3 * config.embed_dim * config.hidden_dim
    has_head = isinstance(config, SparseDecoderConfig)  # else the embedding is the head as well
    tables = (1 + has_head) * config.vocab_size * config.embed_dim
    scale = jnp.dtype(packing.scale_dtype).itemsize / packing.group
    packed = matrices * (packing.bits / 8 + scale)
    packed += tables * ((packing.embedding_bits or packing.bits) / 8 + scale)
    return round(packed + (config.num_parameters() - matrices - tables) * jnp.dtype(rest_dtype).itemsize)


def packed_model(model: Any, packing: Packing, on_tensor: OnTensor | None = None) -> Any:
    """The model with packed weights in place of arrays. Raises `UserError` if it has what is not packed here."""
    values = dict(packed_values(model, packing, on_tensor))
    return _build(model.config, model.execution, values.__getitem__, "stored")


def packed_values(
    model: Any, packing: Packing | None, on_tensor: OnTensor | None = None
) -> Iterator[tuple[str, Value]]:
    """Every parameter by its per-layer name, packed where `packing` says so. What is packed already stays as it is, bit
    for bit. Raises `UserError` for models that are not packed here, and for axes that groups do not divide."""
    if packing is not None:
        _check_family(model.config)
    state = nnx.state(model)
    units = layer_units(state)
    for path, leaf in nnx.to_flat_state(state):
        for i, name in enumerate(layer_names(path, leaf, units)):
            value = leaf.get_value()[i if is_scanned(leaf) else ...]
            value = jax.tree.map(np.asarray, value)
            bits = None if packing is None else packing.bits_of(name)
            if packing is not None and bits is not None and not isinstance(value, PackedWeight):
                value = _pack(name, value, bits, packing)
            if on_tensor:
                on_tensor(name)
            yield name, value


def _pack(name: str, value: np.ndarray, bits: int, packing: Packing) -> PackedWeight:
    lead, contracted, _, is_table = _axes(name, value.shape)
    try:
        parts = [
            quantise(
                part,
                bits,
                num_contracted=len(contracted),
                is_table=is_table,
                group=packing.group,
                scale_dtype=packing.scale_dtype,
                search=packing.search,
            )
            for part in (value if lead else [value])
        ]
    except UserError as error:
        raise UserError(f"{name} {value.shape}: {error}") from None
    return jax.tree.map(lambda *arrays: np.stack(arrays), *parts) if lead else parts[0]


def _axes(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]:
    """(experts, sizes that a product contracts, sizes of its result, whether it is a table) of a parameter's axes."""
    if _TABLE.fullmatch(name):
        return (), shape[1:], shape[:1], True
    if "/mlp/" in name:
        return shape[:-2], shape[-2:-1], shape[-1:], False
    split = 2 if name.endswith("attention/output") else 1
    return (), shape[:split], shape[split:], False


def packed_structure(name: str, shape: tuple[int, ...], packing: Packing) -> PackedWeight | None:
    """Shapes and dtypes (`jax.ShapeDtypeStruct`) of a parameter when it is packed, by its per-layer name and its shape;
    None if it is not packed. Raises `UserError` for axes that groups do not divide."""
    bits = packing.bits_of(name)
    if bits is None:
        return None
    lead, contracted, out, is_table = _axes(name, shape)
    rows, scales = packed_shapes(math.prod(out), math.prod(contracted), bits, packing.group)
    return PackedWeight(
        jax.ShapeDtypeStruct((*lead, *rows), jnp.uint8 if bits == 4 else jnp.int8),  # type: ignore[arg-type]
        jax.ShapeDtypeStruct((*lead, *scales), packing.scale_dtype),  # type: ignore[arg-type]
        bits,
        packing.group,
        contracted,
        out,
        is_table,
    )


def _check_family(config: Any) -> None:
    if not isinstance(config, Gemma2Config | GeminiConfig | SparseDecoderConfig):
        family = type(config).__name__.removesuffix("Config")
        raise UserError(f"weights of a {family} are not packed: those of decoders are")


def is_packed(model: Any) -> bool:
    """Whether a model holds packed weights."""
    return any(isinstance(leaf.get_value(), PackedWeight) for _, leaf in nnx.to_flat_state(nnx.state(model)))


def save_quantised(
    model: Any,
    folder: str | Path,
    packing: Packing = Packing(),
    *,
    tokenizer: Tokenizer | None = None,
    carried: Sequence[Path] = (),
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    on_tensor: OnTensor | None = None,
) -> None:
    """Packs a model and writes it as a folder that `zoo.load` opens; one that is packed is written as it is.

    Args:
        model: a decoder, dense or sparse, with scanned or unrolled layers.
        folder: must not exist or be empty; with `overwrite` it may hold an earlier export.
        packing: how its weights are packed.
        tokenizer: written along.
        carried: files to copy along.
        dtype: of what is not packed: "float32", "bfloat16" or None for that of the model.
        max_shard_bytes: largest size of one file of weights.
        overwrite: replace an earlier export.
        on_tensor: progress.

    Raises:
        UserError: a model that is no decoder, axes that groups do not divide, a folder that cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    used = packing
    for name, value in packed_values(model, packing, on_tensor):
        if isinstance(value, PackedWeight):
            arrays |= {f"{name}/packed": np.asarray(value.packed), f"{name}/scales": np.asarray(value.scales)}
            used = _as_packed(used, name, value)
        else:
            arrays[name] = value.astype(dtype or value.dtype, copy=False)
    description = {"version": _VERSION, "model": config_to_dict(model.config), "packing": asdict(used)}
    tensors = [TensorToWrite(name, array.shape, array.dtype) for name, array in arrays.items()]
    with new_folder(Path(folder), num_bytes=sum(t.num_bytes for t in tensors), overwrite=overwrite) as temporary:
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(temporary)
        for file in carried:
            shutil.copyfile(file, temporary / file.name)
        write_folder(temporary, tensors, arrays.__getitem__, max_shard_bytes)


def _as_packed(packing: Packing, name: str, value: PackedWeight) -> Packing:
    """The packing of a model that came packed, from one weight after the other."""
    width: dict[str, Any] = {"embedding_bits" if _TABLE.fullmatch(name) else "bits": value.bits}
    return replace(packing, **width, group=value.group, scale_dtype=value.scales.dtype.name)  # type: ignore[arg-type]


def read_quantised(folder: Path) -> tuple[Any, Packing]:
    """(architecture, packing) of a folder. Raises `UserError` if its description is damaged."""
    path = folder / DESCRIPTION
    values = read_json_object(path)
    if values.get("version") != _VERSION:
        raise UserError(f"{path}: version {json.dumps(values.get('version'))} is not known, {_VERSION} is")
    model, packing = values.get("model"), values.get("packing")
    known = {field.name for field in fields(Packing)}
    if not isinstance(model, dict) or not isinstance(packing, dict) or set(packing) != known:
        raise UserError(f"{path} is damaged: it needs the objects 'model' and 'packing' ({', '.join(sorted(known))})")
    try:
        return config_from_dict(model), Packing(**packing)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load_quantised(
    folder: str | Path,
    *,
    execution: Execution | None = None,
    param_dtype: ParamDtype | None = None,
    on_tensor: OnTensor | None = None,
) -> Any:
    """The model of a folder that `save_quantised` wrote; its weights stay packed in memory.

    Args:
        folder: `quantised.json` and safetensors.
        execution: how the model computes; default float32, layers unrolled.
        param_dtype: dtype in memory of what is not packed.
        on_tensor: progress.

    Raises:
        UserError: a missing, misshapen or damaged tensor.
    """
    folder = Path(folder)
    config, packing = read_quantised(folder)
    stored, read_names = SafetensorsFolder(folder), set()

    def tensor(name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> np.ndarray:
        if name not in stored.tensors:
            raise UserError(f"{folder}: tensor {name} is missing")
        array = stored.read(name)
        if array.shape != shape or array.dtype.name not in dtypes:
            raise UserError(f"{folder}: tensor {name} is {array.dtype}{array.shape}, not {dtypes[0]}{shape}")
        read_names.add(name)
        return array

    def read(name: str, shape: tuple[int, ...]) -> Value:
        if on_tensor:
            on_tensor(name)
        expected = packed_structure(name, shape, packing)
        if expected is None:
            return tensor(name, shape, ("float32", "bfloat16", "float16"))
        packed, scales = (
            tensor(f"{name}/{part}", struct.shape, (struct.dtype.name,))
            for part, struct in (("packed", expected.packed), ("scales", expected.scales))
        )
        return replace(expected, packed=packed, scales=scales)  # type: ignore[arg-type]

    execution = execution or Execution()
    shapes = _shapes(config)
    model = _build(config, execution, lambda name: read(name, shapes[name]), param_dtype or execution.param_dtype)
    unexpected = sorted(set(stored.tensors) - read_names)
    if unexpected:
        others = f"{unexpected[0]} ({len(unexpected)} in all)"
        raise UserError(f"{folder}: unexpected tensor {others}: this is another model")
    return model


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters by per-layer name."""
    abstract = abstract_model(config, Execution())[1]
    return {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(abstract)}


def _build(config: Any, execution: Execution, read: Callable[[str], Value], param_dtype: ParamDtype) -> Any:
    graphdef, abstract = abstract_model(config, execution)
    units, made = layer_units(abstract), []
    for path, leaf in nnx.to_flat_state(abstract):
        values = [read(name) for name in layer_names(path, leaf, units)]
        value = jax.tree.map(lambda *parts: np.stack(parts), *values) if is_scanned(leaf) else values[0]
        if param_dtype != "stored" and not isinstance(value, PackedWeight):
            value = value.astype(jnp.dtype(param_dtype))
        made.append((path, leaf.replace(jax.tree.map(_place, value))))
    return nnx.merge(graphdef, nnx.from_flat_state(made))


def _place(array: np.ndarray) -> jax.Array:
    return jax.device_put(array, jax.local_devices()[0], may_alias=False)
