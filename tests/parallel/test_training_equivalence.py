"""Every mesh trains like one device: the real step, packed batches, 20 steps. And nothing large is kept twice."""

import functools
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.parallel.training_equivalence import (
    ALIKE,
    LENGTH,
    STEPS,
    all_meshes,
    batches,
    case,
    deviation,
    expected,
    prepare,
)
from zoo.parallel import MeshConfig, make_mesh
from zoo.recipes import recipe
from zoo.recipes.program import training_program

FSDP = case(fsdp=8)
NORMAL = [
    case(replica=2, fsdp=2, context=2, exchange="ring"),
    case(data=2, expert=2, tensor=2),
]
ONE_AXIS = [
    *(case(**{axis: 8}) for axis in ("replica", "data", "fsdp", "expert")),
    *(case(**{axis: 8}, scan=True, remat="full") for axis in ("data", "fsdp", "expert")),
    *(case(window, context=8, exchange=how) for window in (5, 12, 40) for how in ("ring", "gather")),
    *(case(12, context=8, exchange=how, scan=True, remat="full") for how in ("ring", "gather")),
    # Four key/value heads have no more than four parts.
    *(case(tensor=4, scan=scan, remat=remat) for scan, remat in ((False, "none"), (True, "full"))),
]
CHOSEN = [
    *(case(window, fsdp=2, context=4, exchange=how) for window in (12, 40) for how in ("ring", "gather")),
    *(case(window, context=4, tensor=2, exchange=how) for window in (12, 40) for how in ("ring", "gather")),
    case(12, replica=2, fsdp=2, context=2, scan=True, remat="full", exchange="gather"),
    case(40, replica=2, fsdp=2, context=2, scan=True, remat="full", exchange="ring"),
    case(40, fsdp=2, context=2, tensor=2, remat="full", exchange="ring"),
    case(data=2, fsdp=2, tensor=2, accumulation=2),
    case(fsdp=2, context=2, tensor=2, scan=True, remat="full", accumulation=2),
]
EIGHT = [*dict.fromkeys([FSDP, *NORMAL, *ONE_AXIS, *CHOSEN, *all_meshes(2, (2, 4)), *all_meshes(3, (2, 2, 2))])]
"""Cases for eight devices."""
SIXTEEN = all_meshes(4, (2, 2, 2, 2))
"""Four axes that divide something need sixteen devices."""


def shown(one):
    return one.shown


def test_the_rows_are_packed_with_several_documents_and_padding():
    segments = np.stack([batch.segment_ids for batch in batches(8)])
    assert segments.shape == (STEPS, 8, LENGTH)
    assert (segments.max(-1) > 1).mean() > 0.9
    assert 0.02 < (segments == 0).mean() < 0.2
    starts = np.flatnonzero(np.diff(segments.reshape(-1, LENGTH)) > 0)
    assert len(starts) > 1.5 * STEPS * 8


def test_one_device_learns():
    losses = expected(12, 2)[:, 0]
    assert losses[-3:].mean() < losses[:3].mean() - 0.4


@pytest.mark.slow
def test_the_curve_would_notice_a_window_that_is_one_key_too_wide():
    assert np.abs(expected(13, 2) - expected(12, 2))[:, 0].max() > 100 * ALIKE


@pytest.mark.parametrize("one", NORMAL, ids=shown)
def test_training_on_a_mesh_is_training_on_one_device(one):
    assert deviation(one) <= ALIKE


@pytest.mark.slow
@pytest.mark.parametrize("one", [one for one in EIGHT if one not in (*NORMAL, FSDP)], ids=shown)
def test_training_on_every_mesh_is_training_on_one_device(one):
    assert deviation(one) <= ALIKE


@pytest.mark.slow
def test_training_on_meshes_of_four_axes_is_training_on_one_device(repository):
    """In a process that has sixteen devices."""
    eight = "--xla_force_host_platform_device_count"
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(eight)]
    run = subprocess.run(
        [sys.executable, "-m", "tests.parallel.training_equivalence", "--devices", "16"],
        cwd=repository,
        env=os.environ | {"XLA_FLAGS": " ".join(flags)},
        capture_output=True,
        text=True,
        check=True,
    )
    table = re.findall(r"^(\w+=2,\w+=2,\w+=2,\w+=2) .* (\d\S*) +[\d.]+$", run.stdout, re.MULTILINE)
    assert len(table) == len(SIXTEEN), run.stdout
    for mesh, found in table:
        assert float(found) <= ALIKE, mesh


@functools.cache
def on_fsdp():
    return prepare(FSDP)


def test_training_on_fsdp_is_training_on_one_device():
    assert deviation(FSDP, on_fsdp()) <= ALIKE


def test_a_compiled_step_gives_parameters_and_moments_back_where_they_were():
    (state_in, _), _ = on_fsdp().step.input_shardings
    state_out, _ = on_fsdp().step.output_shardings
    before, after = jax.tree.leaves_with_path(state_in), jax.tree.leaves_with_path(state_out)
    shapes = jax.tree.leaves(on_fsdp().program.state)
    assert len(before) == len(after) == len(shapes) > 30
    divided = 0
    for (path, one), (_, other), like in zip(before, after, shapes, strict=True):
        assert one.is_equivalent_to(like.sharding, like.ndim), jax.tree_util.keystr(path)
        assert other.is_equivalent_to(one, like.ndim), jax.tree_util.keystr(path)
        divided += not one.is_fully_replicated
    assert divided > 0.5 * len(shapes)


def test_a_compiled_step_holds_an_eighth_of_the_state_on_each_device():
    arguments = on_fsdp().step.memory_analysis().argument_size_in_bytes
    state, batch = on_fsdp().program.state, on_fsdp().program.batch
    own = sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves((state.params, state.opt_state, batch))
    )
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.opt_state, batch)))
    assert own <= arguments <= own + 64  # and three counters
    assert arguments < 1.1 * whole / 8


@pytest.mark.parametrize(
    "mesh", [MeshConfig(fsdp=8), MeshConfig(fsdp=4, tensor=2), MeshConfig(fsdp=2, context=2, tensor=2)], ids=str
)
@pytest.mark.parametrize("name", ["gemma2-2b", "gemma2-27b"])
def test_nothing_above_a_megabyte_is_kept_whole_by_any_device(name, mesh):
    devices = make_mesh(mesh)
    program = training_program(recipe(name), devices)
    large = [leaf for leaf in jax.tree.leaves(program.state) if leaf.size * leaf.dtype.itemsize > 2**20]
    assert len(large) >= 3 * (1 + 2 * 7), "parameters and two moments: embedding, two layers of seven matrices"
    for leaf in large:
        assert np.prod(leaf.sharding.shard_shape(leaf.shape)) == leaf.size / 8
