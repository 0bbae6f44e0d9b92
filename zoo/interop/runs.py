"""The zoo's own checkpoints: run directories of `zoo.train`, and the same layout with parameters only as an export."""

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from zoo.data import MediaConfig, Tokenizer
from zoo.errors import UserError
from zoo.interop.new_folder import new_folder
from zoo.interop.parameters import ParamDtype, abstract_model, target_shardings, with_layout
from zoo.models import CoDistilledConfig, config_from_dict, config_to_dict
from zoo.nn import Execution
from zoo.parallel import ShardingRules
from zoo.training.checkpoints import disk_is_full, restore_params
from zoo.training.manifest import write_manifest
from zoo.training.parameters import flatten_with_names, nested_dict
from zoo.training.run_directory import (
    RunInfo,
    checkpoints_dir,
    read_run,
    run_description,
    tokenizer_dir,
    write_json_atomically,
    write_run,
)

Part = Literal["student", "teacher"]
"""Of a pair of online distillation (`zoo.models.CoDistilled`)."""


def load_run(
    path: str | Path,
    *,
    execution: Execution | None = None,
    param_dtype: ParamDtype | None = None,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    part: Part | None = None,
) -> Any:
    """The model of a run directory (newest checkpoint that is whole), its `checkpoints` folder or one STEP folder.

    A model that was saved with scanned layers is loaded unrolled and the other way round, as `execution` asks. Of a
    pair that was trained by online distillation, `part` is loaded, by default the student.

    Raises:
        UserError: there is no whole checkpoint, or its description cannot be read; `part` of a model that is no pair.
    """
    info = read_run(path)
    config, saved = config_from_dict(info.model_dict), saved_execution(info)
    execution = execution or Execution()
    dtype = jnp.dtype(saved.param_dtype if param_dtype == "stored" else param_dtype or execution.param_dtype)
    abstract = abstract_model(config, saved)[1]
    shardings = target_shardings(abstract, mesh, rules)
    wanted = [
        (at, leaf.replace(jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=shardings.get(at))))
        for at, leaf in nnx.to_flat_state(abstract)
    ]
    state = restore_params(path, nnx.from_flat_state(wanted))
    if isinstance(config, CoDistilledConfig):
        state = state[part or "student"]
    config = part_of(config, part, path)
    graphdef, abstract = abstract_model(config, execution)
    if saved.scan_layers != execution.scan_layers:
        state = with_layout(state, abstract)
    if mesh is not None:
        placed = target_shardings(abstract, mesh, rules)
        leaves = [
            (at, leaf.replace(jax.device_put(leaf.get_value(), placed[at]))) for at, leaf in nnx.to_flat_state(state)
        ]
        state = nnx.from_flat_state(leaves)
    return nnx.merge(graphdef, state)


def part_of(config: Any, part: Part | None, path: str | Path) -> Any:
    """The config of what is loaded: of a pair, of one of the two. Raises `UserError` if there is no such part."""
    if isinstance(config, CoDistilledConfig):
        return getattr(config, part or "student")
    if part is not None:
        raise UserError(f"{path} holds one model, not a pair: there is no {part} to load")
    return config


def recorded_media(path: str | Path) -> MediaConfig | None:
    """`data.media` of the recipe that a run, or a checkpoint of it, recorded; None if that took no interleaved
    documents. Fields that an older run does not know have their defaults.

    Raises:
        UserError: it has fields that this version does not know.
    """
    info = read_run(path)
    data = info.config.get("data", {})
    if data.get("format") != "interleaved":
        return None
    try:
        return MediaConfig(**data.get("media", {}))
    except TypeError as error:
        raise UserError(f"{info.path}: its data.media is not understood: {error}") from None


def save_run(
    model: Any,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: str | None = None,
    step: int = 0,
    overwrite: bool = False,
    media: MediaConfig | None = None,
) -> None:
    """Writes a model as a run directory that holds one checkpoint with parameters only: for `zoo.load` and
    ``zoo.train --init-from``, not for resuming.

    Args:
        model: any model of the zoo; its layers are written as it keeps them.
        folder: must not exist or be empty; with `overwrite` it may hold an earlier export.
        tokenizer: written along.
        dtype: "float32" or "bfloat16", default as in the model.
        step: number that the checkpoint gets.
        overwrite: replace an earlier export.
        media: how images, recordings and videos become its tokens (`Loaded.media_config`).
    """
    params = nnx.state(model, nnx.Param)
    if dtype:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    leaves = jax.tree.leaves(params)
    execution = dataclasses.replace(model.execution, param_dtype=_common_dtype(leaves))
    with new_folder(Path(folder), num_bytes=sum(leaf.nbytes for leaf in leaves), overwrite=overwrite) as temporary:
        if tokenizer is not None:
            tokenizer.save(tokenizer_dir(temporary))
        info = RunInfo(
            path=temporary,
            recipe="export",
            model_dict=config_to_dict(model.config),
            execution_dict=dataclasses.asdict(execution),
            tokenizer_fingerprint=None if tokenizer is None else tokenizer.fingerprint,
            tokenizer_dir=None if tokenizer is None else tokenizer_dir(temporary),
            steps=(step,),
            config={} if media is None else {"data": {"format": "interleaved", "media": dataclasses.asdict(media)}},
        )
        write_run(info)
        checkpoint = checkpoints_dir(temporary) / str(step)
        write_orbax(checkpoint / "params", nested_dict(flatten_with_names(params)))
        write_json_atomically(checkpoint / "meta" / "metadata", {"run": run_description(info), "step": step})
        write_manifest(checkpoint)


def write_orbax(folder: Path, tree: Any) -> None:
    """Writes a nested dictionary of arrays with Orbax. Raises OSError if there is no room."""
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            checkpointer.save(folder.absolute(), tree)
            checkpointer.wait_until_finished()
        except Exception as error:  # the storage library has no one type for "the disk is full"
            if disk_is_full(error):
                raise OSError(errno.ENOSPC, "no space left on the disk") from error
            raise


def saved_execution(info: RunInfo) -> Execution:
    """How the run computed its model. Raises `UserError` for fields that this version does not know."""
    try:
        return Execution(**info.execution_dict)
    except TypeError as error:
        raise UserError(
            f"{info.path}: its execution {json.dumps(info.execution_dict)} is not understood: {error}"
        ) from None


def _common_dtype(leaves: list[jax.Array]) -> Any:
    return str(jnp.result_type(*leaves))
