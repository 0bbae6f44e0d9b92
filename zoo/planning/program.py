"""A recipe's real program, compiled for devices that are not there."""

import gzip
import hashlib
import json
import re
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from zoo.ahead_of_time.gpu import without_compilation_cache
from zoo.ahead_of_time.tpu import nothing_cached
from zoo.errors import UserError
from zoo.parallel import activation_sharding, make_mesh
from zoo.parallel.compiler_options import compiler_options
from zoo.planning.topology import Topology, cache_folder
from zoo.recipes import Recipe
from zoo.recipes.adapters import Fixed
from zoo.recipes.checks import check_recipe
from zoo.recipes.program import training_program

PROGRAMS = ("train", "prefill", "decode")
"""What can be planned."""


@dataclass(frozen=True)
class CompiledProgram:
    """What the compiler made of a program, for one device of the mesh."""

    mesh: Mesh
    """Of described devices."""
    text: str
    """The scheduled program."""
    memory: dict[str, float]
    """Bytes by kind, see `memory_by_kind`."""
    seconds: dict[str, float]
    """Wall time of trace, lower, compile."""
    host_bytes: int
    """Most memory that this process has taken so far."""
    options: dict[str, Any]
    """Compiler options that differ from the defaults."""


def plan_mesh(recipe: Recipe, topology: Topology) -> Mesh:
    """The recipe's mesh over the devices. Raises `UserError` for sizes that do not fit each other."""
    mesh = make_mesh(recipe.mesh, topology.devices)
    check_recipe(recipe, mesh)
    return mesh


def compile_recipe(
    recipe: Recipe,
    topology: Topology,
    program: str = "train",
    options: Mapping[str, Any] | None = None,
    *,
    keep: bool = False,
) -> CompiledProgram:
    """One training step, or the prefill or a block of decode steps, compiled. Nothing is allocated or run.

    options: changes of the compiler options with which the program is run.
    keep: whether the result is kept in the user's cache, and taken from there if the lowered program is the same.

    Raises: UserError for sizes that do not fit, and for a program that the compiler refuses (its reason in one line).
    """
    if program != "train":
        from zoo.planning.generation import inference_recipe

        recipe = inference_recipe(recipe)
    mesh = plan_mesh(recipe, topology)
    # As `training_program` has them; generation, and a single device, are compiled with the compiler's defaults.
    usual = {}
    if program == "train" and mesh.size > 1:
        usual = compiler_options(topology.platform, topology.devices[0].device_kind)
    options = {**usual, **(options or {})}
    keywords: dict[str, Any] = {}
    began = time.perf_counter()
    with activation_sharding(mesh, recipe.rules), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        if program == "train":
            step = training_program(recipe, mesh)
            function, arguments = step.step, (step.state, step.batch)
            if step.adapter is not None:
                fixed = Fixed(step.adapter.base.params, step.adapter.buffers, None)
                arguments = (*arguments, fixed)
            parts = {
                "parameters": step.state.params,
                "optimizer state": step.state.opt_state,
                "batch": step.batch,
            }
            if step.adapter is not None:
                parts["parameters"] = (step.state.params, step.adapter.base.params, step.adapter.buffers)
        else:
            from zoo.planning.generation import generation_program

            function, arguments, keywords, parts = generation_program(recipe, mesh, program)
        jitted: Any = function
        traced = jitted.trace(*arguments, **keywords)
        traced_at = time.perf_counter()
        lowered = traced.lower(lowering_platforms=("tpu" if topology.platform == "tpu" else "cuda",))
    lowered_at = time.perf_counter()
    file = _kept_file(lowered, topology, options) if keep else None
    if file is not None and file.is_file():
        kept = json.loads(gzip.decompress(file.read_bytes()))
        return CompiledProgram(mesh=mesh, options=options, **kept)
    try:
        with nothing_cached() if topology.platform == "tpu" else without_compilation_cache():
            compiled = lowered.compile(compiler_options=_for_compiler(topology, options))
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"{recipe.name} on {topology.name}: {_reason(str(error))}") from error
    done = time.perf_counter()
    made = CompiledProgram(
        mesh=mesh,
        text=compiled.as_text(),
        memory=memory_by_kind(parts, compiled.memory_analysis()),
        seconds={"trace": traced_at - began, "lower": lowered_at - traced_at, "compile": done - lowered_at},
        host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        options=options,
    )
    if file is not None:
        kept = {name: getattr(made, name) for name in ("text", "memory", "seconds", "host_bytes")}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(json.dumps(kept).encode(), 3))
    return made


def _kept_file(lowered: Any, topology: Topology, options: Mapping[str, Any]) -> Path:
    """Named by everything that the compiled program depends on but the compiler, which names the folder."""
    key = hashlib.sha256()
    for part in (lowered.as_text(), topology.name, str(topology.slices), json.dumps(options, sort_keys=True)):
        key.update(part.encode())
    return cache_folder() / "programs" / f"{key.hexdigest()[:24]}.json.gz"


def memory_by_kind(parts: Mapping[str, Any], analysis: Any) -> dict[str, float]:
    """Bytes of one device: the named parts of the arguments, what the compiler adds to them, temporaries, results.

    "other arguments" holds the rest of the arguments and the padding of their tiles. Results that take the place of a
    donated argument are counted there, the others as "outputs".
    """
    sizes = {name: float(sum(map(_local_bytes, jax.tree.leaves(part)))) for name, part in parts.items()}
    arguments = float(analysis.argument_size_in_bytes)
    sizes["other arguments"] = max(0.0, arguments - sum(sizes.values()))
    sizes["temporaries"] = float(analysis.temp_size_in_bytes)
    sizes["outputs"] = max(0.0, float(analysis.output_size_in_bytes - analysis.alias_size_in_bytes))
    sizes["generated code"] = float(analysis.generated_code_size_in_bytes)
    return sizes


def _local_bytes(leaf: Any) -> int:
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    size = getattr(leaf.dtype, "itemsize", 4)
    return int(np.prod(shape, dtype=np.int64)) * size


def _for_compiler(topology: Topology, options: dict[str, Any]) -> dict[str, Any]:
    # XLA's autotuner would need a GPU.
    return options if topology.platform == "tpu" else {"xla_gpu_autotune_level": 0, **options}


def _reason(message: str) -> str:
    """What a compiler's message says, in one line."""
    text = " ".join(message.split())
    memory = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) (\w+)", text)
    if memory:
        kind = "main memory" if memory[3] == "hbm" else memory[3]
        return f"does not fit: the program takes {memory[1]} of {memory[2]} of a device's {kind}"
    return "the compiler refuses: " + (text if len(text) < 400 else text[:400] + " ...")
