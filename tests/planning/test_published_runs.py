"""The published runs: which collectives their step has. Small siblings here; `-m slow` compiles them as they are."""

import dataclasses
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from zoo.ahead_of_time import tpu
from zoo.ahead_of_time.hlo import parse_program
from zoo.ahead_of_time.interconnect import Links, Network
from zoo.ahead_of_time.schedule import KernelTime, Machine, follow
from zoo.parallel import MeshConfig, activation_sharding, make_mesh
from zoo.recipes import recipe
from zoo.recipes.program import training_program

RUNS = {
    "gemma2-2b-v5e-512": (MeshConfig(replica=2, data=2, fsdp=2), ["v5e:16x16", "--slices", "2"]),
    "gemma2-9b-v4-4096": (MeshConfig(data=2, fsdp=2, tensor=2), ["v4:8x16x32"]),
    "gemma2-27b-v5p-6144": (MeshConfig(data=2, fsdp=2, tensor=2), ["v5p:8x24x32"]),
}
SMALL = 4096
"""Bytes of all gradients of norms together and of the loss's sums; parameters and activations are larger."""


def sibling(name: str):
    """The recipe with the same axes of more than one device, and small sizes."""
    published = recipe(name)
    model = dataclasses.replace(
        published.model,
        vocab_size=512,
        embed_dim=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        hidden_dim=128,
        sliding_window=32,
        max_position_embeddings=128,
    )
    return dataclasses.replace(
        published,
        needs_data=False,
        model=model,
        mesh=RUNS[name][0],
        execution=dataclasses.replace(published.execution, compute_dtype="float32", attention_implementation="xla"),
        data=dataclasses.replace(published.data, batch_size=8, sequence_length=128),
    )


@pytest.mark.parametrize("name", RUNS)
def test_the_collectives_of_a_step_are_those_of_the_design(name):
    small = sibling(name)
    larger = {axis for axis, size in dataclasses.asdict(recipe(name).mesh).items() if size > 1}
    assert larger == {axis for axis, size in dataclasses.asdict(small.mesh).items() if size > 1}
    mesh = make_mesh(small.mesh)
    program = training_program(small, mesh)
    with activation_sharding(mesh, small.rules):
        compiled = program.step.lower(program.state, program.batch).compile()
    network = Network([SimpleNamespace(slice_index=0)] * mesh.size, Links(1e9, 1e9, 0.0, None))
    line = follow(
        parse_program(compiled.as_text()), mesh.shape, Machine(1e9, 1e9), network, lambda *_: KernelTime(0, 0, "")
    )
    found = {(one.kind, "+".join(one.axes)) for one in line.collectives if one.bytes > SMALL and one.devices > 1}
    copies = "+".join(axis for axis in ("replica", "data") if axis in larger)
    expected = {("all-gather", "fsdp"), ("reduce-scatter", "fsdp"), ("all-reduce", copies)}
    if "tensor" in larger:
        expected |= {("all-gather", "tensor"), ("reduce-scatter", "tensor")}
    assert found == expected


@pytest.mark.slow
@pytest.mark.skipif(not tpu.has_libtpu(), reason="libtpu is not installed (it comes with the extra `tpu`)")
@pytest.mark.parametrize("name", RUNS)
def test_a_published_run_compiles_and_fits_its_chips(name):
    command = [sys.executable, "-m", "zoo.plan", name, "--topology", *RUNS[name][1]]
    done = subprocess.run(command, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"fits, [\d.]+ GB to spare", done.stdout)
    assert float(re.search(r"([\d.]+) GB of host memory", done.stdout)[1]) < 12
