"""The large Gemini recipes: sizes that fit each other and the pod; `-m slow`: what becomes of them on TPU v4."""

import dataclasses
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from zoo.ahead_of_time import tpu
from zoo.parallel import MeshConfig, mesh_sizes
from zoo.planning.estimate import make_plan
from zoo.planning.program import compile_recipe
from zoo.planning.topology import open_topology
from zoo.recipes import description, recipe
from zoo.recipes.checks import check_recipe, least_bytes

PRO, FLASH = "gemini-pro-like-v4-4096", "gemini-flash-like-v4-4096"
CHIPS, CHIP_BYTES = 4096, 32 * 2**30
TILE_ROWS = 8
needs_libtpu = pytest.mark.skipif(
    not tpu.has_libtpu(), reason="libtpu is not installed (it comes with the extra `tpu`)"
)


@pytest.mark.parametrize("name", [PRO, FLASH])
def test_a_large_recipe_is_divided_evenly_among_a_pod_and_its_least_memory_is_half_of_a_chip(name):
    run = dataclasses.replace(recipe(name), needs_data=False)
    model, sizes = run.model, mesh_sizes(run.mesh, CHIPS)
    elsewhere = SimpleNamespace(platform="tpu", process_index=-1)
    mesh = SimpleNamespace(shape=sizes, size=CHIPS, devices=SimpleNamespace(flat=[elsewhere]))
    check_recipe(run, mesh)
    assert least_bytes(run, mesh) < CHIPS * CHIP_BYTES / 2
    assert 4e6 <= run.data.batch_size * run.data.sequence_length <= 8.4e6
    assert f"zoo.plan {name} --topology v4:16x16x16" in description(name)

    def share(size: int, *axes: str) -> float:
        return size / math.prod(sizes[axis] for axis in axes)

    assert share(model.embed_dim, "fsdp", "context", "expert") % TILE_ROWS == 0
    assert share(model.hidden_dim, "tensor", "fsdp", "context", "expert") % 1 == 0
    if model.experts is not None:
        assert share(model.experts.num_experts, "expert") % 1 == 0
        assert share(model.embed_dim, "fsdp", "context") % TILE_ROWS == 0
        assert share(model.experts.hidden_dim, "tensor", "fsdp", "context") % TILE_ROWS == 0


@pytest.mark.slow
@needs_libtpu
def test_a_small_sibling_of_the_sparse_run_exchanges_tokens_and_multiplies_them_in_grouped_kernels():
    """The same axes of more than one device on 32 chips of TPU v4, and layers of small width."""
    published = recipe(PRO)
    experts = dataclasses.replace(published.model.experts, num_experts=4, hidden_dim=512)
    model = dataclasses.replace(
        published.model, experts=experts, vocab_size=4096, embed_dim=1024, num_layers=4, num_heads=4, num_kv_heads=2,
        hidden_dim=1024, sliding_window=256,
    )  # fmt: skip
    small = dataclasses.replace(
        published,
        needs_data=False,
        model=model,
        mesh=MeshConfig(data=2, fsdp=2, context=2, expert=2, tensor=2),
        data=dataclasses.replace(published.data, batch_size=8, sequence_length=1024),
    )
    axes = {axis for axis, size in dataclasses.asdict(published.mesh).items() if size > 1}
    assert axes == {axis for axis, size in dataclasses.asdict(small.mesh).items() if size > 1}
    topology = open_topology("v4:2x4x4")
    plan = make_plan(small, topology, compile_recipe(small, topology), read_kernels=False)

    # Of every sparse layer: gate, up and down, the first two once more for the backward pass, and six gradients.
    grouped = {kernel["name"]: kernel for kernel in plan.kernels if kernel["name"].startswith("grouped_matmul")}
    layers = model.num_sparse_layers
    wanted = {"grouped_matmul": 5 * layers, "grouped_matmul_transposed": 3 * layers, "grouped_matmul_outer": 3 * layers}
    assert {name: kernel["times"] for name, kernel in grouped.items()} == wanted
    rows = experts.exchange_capacity_factor * experts.experts_per_token * 1024 / small.mesh.context
    for kernel in grouped.values():
        assert kernel["flops"] == 2 * rows * model.embed_dim * experts.hidden_dim / small.mesh.tensor

    found = {(one["kind"], "+".join(one["axes"])) for one in plan.collectives if one["bytes"] > 2**16}
    assert ("ragged-all-to-all", "expert") in found
    # The experts' weights, and those of everything else; what is as small as here may be summed whole.
    for shared in ("fsdp+context", "fsdp+context+expert"):
        assert ("all-gather", shared) in found
        assert {("reduce-scatter", shared), ("all-reduce", shared)} & found, found


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("name", [PRO, FLASH])
def test_a_large_recipe_compiles_for_a_pod_and_fits_its_chips(name):
    command = [sys.executable, "-m", "zoo.plan", name, "--topology", "v4:16x16x16"]
    done = subprocess.run(command, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"fits, [\d.]+ GB to spare", done.stdout)
    assert float(re.search(r"([\d.]+) GB of host memory", done.stdout)[1]) < 12
