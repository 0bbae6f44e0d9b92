"""SigLIP's vision tower computes what transformers does, and images of any size can share a row."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.encoder_folders import GOLDENS, assert_export_repeats, encoder_folder, run
from zoo.errors import UserError
from zoo.interop import load_huggingface
from zoo.interop.architectures import config_from_huggingface
from zoo.models import build, presets
from zoo.models.siglip import Siglip, SiglipConfig
from zoo.nn import Execution, gathered_outside_layers
from zoo.nn.patches import interpolated, patchified
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh, spmd, state_axes

TOLERANCE = 2e-4
FOLDERS = ("siglip", "siglip-vision-tiny", "siglip-vision-tiny-head")
TINY = SiglipConfig(embed_dim=16, num_layers=2, num_heads=2, hidden_dim=24, patch_size=4, image_size=12)
PADDING = 3


@pytest.fixture(scope="module")
def tiny() -> Siglip:
    return build(TINY, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", FOLDERS)
def test_hidden_states_are_those_of_transformers(name):
    folder, expected = encoder_folder(name)
    model = load_huggingface(folder)
    pixels = expected["pixel_values"]
    last = run(model, "__call__", pixels)
    np.testing.assert_allclose(last, expected["last_hidden_state"], atol=TOLERANCE)
    np.testing.assert_allclose(run(model, "hidden_states", pixels), expected["hidden_states"], atol=TOLERANCE)
    assert model.config.use_head == ("pooler_output" in expected)
    if model.config.use_head:
        np.testing.assert_allclose(run(model, "pool", last), expected["pooler_output"], atol=TOLERANCE)


@pytest.mark.parametrize(
    "execution", [Execution(scan_layers=True, remat_policy="full"), Execution(attention_implementation="reference")]
)
def test_however_it_is_computed_the_hidden_states_are_those_of_transformers(execution):
    folder, expected = encoder_folder("siglip")
    model = load_huggingface(folder, execution=execution)
    states = run(model, "hidden_states", expected["pixel_values"])
    np.testing.assert_allclose(states, expected["hidden_states"], atol=TOLERANCE)


def test_a_tower_without_a_head_does_not_pool(tiny):
    with pytest.raises(ValueError, match="use_head"):
        tiny.pool(jnp.zeros((1, 9, 16)))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", FOLDERS[:1])
def test_an_export_repeats_every_tensor(name, scan, tmp_path):
    folder, _ = encoder_folder(name)
    model = load_huggingface(folder, execution=Execution(scan_layers=scan))
    assert_export_repeats(model, folder, tmp_path / "copy")


def test_presets_have_as_many_parameters_as_in_transformers():
    counts = json.loads((GOLDENS / "num_parameters.json").read_text())
    own = {name: config for name, config in presets().items() if isinstance(config, SiglipConfig)}
    assert len(own) == 5
    assert {name: config.num_parameters() for name, config in own.items()} == {name: counts[name] for name in own}


@pytest.mark.parametrize("use_head", [False, True])
def test_the_number_of_parameters_is_that_of_the_model(use_head):
    config = replace(TINY, use_head=use_head)
    state = nnx.state(nnx.eval_shape(lambda: Siglip(config, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters()


@pytest.mark.parametrize("grid", [3, 27])
def test_at_the_training_grid_positions_are_the_table_itself(grid):
    table = jax.random.normal(jax.random.key(0), (grid * grid, 5))
    _, coordinates = patchified(jnp.zeros((1, 1, grid, grid)), 1)
    found = jax.jit(lambda table: interpolated(table, grid, coordinates))(table)
    np.testing.assert_array_equal(found[0], table)


def test_between_the_cells_positions_are_bilinear_and_beyond_them_constant():
    table = jnp.array([[0.0], [1.0], [10.0], [11.0]])
    places = jnp.array([[0.5, 0.5], [0.25, 0.5], [0.5, 0.25], [0.0, 0.0], [1.0, 1.0], [0.375, 0.25]])
    np.testing.assert_allclose(interpolated(table, 2, places[None])[0, :, 0], [5.5, 0.5, 5, 0, 11, 2.5])


def packed(images):
    """(patches, coordinates, segments) of images in one row, with padding between them and at the end."""
    parts, filler = [], PADDING
    for number, image in enumerate(images, 1):
        patches, coordinates = patchified(image[None], TINY.patch_size)
        parts.append((patches[0], coordinates[0], jnp.full(patches.shape[1], number)))
        parts.append((jnp.full((filler, TINY.patch_dim), 7.0), jnp.zeros((filler, 2)), jnp.zeros(filler, jnp.int32)))
    return tuple(jnp.concatenate(arrays)[None] for arrays in zip(*parts, strict=True))


def images_of_three_sizes():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(3, *sides)), jnp.float32) for sides in ((12, 12), (4, 20), (8, 4))]


def test_packed_images_of_any_size_give_what_each_gives_by_itself(tiny):
    images = images_of_three_sizes()
    patches, coordinates, segments = packed(images)
    together = run(tiny, "encode_patches", patches, coordinates, segments)
    for number, image in enumerate(images[:2], 1):
        alone = run(tiny, "__call__", image[None])[0]
        np.testing.assert_allclose(together[0][segments[0] == number], alone, atol=1e-5)


def test_no_image_depends_on_another_one_or_on_padding(tiny):
    patches, coordinates, segments = packed(images_of_three_sizes())
    first = segments == 1
    before = run(tiny, "encode_patches", patches, coordinates, segments)
    changed = run(tiny, "encode_patches", jnp.where(first[..., None], patches, -patches), coordinates, segments)
    np.testing.assert_array_equal(before[first], changed[first])
    assert (np.abs(before - changed)[~first].max(axis=-1) > 1e-3).all()


def test_gradients_are_the_same_with_remat_and_reach_every_parameter(tiny):
    patches, coordinates, segments = packed(images_of_three_sizes())
    wanted = jax.random.normal(jax.random.key(1), (TINY.embed_dim,))

    def gradient(execution):
        _, state = nnx.split(tiny)
        graphdef, _ = nnx.split(nnx.eval_shape(lambda: Siglip(TINY, execution=execution, rngs=nnx.Rngs(0))))

        def loss(state):
            hidden = nnx.merge(graphdef, state).encode_patches(patches, coordinates, segments)
            return jnp.square((hidden - wanted) * (segments > 0)[..., None]).sum()

        return jax.jit(jax.grad(loss))(state)

    plain, remat = gradient(Execution()), gradient(Execution(remat_policy="full"))
    for (path, one), (_, other) in zip(nnx.to_flat_state(plain), nnx.to_flat_state(remat), strict=True):
        np.testing.assert_allclose(one[...], other[...], atol=1e-3, err_msg=str(path))
        # softmax does not see what is added to all scores of a query.
        assert "key_bias" in path or np.abs(one[...]).max() > 1e-4, path


def test_divided_over_devices_results_are_those_of_one():
    model = build(TINY, execution=Execution(scan_layers=True), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    rows = [jnp.tile(array, (4, *(1,) * (array.ndim - 1))) for array in packed(images_of_three_sizes())]
    rows[0] = rows[0] * jnp.arange(1.0, 5)[:, None, None]

    def encode(state, *arrays):
        encoder = gathered_outside_layers(nnx.merge(graphdef, state), Execution())
        return encoder.encode_patches(*arrays)

    wide, flat = ("batch", None, None), ("batch", None)
    in_axes = (state_axes(state), wide, wide, flat)
    alone = run(model, "encode_patches", *rows)
    with activation_sharding(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), ShardingRules()):
        divided = jax.jit(spmd(encode, in_axes, wide, {"batch": 4}))(state, *rows)
    np.testing.assert_allclose(divided, alone, atol=1e-5)


def test_in_bfloat16_results_are_close():
    folder, expected = encoder_folder("siglip")
    model = load_huggingface(folder, execution=Execution(compute_dtype="bfloat16"))
    last = run(model, "__call__", expected["pixel_values"])
    assert last.dtype == jnp.bfloat16
    np.testing.assert_allclose(last.astype(np.float32), expected["last_hidden_state"], atol=0.1)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("num_heads", 3, "not a multiple of num_heads=3"),
        ("image_size", 3, "less than patch_size"),
        ("num_layers", 0, "vision.num_layers must be at least 1"),
    ],
)
def test_an_impossible_config_is_refused_by_name(field, value, problem):
    with pytest.raises(UserError, match=problem):
        replace(TINY, **{field: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_act", "relu"), ("image_size", 3), ("num_attention_heads", 5), ("architectures", ["SiglipModel"])],
)
def test_a_folder_that_asks_for_something_else_is_refused_by_key(key, value):
    values = json.loads((GOLDENS / "siglip" / "config.json").read_text())
    with pytest.raises(UserError, match=key):
        config_from_huggingface(values | {key: value})


def test_patches_and_pixels_of_the_wrong_shape_are_refused(tiny):
    with pytest.raises(ValueError, match="48 numbers"):
        tiny.encode_patches(jnp.zeros((1, 2, 47)), jnp.zeros((1, 2, 2)), None)
    with pytest.raises(ValueError, match="at least 4 pixels"):
        tiny(jnp.zeros((1, 3, 3, 8)))
