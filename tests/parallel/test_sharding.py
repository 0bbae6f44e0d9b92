import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from zoo.errors import UserError
from zoo.models import Gemma2Config, build
from zoo.nn import Execution
from zoo.parallel import (
    MeshConfig,
    ShardingRules,
    activation_sharding,
    batch_sharding,
    init_sharded,
    make_mesh,
    state_shardings,
)

CONFIG = Gemma2Config(
    vocab_size=96,
    embed_dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_dim=48,
    query_pre_attn_scalar=16,
    sliding_window=8,
)
MESHES = [MeshConfig(data=8, fsdp=1), MeshConfig(fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(tensor=2)]


def loss_and_gradients(graphdef, state, tokens):
    def loss(state):
        logits = nnx.merge(graphdef, state)(tokens[:, :-1])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1).mean()

    return jax.jit(jax.value_and_grad(loss))(state)


@pytest.mark.parametrize(("mesh_config", "scan_layers"), [*((m, False) for m in MESHES), (MESHES[2], True)], ids=str)
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(mesh_config, scan_layers):
    def make():
        return build(CONFIG, execution=Execution(scan_layers=scan_layers), rngs=nnx.Rngs(0))

    tokens = jax.random.randint(jax.random.key(1), (8, 25), 0, CONFIG.vocab_size)
    expected = loss_and_gradients(*nnx.split(make()), tokens)
    mesh, rules = make_mesh(mesh_config), ShardingRules()
    graphdef, state = init_sharded(make, mesh, rules)
    with activation_sharding(mesh, rules):
        result = loss_and_gradients(graphdef, state, jax.device_put(tokens, batch_sharding(mesh, rules)))
    chex.assert_trees_all_close(jax.device_get(result), jax.device_get(expected), atol=1e-5)


def test_parameters_are_born_sharded_by_their_logical_axes():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    _, state = init_sharded(lambda: build(CONFIG, rngs=nnx.Rngs(0)), mesh, ShardingRules())
    layer = state["layers"][0]
    assert state["embedder"]["embedding"][...].sharding.spec == PartitionSpec("tensor", ShardingRules().embed)
    assert layer["attention"]["query"][...].sharding.spec == PartitionSpec(ShardingRules().embed, "tensor", None)
    assert layer["mlp"]["down"][...].sharding.spec == PartitionSpec(ShardingRules().mlp_in, None)
    assert layer["mlp"]["up"][...].addressable_shards[0].data.shape == (16, 24)


def test_scanned_parameters_keep_their_axes_behind_the_layer_axis():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    abstract = nnx.eval_shape(lambda: build(CONFIG, execution=Execution(scan_layers=True), rngs=nnx.Rngs(0)))
    shardings = state_shardings(nnx.state(abstract), mesh, ShardingRules())
    assert shardings["layers"][1]["mlp"]["gate"].get_value().spec == PartitionSpec(
        None, ShardingRules().embed, "tensor"
    )


def test_an_axis_that_does_not_divide_names_the_parameter():
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=8))
    abstract = nnx.eval_shape(lambda: build(CONFIG, rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match=r"layers/0/attention/\w+ .*not divisible by 8"):
        state_shardings(nnx.state(abstract), mesh, ShardingRules())


def test_one_mesh_axis_cannot_divide_two_axes_of_an_array():
    with pytest.raises(ValueError, match="twice"):
        ShardingRules(embed="tensor").spec(("embed", "mlp"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=3), "not divisible by 3"),
        (MeshConfig(data=2, fsdp=2), "takes 4 devices, there are 8"),
        (MeshConfig(data=0), "positive size"),
        (MeshConfig(data=-1), "at most one"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        make_mesh(config)


def test_mesh_devices_are_all_used_once():
    mesh = make_mesh(MeshConfig(data=2, tensor=2))
    assert mesh.shape == {"replica": 1, "data": 2, "fsdp": 2, "context": 1, "expert": 1, "tensor": 2}
    assert len(np.unique([device.id for device in mesh.devices.flat])) == 8
