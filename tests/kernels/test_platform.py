"""For which device a program is traced."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from zoo.kernels.platform import target_platform
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh


@pytest.mark.parametrize(("platform", "expected"), [("tpu", "tpu"), ("cuda", "gpu"), ("cpu", "cpu")])
def test_devices_of_the_active_mesh_come_before_the_default_back_end(platform, expected):
    """They may be described only, for compiling without them."""
    described = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))
    with activation_sharding(described, ShardingRules()):
        assert target_platform() == expected
    assert target_platform() == "cpu"


def test_inside_of_a_shard_map_it_is_that_of_its_mesh():
    seen = []
    mesh = make_mesh(MeshConfig())
    function = jax.shard_map(
        lambda x: seen.append(target_platform()) or x,
        mesh=mesh,
        in_specs=jax.P("fsdp"),
        out_specs=jax.P("fsdp"),
        check_vma=False,
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        jax.eval_shape(function, jax.ShapeDtypeStruct((8,), np.float32))
    assert seen == ["cpu"]
