"""Adapters in and out: folders of our own, LoRA folders of peft, and run directories of `zoo.train --peft.method ...`.

ours  adapter.json (method, base, its fingerprint) and adapter.safetensors, by our per-layer names
peft  adapter_config.json and adapter_model.safetensors; an adapter.json beside them names the base's fingerprint
run   the checkpoints hold the adapter's parameters alone; base.json names the base
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax import nnx

from zoo.errors import UserError
from zoo.interop import peft_names
from zoo.interop.architectures import architecture_of, find_architecture
from zoo.interop.config_fields import read_json_object
from zoo.interop.new_folder import new_folder
from zoo.interop.parameters import abstract_model
from zoo.interop.places import EXPERT, read_parameter, read_stored, stored_sources
from zoo.interop.runs import saved_execution
from zoo.interop.safetensors_folder import SafetensorsFolder
from zoo.interop.safetensors_writer import TensorToWrite, write_file
from zoo.models import config_from_dict, config_to_dict
from zoo.nn import lora
from zoo.peft import Adapter, PeftConfig, adapted_model, check_adapter, first_parameters, sparse
from zoo.peft import adapter as host
from zoo.training.checkpoints import restore_params
from zoo.training.run_directory import is_checkpoint_dir, is_run_dir, read_run

DESCRIPTION, WEIGHTS = "adapter.json", "adapter.safetensors"
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_FILE, MASK_FILE = "base.json", "mask.safetensors"

_VERSION = 1


def is_adapter_run(path: str | Path) -> bool:
    """Whether a path is a run directory of `zoo.train`, or a checkpoint of one, that holds an adapter alone."""
    if not (is_run_dir(path) or is_checkpoint_dir(path)):
        return False
    return read_run(path).config.get("peft", {}).get("method", "none") != "none"


def base_of(path: str | Path) -> str:
    """The checkpoint beside which a run trained its adapter. Raises `UserError` if it is not there."""
    info = read_run(path)
    base = info.config.get("init_from")
    if not base or not Path(base).exists():
        raise UserError(
            f"{path} holds an adapter for {base}, which is not there: load the base with it (adapter=, --adapter)"
        )
    return str(base)


def load_adapter(path: str | Path, model: Any) -> Adapter:
    """An adapter for this base model, from any of the three kinds of folders.

    Raises:
        UserError: there is none, it is damaged, or not for this model (`zoo.peft.check_adapter`).
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    if is_adapter_run(path):
        adapter = read_adapter_run(path)[0]
    elif (path / PEFT_CONFIG).is_file():
        adapter = _from_peft(path, model.config)
    elif (path / DESCRIPTION).is_file():
        adapter = _from_folder(path)
    else:
        raise UserError(
            f"{path} holds no adapter: looked for {PEFT_CONFIG} (peft), {DESCRIPTION} (ours) and a run of "
            "zoo.train --peft.method"
        )
    known = adapter.base_sha256 is not None
    fingerprint = host.base_fingerprint(model) if known else None
    check_adapter(adapter, model, config_to_dict(model.config)["architecture"], fingerprint)
    return adapter


def save_adapter(adapter: Adapter, folder: str | Path, *, config: Any, overwrite: bool = False) -> None:
    """Writes an adapter as a folder of our own: any method, any model. `config` is the base's."""
    values = {name: np.ascontiguousarray(value) for name, value in adapter.values.items()}
    size = sum(value.nbytes for value in values.values())
    with new_folder(Path(folder), num_bytes=size, overwrite=overwrite) as temporary:
        _write_json(temporary / DESCRIPTION, _description(adapter, config))
        safetensors.numpy.save_file(values, temporary / WEIGHTS)


def save_peft(adapter: Adapter, folder: str | Path, *, config: Any, overwrite: bool = False) -> None:
    """Writes a LoRA as a folder that the library peft opens.

    Raises:
        UserError: it is no LoRA, the model has no public counterpart, or a weight is no linear layer there.
    """
    if adapter.config.method != "lora":
        raise UserError(
            f"{adapter.source} is a {adapter.config.method} adapter: peft's format is for lora here, use adapter"
        )
    architecture = architecture_of(config)
    names = {name.removesuffix(lora.A) for name in adapter.values if name.endswith(lora.A)}
    places, sizes = peft_names.stored_factors(config, architecture, adapter.config.rank, names)
    sources = stored_sources(places, sizes)

    def read(stored: str) -> np.ndarray:
        def ours(name: str, expert: int | None) -> np.ndarray:
            value = adapter.values[name]
            return value if expert is None else value[expert]

        return np.ascontiguousarray(read_stored(sources[stored], sizes, ours), np.float32)

    tensors = [
        TensorToWrite(name, source.place.stored_shape(sizes), np.dtype(np.float32)) for name, source in sources.items()
    ]
    targets = peft_names.target_modules(config, architecture, names)
    written = adapter.config
    if written.rslora and any(EXPERT in place.name for place in places.values()):
        # peft over transformers 5 joins the factors of gate and up, and scales by the root of both ranks together.
        written = dataclasses.replace(written, alpha=written.scale * written.rank, rslora=False)
    values = peft_names.config_to_peft(written, targets, adapter.base, is_decoder=architecture.is_decoder)
    with new_folder(Path(folder), num_bytes=sum(t.num_bytes for t in tensors), overwrite=overwrite) as temporary:
        _write_json(temporary / PEFT_CONFIG, values)
        _write_json(temporary / DESCRIPTION, _description(adapter, config))
        write_file(temporary / PEFT_WEIGHTS, tensors, read)


def read_mask(file: Path, model: Any) -> sparse.Mask:
    """The entries that a sparse adapter trains, in the layout of this model. Raises `UserError` for a damaged file."""
    try:
        stored = safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} is damaged: {error}") from None
    return {path: index for path, _, index in sparse.from_host(model, stored)}


def read_adapter_run(path: str | Path) -> tuple[Adapter, Any]:
    """(adapter, configuration of its base) of a run. Raises `UserError` if it is damaged."""
    info = read_run(path)
    config = _peft_config(info.config["peft"], info.path / "run.json")
    base_config, execution = config_from_dict(info.model_dict), saved_execution(info)
    graphdef, abstract = abstract_model(base_config, execution)
    mask = None
    if config.method == "sparse":
        mask = read_mask(info.path / MASK_FILE, nnx.merge(graphdef, abstract))
    adapted = adapted_model(nnx.merge(graphdef, abstract), config, mask=mask)
    params = restore_params(path, nnx.eval_shape(lambda: first_parameters(adapted, 0)[0]))
    if config.method == "sparse":
        values = sparse.to_host(nnx.merge(graphdef, abstract), params, adapted.mask)
    else:
        values = host.to_host(config, adapted.declared, params)
    record = info.path / BASE_FILE
    base = read_json_object(record) if record.is_file() else {}
    adapter = Adapter(config, values, str(path), info.model_dict, base.get("path"), base.get("sha256"))
    return adapter, base_config


def _from_folder(path: Path) -> Adapter:
    described = _read_description(path)
    stored = SafetensorsFolder(path, file=WEIGHTS)
    values = {name: stored.read(name) for name in stored.tensors}
    values = {name: v if v.dtype.kind == "i" else v.astype(np.float32) for name, v in values.items()}
    return Adapter(values=values, source=str(path), **described)


def _from_peft(path: Path, model: Any) -> Adapter:
    where = path / PEFT_CONFIG
    described = read_json_object(where)
    config = peft_names.config_from_peft(described, str(where))
    architecture = find_architecture(model)
    if architecture is None:
        kind = type(model).__name__.removesuffix("Config")
        raise UserError(f"{path} is an adapter for another base model: transformers has no {kind}")
    names = peft_names.targeted(model, architecture, described, str(where))
    places, sizes = peft_names.stored_factors(model, architecture, config.rank, set(names))
    if not (path / PEFT_WEIGHTS).is_file():
        raise UserError(f"{path} holds no {PEFT_WEIGHTS}: save the adapter as safetensors")
    stored = SafetensorsFolder(path, file=PEFT_WEIGHTS)
    wanted = peft_names.expected_tensors(places, sizes)
    for kind, found in (
        ("lacks", wanted.keys() - stored.tensors.keys()),
        ("has", stored.tensors.keys() - wanted.keys()),
    ):
        if found:
            why = (
                "which target_modules asks for"
                if kind == "lacks"
                else "which target_modules and this model do not ask for"
            )
            raise UserError(f"{path} {kind} tensor {min(found)} ({len(found)} in all), {why}")
    for name, shape in wanted.items():
        have = stored.tensors[name].shape
        axis = 0 if ".lora_A." in name else 1
        if len(have) == 2 and have[1 - axis] == shape[1 - axis] and have != shape:
            raise UserError(f"{path}: tensor {name} is of rank {have[axis]}, {PEFT_CONFIG} says r = {config.rank}")
        if have != shape:
            raise UserError(
                f"{path} is an adapter for another base model: tensor {name} has shape {have}, this model needs {shape}"
            )
    values = {name: np.asarray(read_parameter(place, sizes, stored.read), np.float32) for name, place in places.items()}
    extra = (
        _read_description(path)
        if (path / DESCRIPTION).is_file()
        else {"base": described.get("base_model_name_or_path")}
    )
    config = dataclasses.replace(config, target=tuple(names))
    return Adapter(values=values, source=str(path), **(extra | {"config": config}))


def _description(adapter: Adapter, config: Any) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "peft": dataclasses.asdict(adapter.config),
        "model": config_to_dict(config),
        "base": adapter.base,
        "base_sha256": adapter.base_sha256,
    }


def _read_description(path: Path) -> dict[str, Any]:
    file = path / DESCRIPTION
    described = read_json_object(file)
    if described.get("version") != _VERSION or not isinstance(described.get("peft"), dict):
        raise UserError(f"{file} is no description of an adapter of version {_VERSION}")
    config = _peft_config(described["peft"], file)
    return {"config": config, **{name: described.get(name) for name in ("model", "base", "base_sha256")}}


def _peft_config(values: dict[str, Any], where: Path) -> PeftConfig:
    try:
        return PeftConfig(**values)
    except TypeError as error:
        raise UserError(f"{where}: its adapter is not understood: {error}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
