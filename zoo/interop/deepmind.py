"""google-deepmind/gemma checkpoints of Gemma 2, in and out, in any of their three layouts (`deepmind_tree`).

Such a tree says nothing about windows, soft-caps or the query scale, so a configuration is needed: the preset with
these shapes, or the caller's.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from zoo.data import Tokenizer
from zoo.errors import UserError
from zoo.interop.deepmind_tree import DeepMindTree, TreeLayout, as_layout
from zoo.interop.gemma2_names import PADDED_ROWS, axis_sizes, deepmind_places, parameter_names, place
from zoo.interop.huggingface import fit_rows
from zoo.interop.new_folder import new_folder
from zoo.interop.parameters import OnTensor, ParamDtype, ParameterReader, build_model
from zoo.interop.places import Place, read_stored, stored_sources
from zoo.interop.runs import write_orbax
from zoo.models import Gemma2, Gemma2Config, presets
from zoo.nn import Execution
from zoo.parallel import ShardingRules


def load_deepmind(
    folder: str | Path,
    *,
    config: Gemma2Config | None = None,
    transpose_gating: bool | None = None,
    execution: Execution | None = None,
    param_dtype: ParamDtype | None = None,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    on_tensor: OnTensor | None = None,
) -> Gemma2:
    """The model of a google-deepmind/gemma checkpoint of Gemma 2, in any of the three layouts.

    Args:
        folder: the Orbax checkpoint.
        config: the architecture; default: the preset whose shapes these are (of a base and a tuned one, the base).
            The embedding may have 256,128 rows where the configuration has 256,000.
        transpose_gating: whether gate and up are stored as (F, D); only needed when F = D, where shapes do not tell.
        execution: how the model computes; default float32, layers unrolled.
        param_dtype: dtype of the parameters in memory; default `execution.param_dtype`.
        mesh: devices to spread the parameters over.
        rules: how to spread them.
        on_tensor: progress.

    Raises:
        UserError: no preset has these shapes; a missing, unexpected, misshapen or damaged array.
    """
    tree = DeepMindTree(Path(folder))
    execution = execution or Execution()
    config = config or preset_of(tree)
    sizes = axis_sizes(config)
    places = deepmind_places(config, transpose_gating=_gating_is_transposed(tree, config, transpose_gating))
    _check_tree(tree, config, places)

    def read(name: str) -> np.ndarray:
        stored_name, where = place(places, name)
        array = tree.read(stored_name)
        if name == "embedder/embedding":
            array = fit_rows(array, config.vocab_size)
        return where.to_ours(array, sizes)

    return build_model(
        config,
        execution,
        read,
        order=sorted(parameter_names(config), key=lambda name: tree.leaf(place(places, name)[0])),
        param_dtype=param_dtype or execution.param_dtype,
        mesh=mesh,
        rules=rules,
        on_tensor=on_tensor,
    )


def save_deepmind(
    model: Any,
    folder: str | Path,
    *,
    layout: TreeLayout = "flat",
    transpose_gating: bool | None = None,
    tokenizer: Tokenizer | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    on_tensor: OnTensor | None = None,
) -> None:
    """Writes a model as the tree that `gm.ckpts.load_params` of google-deepmind/gemma reads.

    The tree is built on the host, so this takes the model's size in host memory. An embedding of 256,000 rows is padded
    with zeros to 256,128, as in the released checkpoints.

    Args:
        model: a Gemma 2, on one host's devices.
        folder: must not exist or be empty; with `overwrite` it may hold an earlier export.
        layout: which of the three trees.
        transpose_gating: gate and up as (F, D); default as released: in 9B and 27B.
        tokenizer: written along.
        dtype: "float32" or "bfloat16", default as in the model.
        overwrite: replace an earlier export.
        on_tensor: progress.
    """
    config, sizes, reader = _config_of(model), axis_sizes(model.config), ParameterReader(model)
    transposed = released_gating_is_transposed(config) if transpose_gating is None else transpose_gating
    table = deepmind_places(config, transpose_gating=transposed)
    places: dict[str, Place] = {}
    for name in parameter_names(config):
        stored_name, where = place(table, name)
        places[name] = replace(where, name=stored_name)
    joined: dict[str, np.ndarray] = {}
    for stored_name, source in stored_sources(places, sizes).items():
        array = read_stored(source, sizes, reader.read)
        array = array.astype(dtype or reader.dtype(source.names[0]), copy=False)
        if source.names[0] == "embedder/embedding" and config.vocab_size in PADDED_ROWS:
            array = fit_rows(array, max(PADDED_ROWS))
        joined[stored_name] = array
        if on_tensor:
            for name in source.names:
                on_tensor(name)
    tree = as_layout(joined, layout, config.pattern_length)
    num_bytes = sum(array.nbytes for array in joined.values())
    with new_folder(Path(folder), num_bytes=num_bytes, overwrite=overwrite) as temporary:
        write_orbax(temporary / "tree", tree)
        for file in (temporary / "tree").iterdir():
            file.rename(temporary / file.name)
        (temporary / "tree").rmdir()
        if tokenizer is not None:
            tokenizer.save(temporary)


def _config_of(model: Any) -> Gemma2Config:
    """The model's config. Raises `UserError` if the tree cannot hold this kind of model."""
    if not isinstance(model.config, Gemma2Config):
        kind = type(model.config).__name__.removesuffix("Config")
        raise UserError(f"a google-deepmind/gemma tree holds a Gemma 2; this model is a {kind}: use another format")
    return model.config


def preset_of(tree: DeepMindTree) -> Gemma2Config:
    """The first preset with the tree's shapes. Raises `UserError`, saying the shapes, if there is none."""
    for config in presets().values():
        if not isinstance(config, Gemma2Config):
            continue
        places = deepmind_places(config, transpose_gating=released_gating_is_transposed(config))
        if not _differences(tree, config, places):
            return config
    shapes = ", ".join(
        f"{name} {tree.shapes[name]}"
        for name in (
            "embedder/input_embedding",
            "layer_0/attn/q_einsum/w",
            "layer_0/attn/kv_einsum/w",
            "layer_0/mlp/linear/w",
        )
        if name in tree.shapes
    )
    if not shapes:
        raise UserError(
            f"{tree.folder} holds none of the arrays of a google-deepmind/gemma checkpoint (layer_0/attn/...)"
        )
    raise UserError(
        f"{tree.folder}: no Gemma 2 preset has these shapes ({shapes}); give the configuration with config="
    )


def released_gating_is_transposed(config: Gemma2Config) -> bool:
    """Gate and up lie as (F, D) in the released 9B and 27B, as (D, F) in 2B (gm/nn/_gemma.py)."""
    return config.embed_dim >= 3584


def _gating_is_transposed(tree: DeepMindTree, config: Gemma2Config, given: bool | None) -> bool:
    shape = tree.shapes.get("layer_0/mlp/gating_einsum/w", ())[-2:]
    if config.embed_dim == config.hidden_dim and given is None:
        raise UserError(
            f"{tree.folder}: hidden_dim = embed_dim, so shapes do not tell the gating layout: give transpose_gating="
        )
    return given if given is not None else shape == (config.hidden_dim, config.embed_dim)


def _differences(tree: DeepMindTree, config: Gemma2Config, places: Mapping[str, Place]) -> list[str]:
    """What is wrong with the tree for this architecture, one sentence each."""
    sizes = axis_sizes(config)
    wanted: dict[str, tuple[int, ...]] = {}
    for name in parameter_names(config):
        stored_name, where = place(places, name)
        shape = where.stored_shape(sizes)
        if name == "embedder/embedding" and config.vocab_size in PADDED_ROWS:
            rows = tree.shapes.get(stored_name, shape)[0]
            shape = (rows if rows in PADDED_ROWS else config.vocab_size, *shape[1:])
        wanted[stored_name] = shape
    found = [f"{name} is missing" for name in wanted if name not in tree.shapes]
    found += [f"unexpected array {name}" for name in tree.shapes if name not in wanted]
    found += [
        f"{name} has shape {tree.shapes[name]}, the configuration asks for {shape}"
        for name, shape in wanted.items()
        if tree.shapes.get(name, shape) != shape
    ]
    return found


def _check_tree(tree: DeepMindTree, config: Gemma2Config, places: Mapping[str, Place]) -> None:
    differences = _differences(tree, config, places)
    if differences:
        raise UserError(f"{tree.folder}: {differences[0]} ({len(differences)} differences in all)")
