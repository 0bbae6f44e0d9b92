"""Hugging Face model folders: `config.json` and safetensors, in and out, one tensor in memory at a time."""

import json
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from zoo.data import Tokenizer
from zoo.errors import UserError
from zoo.interop.config_fields import read_json_object
from zoo.interop.gemma2_names import HUGGINGFACE, HUGGINGFACE_HEAD, axis_sizes, parameter_names, place
from zoo.interop.huggingface_config import config_from_huggingface, config_to_huggingface
from zoo.interop.new_folder import new_folder
from zoo.interop.parameters import OnTensor, ParamDtype, ParameterReader, build_model
from zoo.interop.safetensors_folder import SafetensorsFolder
from zoo.interop.safetensors_writer import TensorToWrite, write_folder
from zoo.models import Gemma2, Gemma2Config
from zoo.nn import Execution
from zoo.parallel import ShardingRules

logger = logging.getLogger(__name__)

CARRIED_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""Files beside the weights that an export takes along unchanged."""

PADDED_ROWS = frozenset({256_000, 256_128})
"""Gemma's tokenizer has 256,000 pieces; google-deepmind/gemma pads the embedding to 256,128 rows."""

MAX_SHARD_BYTES = 5_000_000_000


def load_huggingface(
    folder: str | Path,
    *,
    execution: Execution | None = None,
    param_dtype: ParamDtype | None = None,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    on_tensor: OnTensor | None = None,
) -> Gemma2:
    """The model of a Hugging Face folder; its architecture is `.config`.

    Every tensor is checked, converted and put on its devices (with `mesh`: onto its shards) before the next one is
    read, so the host holds one tensor at a time besides what its own devices hold. 256,000 rows of an embedding and
    256,128 are the same model: rows above the configured vocabulary are left out, missing ones are zero (their logit
    is 0).

    Args:
        folder: `config.json` and `model.safetensors`, or shards with `model.safetensors.index.json`.
        execution: how the model computes; default float32, layers unrolled.
        param_dtype: dtype of the parameters in memory; default `execution.param_dtype`.
        mesh: devices to spread the parameters over.
        rules: how to spread them.
        on_tensor: progress.

    Raises:
        UserError: an unsupported or malformed configuration; a missing, unexpected, misshapen or damaged tensor.
    """
    folder = Path(folder)
    execution = execution or Execution()
    config = read_config(folder)
    stored = SafetensorsFolder(folder)
    rows = _check_tensors(stored, config)
    sizes = axis_sizes(config)

    def read(name: str) -> np.ndarray:
        stored_name, where = place(HUGGINGFACE, name)
        tensor = stored.read(stored_name)
        if name == "embedder/embedding":
            tensor = fit_rows(tensor, config.vocab_size)
        return where.layout.to_ours(tensor, sizes)

    _check_head(stored)
    if rows != config.vocab_size:
        logger.warning("%s: embedding has %d rows, config.json %d: fitted", folder, rows, config.vocab_size)
    return build_model(
        config,
        execution,
        read,
        order=parameter_names(config),
        param_dtype=param_dtype or execution.param_dtype,
        mesh=mesh,
        rules=rules,
        on_tensor=on_tensor,
    )


def read_config(folder: Path) -> Gemma2Config:
    """The architecture in `config.json`, with the stop tokens of `generation_config.json` where that names any."""
    config = config_from_huggingface(read_json_object(folder / "config.json"), str(folder / "config.json"))
    generation = folder / "generation_config.json"
    stop = read_json_object(generation).get("eos_token_id") if generation.is_file() else None
    ids = stop if isinstance(stop, list) else [] if stop is None else [stop]
    if not all(isinstance(i, int) and 0 <= i < config.vocab_size for i in ids):
        raise UserError(f"{generation}: eos_token_id = {json.dumps(stop)} is not a token id below {config.vocab_size}")
    return replace(config, eos_token_ids=tuple(ids)) if ids else config


def save_huggingface(
    model: Gemma2,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    carried: Sequence[Path] = (),
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    on_tensor: OnTensor | None = None,
) -> list[Path]:
    """Writes a model as a folder that transformers opens strictly, and returns the files of weights.

    Written tensor by tensor into a temporary folder that takes its place when it is complete. Values are stored in
    the dtype they have in the model, or cast to `dtype`; saving what was loaded with ``param_dtype="stored"`` gives
    back every bit.

    Args:
        model: a Gemma 2 with scanned or unrolled layers, on one host's devices.
        folder: must not exist or be empty; with `overwrite` it may hold an earlier export.
        tokenizer: written along.
        carried: files to copy along (`CARRIED_FILES` of the folder that the model came from).
        dtype: "float32", "bfloat16" or None.
        max_shard_bytes: largest size of one file of weights.
        overwrite: replace an earlier export.
        on_tensor: progress.

    Raises:
        UserError: the folder cannot be written or the architecture cannot be expressed; nothing is left behind.
    """
    folder = Path(folder)
    config, sizes, reader = model.config, axis_sizes(model.config), ParameterReader(model)
    if max_shard_bytes < 1:
        raise UserError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    ours = {place(HUGGINGFACE, name)[0]: name for name in parameter_names(config)}

    def read(stored_name: str) -> np.ndarray:
        name = ours[stored_name]
        array = place(HUGGINGFACE, name)[1].layout.to_stored(reader.read(name), sizes)
        if on_tensor:
            on_tensor(stored_name)
        return array.astype(target(name), copy=False)

    def target(name: str) -> np.dtype:
        return np.dtype(dtype) if dtype else reader.dtype(name)

    tensors = [
        TensorToWrite(stored_name, place(HUGGINGFACE, name)[1].layout.stored_shape(sizes), target(name))
        for stored_name, name in ours.items()
    ]
    values = config_to_huggingface(config, target("embedder/embedding").name)
    with new_folder(folder, num_bytes=sum(t.num_bytes for t in tensors), overwrite=overwrite) as temporary:
        _write_json(temporary / "config.json", values)
        _write_json(
            temporary / "generation_config.json",
            {key: values[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")},
        )
        if tokenizer is not None:
            tokenizer.save(temporary)
            _describe_tokenizer(tokenizer, temporary)
        for file in carried:
            shutil.copyfile(file, temporary / file.name)
        files = write_folder(temporary, tensors, read, max_shard_bytes)
    return [folder / file.name for file in files]


def carried_files(folder: Path) -> list[Path]:
    """The tokenizer and generation files of a Hugging Face folder."""
    return [folder / name for name in CARRIED_FILES if (folder / name).is_file()]


def _check_tensors(stored: SafetensorsFolder, config: Gemma2Config) -> int:
    """Compares names, shapes and dtypes with the configuration; returns the stored rows of the embedding."""
    sizes, where = axis_sizes(config), stored.folder
    layers = {int(match[1]) for name in stored.tensors if (match := re.match(r"model\.layers\.(\d+)\.", name))}
    if layers and max(layers) + 1 != config.num_layers:
        raise UserError(
            f"{where}: weights of {max(layers) + 1} layers, config.json has num_hidden_layers = {config.num_layers}"
        )
    places = dict(place(HUGGINGFACE, name) for name in parameter_names(config))
    missing = [name for name in places if name not in stored.tensors]
    if missing:
        raise UserError(f"{where}: tensor {missing[0]} is missing ({len(missing)} of {len(places)} are)")
    unexpected = [name for name in stored.tensors if name not in places and name != HUGGINGFACE_HEAD]
    if unexpected:
        raise UserError(f"{where}: unexpected tensor {unexpected[0]} ({len(unexpected)} in all): this is another model")
    rows = config.vocab_size
    for name, entry in places.items():
        tensor, shape = stored.tensors[name], entry.layout.stored_shape(sizes)
        if tensor.dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"{tensor.file}: tensor {name} is {tensor.dtype}; supported: F32, BF16, F16")
        if (
            entry.layout.equation == "V D -> V D"
            and tensor.shape[1:] == shape[1:]
            and {tensor.shape[0], rows} <= PADDED_ROWS
        ):
            rows = tensor.shape[0]
        elif tensor.shape != shape:
            raise UserError(f"{tensor.file}: tensor {name} has shape {tensor.shape}, config.json asks for {shape}")
    return rows


def _check_head(stored: SafetensorsFolder) -> None:
    """An output head on disk is Gemma 2's only if it repeats the embedding, with which it is tied."""
    if HUGGINGFACE_HEAD not in stored.tensors:
        return
    embedding = HUGGINGFACE["embedder/embedding"].name
    head, tied = stored.tensors[HUGGINGFACE_HEAD], stored.tensors[embedding]
    same = (head.shape, head.dtype) == (tied.shape, tied.dtype)
    if not same or not np.array_equal(stored.read(HUGGINGFACE_HEAD), stored.read(embedding)):
        raise UserError(f"{head.file}: {HUGGINGFACE_HEAD} differs from {embedding}; an untied head is not supported")


def fit_rows(embedding: np.ndarray, vocab_size: int) -> np.ndarray:
    """The first `vocab_size` rows, zeros where there are fewer."""
    if len(embedding) >= vocab_size:
        return embedding[:vocab_size]
    return np.concatenate([embedding, np.zeros((vocab_size - len(embedding), embedding.shape[1]), embedding.dtype)])


def _describe_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer_config.json for a bare tokenizer.model with Gemma's pieces; without it transformers adds no BOS."""
    path = folder / "tokenizer_config.json"
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    ids = [tokenizer.id_of(name) for name in names.values()]
    if path.exists() or ids != [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]:
        return
    flags = {"add_bos_token": True, "add_eos_token": False}
    _write_json(path, {"tokenizer_class": "GemmaTokenizer", "unk_token": "<unk>", **names, **flags})


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
