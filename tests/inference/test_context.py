"""Prompts, and caches, that several devices share: the same tokens come out."""

import jax
import numpy as np
import pytest
from flax import nnx

from zoo.inference import INFERENCE_RULES, Sampling, generate, left_pad
from zoo.nn import Execution
from zoo.parallel import MeshConfig, activation_sharding, make_mesh, state_shardings
from zoo.parallel.sharding import activation_context

# Longer than the window of 8, and no multiple of the devices; the last row begins with padding.
PROMPTS = [np.random.default_rng(row).integers(3, 96, length).tolist() for row, length in enumerate((21, 21, 11))]
NEW = 19


def placed(model, mesh):
    """The model with its parameters on the devices of a mesh."""
    graphdef, state = nnx.split(model)
    shardings = state_shardings(state, mesh, INFERENCE_RULES)
    return nnx.merge(graphdef, jax.tree.map(jax.device_put, state, shardings))


def check(model, mesh_config, devices, sampling=Sampling(temperature=1.0)):
    tokens, mask = left_pad(PROMPTS)
    mesh = make_mesh(mesh_config, jax.devices()[:devices])
    options = dict(max_new_tokens=NEW, sampling=sampling, seed=3)
    expected = generate(model, tokens, mask, **options)
    assert len(np.unique(expected)) > 8, "a nearly constant sequence would prove little"
    np.testing.assert_array_equal(generate(placed(model, mesh), tokens, mask, mesh=mesh, **options), expected)


def test_four_devices_that_share_a_prompt_give_the_tokens_of_one(model):
    check(model, MeshConfig(context=4), 4)


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("implementation", ["reference", "xla", "pallas_tpu", "pallas_gpu"])
def test_every_kernel_gives_the_tokens_of_one_device(make_model, implementation, scan_layers):
    execution = Execution(attention_implementation=implementation, scan_layers=scan_layers)
    check(make_model(execution=execution, num_layers=4 if scan_layers else 3), MeshConfig(context=4), 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "devices"), [(MeshConfig(context=2, tensor=2), 4), (MeshConfig(context=2, fsdp=3), 6)], ids=str
)
def test_heads_and_rows_are_divided_at_the_same_time(model, mesh, devices):
    check(model, mesh, devices)


def test_parameters_are_divided_among_tensor_devices_only(model):
    """All else would be gathered in every step."""
    mesh = make_mesh(MeshConfig(context=2, fsdp=2, tensor=2))
    shardings = jax.tree.leaves(state_shardings(nnx.state(model), mesh, INFERENCE_RULES))
    used = {name for sharding in shardings for part in sharding.spec for name in np.atleast_1d(part)}
    assert used == {None, "tensor"}


def test_slots_of_global_layers_are_divided_and_rings_are_whole(model):
    mesh = make_mesh(MeshConfig(context=8))
    with activation_sharding(mesh, INFERENCE_RULES):
        local, wide, _ = model.init_cache(1, 50)
    assert (local.shared, wide.shared) == (False, True)
    assert (local.slots, wide.slots) == (8, 56)
    assert wide.axes.key == ("batch", "kv_heads", "head_dim", "slots")
    assert activation_context.get() is None


def test_a_shared_cache_refuses_a_second_piece_of_a_prompt(model):
    """What it cannot do, it says."""
    tokens = np.ones((1, 8), np.int32)
    with activation_sharding(make_mesh(MeshConfig(context=8)), INFERENCE_RULES):

        def twice(tokens):
            _, cache = model(tokens, cache=model.init_cache(1, 16))
            return model(tokens, cache=cache)

        with pytest.raises(NotImplementedError, match="one token at a time"):
            jax.eval_shape(twice, tokens)
