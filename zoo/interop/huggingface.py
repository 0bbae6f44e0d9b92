"""Hugging Face model folders: `config.json` and safetensors, in and out, one tensor in memory at a time."""

import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from zoo.data import Tokenizer
from zoo.errors import UserError
from zoo.interop.architecture import Architecture
from zoo.interop.architectures import architecture_of, architecture_of_json
from zoo.interop.config_fields import read_json_object
from zoo.interop.new_folder import new_folder
from zoo.interop.parameters import OnTensor, ParamDtype, ParameterReader, build_model
from zoo.interop.places import Place, Source, read_parameter, read_stored, stored_sources
from zoo.interop.safetensors_folder import SafetensorsFolder
from zoo.interop.safetensors_writer import TensorToWrite, write_folder
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
    "vocab.txt",
)
"""Files beside the weights that an export takes along unchanged."""

EMBEDDING = "embedder/embedding"
"""Our name of the table of a vocabulary, whose rows may be padded on disk."""

MAX_SHARD_BYTES = 5_000_000_000

_LAYER_NUMBER = re.compile(r"(?:[a-z_.]*\.)?(?:layers?|conformer)\.(\d+)\.")


def load_huggingface(
    folder: str | Path,
    *,
    execution: Execution | None = None,
    param_dtype: ParamDtype | None = None,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    on_tensor: OnTensor | None = None,
) -> Any:
    """The model of a Hugging Face folder, by the table of `zoo.interop.architectures`; its architecture is `.config`.

    Every tensor is checked, converted and put on its devices (with `mesh`: onto its shards) before the next one is
    read, so the host holds one tensor at a time besides what its own devices hold (of experts that are stored one by
    one, those of one parameter). Gemma's 256,000 rows of an embedding and 256,128 are the same model: rows above the
    configured vocabulary are left out, missing ones are zero (their logit is 0).

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
    config = read_config(folder)
    architecture = architecture_of(config)
    stored = SafetensorsFolder(folder, architecture.old_endings)
    places, sizes = architecture.places(config), architecture.axis_sizes(config)
    _check_tensors(stored, architecture, stored_sources(places, sizes), sizes, places)
    _check_repeats(stored, architecture)

    def read(name: str) -> np.ndarray:
        def tensor(stored_name: str) -> np.ndarray:
            array = stored.read(stored_name)
            return fit_rows(array, config.vocab_size) if name == EMBEDDING else array

        return read_parameter(places[name], sizes, tensor)

    if EMBEDDING in places and stored.tensors[places[EMBEDDING].name].shape[0] != config.vocab_size:
        rows = stored.tensors[places[EMBEDDING].name].shape[0]
        logger.warning("%s: embedding has %d rows, config.json %d: fitted", folder, rows, config.vocab_size)
    execution = execution or Execution()
    return build_model(
        config,
        execution,
        read,
        order=list(places),
        param_dtype=param_dtype or execution.param_dtype,
        mesh=mesh,
        rules=rules,
        on_tensor=on_tensor,
    )


def read_config(folder: Path) -> Any:
    """The architecture in `config.json`, with the stop tokens of `generation_config.json` where that names any."""
    path = folder / "config.json"
    values = read_json_object(path)
    architecture = architecture_of_json(values, str(path))
    config = architecture.config_from(values, str(path))
    generation = folder / "generation_config.json"
    if not architecture.is_decoder or not generation.is_file():
        return config
    stop = read_json_object(generation).get("eos_token_id")
    ids = stop if isinstance(stop, list) else [] if stop is None else [stop]
    if not all(isinstance(i, int) and 0 <= i < config.vocab_size for i in ids):
        raise UserError(f"{generation}: eos_token_id = {json.dumps(stop)} is not a token id below {config.vocab_size}")
    return replace(config, eos_token_ids=tuple(ids)) if ids else config


def save_huggingface(
    model: Any,
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
        model: one with a public counterpart, with scanned or unrolled layers, on one host's devices.
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
    if max_shard_bytes < 1:
        raise UserError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    config, architecture = model.config, architecture_of(model.config)
    sizes, reader = architecture.axis_sizes(config), ParameterReader(model)
    sources = stored_sources(architecture.places(config), sizes)

    def target(source: Source) -> np.dtype:
        return np.dtype(dtype) if dtype else reader.dtype(source.names[0])

    counters = [TensorToWrite(name, (), np.dtype(np.int64)) for name in architecture.counters(config)]

    def read(stored_name: str) -> np.ndarray:
        if stored_name not in sources:
            return np.zeros((), np.int64)
        source = sources[stored_name]
        array = read_stored(source, sizes, reader.read)
        if on_tensor:
            on_tensor(stored_name)
        return array.astype(target(source), copy=False)

    tensors = [TensorToWrite(name, one.place.stored_shape(sizes), target(one)) for name, one in sources.items()]
    values = architecture.config_to(config, tensors[0].dtype.name)
    with new_folder(folder, num_bytes=sum(t.num_bytes for t in tensors), overwrite=overwrite) as temporary:
        _write_json(temporary / "config.json", values)
        if architecture.is_decoder:
            kept = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")
            _write_json(temporary / "generation_config.json", {key: values[key] for key in kept})
        if tokenizer is not None:
            tokenizer.save(temporary)
            _describe_tokenizer(tokenizer, temporary)
        for file in carried:
            shutil.copyfile(file, temporary / file.name)
        files = write_folder(temporary, [*tensors, *counters], read, max_shard_bytes)
    return [folder / file.name for file in files]


def carried_files(folder: Path) -> list[Path]:
    """The tokenizer and generation files of a Hugging Face folder."""
    return [folder / name for name in CARRIED_FILES if (folder / name).is_file()]


def _check_tensors(
    stored: SafetensorsFolder,
    architecture: Architecture,
    sources: Mapping[str, Source],
    sizes: Mapping[str, int],
    places: Mapping[str, Place],
) -> None:
    """Compares names, shapes and dtypes with the configuration."""
    where = stored.folder
    _check_layers(stored, sources)
    missing = [name for name in sources if name not in stored.tensors]
    if missing:
        raise UserError(f"{where}: tensor {missing[0]} is missing ({len(missing)} of {len(sources)} are)")
    known = {*sources, *architecture.repeats}
    unexpected = [
        name
        for name in stored.tensors
        if name not in known and not any(re.fullmatch(pattern, name) for pattern in architecture.ignored)
    ]
    if unexpected:
        raise UserError(f"{where}: unexpected tensor {unexpected[0]} ({len(unexpected)} in all): this is another model")
    embedding = places[EMBEDDING].name if EMBEDDING in places else None
    for name, source in sources.items():
        tensor, shape = stored.tensors[name], source.place.stored_shape(sizes)
        if tensor.dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"{tensor.file}: tensor {name} is {tensor.dtype}; supported: F32, BF16, F16")
        padded = name == embedding and {tensor.shape[:1], shape[:1]} <= {(rows,) for rows in architecture.padded_rows}
        if tensor.shape != shape and not (padded and tensor.shape[1:] == shape[1:]):
            raise UserError(f"{tensor.file}: tensor {name} has shape {tensor.shape}, config.json asks for {shape}")


def _check_layers(stored: SafetensorsFolder, sources: Mapping[str, Source]) -> None:
    """Says so in one line where the weights have another number of layers."""

    def layers(names: Iterable[str]) -> int:
        return max((int(match[1]) + 1 for name in names if (match := _LAYER_NUMBER.match(name))), default=0)

    found, wanted = layers(stored.tensors), layers(sources)
    if found and found != wanted:
        raise UserError(f"{stored.folder}: weights of {found} layers, config.json has num_hidden_layers = {wanted}")


def _check_repeats(stored: SafetensorsFolder, architecture: Architecture) -> None:
    """A second copy of a tensor with which it is tied must be one."""
    for name, original in architecture.repeats.items():
        if name not in stored.tensors:
            continue
        copy, tied = stored.tensors[name], stored.tensors[original]
        same = (copy.shape, copy.dtype) == (tied.shape, tied.dtype)
        if not same or not np.array_equal(stored.read(name), stored.read(original)):
            raise UserError(f"{copy.file}: {name} differs from {original}; an untied head is not supported")


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
