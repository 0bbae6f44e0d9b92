"""The tokenizer of images: shapes, packing, meshes, and configs that are refused."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from zoo.data import Batch, Media, PackedImages
from zoo.data.images import scaled
from zoo.errors import UserError
from zoo.inference.image_tokens import codes_to_images, image_to_codes
from zoo.models import VqImage, VqImageConfig, build, preset
from zoo.models.vq_image import unpatchified
from zoo.nn import Execution
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh
from zoo.training.image_loss import image_reconstruction_loss

TINY = VqImageConfig(
    image_size=8, patch_size=4, num_codes=11, code_dim=3, embed_dim=16, num_layers=1, num_heads=2, hidden_dim=24
)


@pytest.fixture(scope="module")
def tiny() -> VqImage:
    graphdef, state = jax.jit(lambda: nnx.split(build(TINY, rngs=nnx.Rngs(0))))()
    return nnx.merge(graphdef, state)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)


def test_images_become_codes_and_codes_images(tiny):
    codes = np.stack([image_to_codes(tiny, image) for image in images(3)])
    assert codes.shape == (3, 4) and codes.dtype == np.int32
    drawn = codes_to_images(tiny, codes[:1])
    assert drawn.shape == (1, 8, 8, 3) and drawn.dtype == np.uint8
    assert image_to_codes(tiny, drawn[0]).shape == (4,)
    with pytest.raises(UserError, match=r"codes must lie in 0 \.\. 10, found 0 \.\. 11"):
        codes_to_images(tiny, np.array([[0, 1, 2, 11]]))
    with pytest.raises(UserError, match="has 4 codes"):
        codes_to_images(tiny, np.array([[0, 1, 2]]))
    with pytest.raises(ValueError, match="images must be"):
        tiny.encode_codes(np.zeros((1, 9, 9, 3)))


def test_images_of_any_size_are_cut_to_their_middle(tiny):
    wide = np.random.default_rng(0).integers(0, 256, (16, 30, 3), np.uint8)
    np.testing.assert_array_equal(image_to_codes(tiny, wide), image_to_codes(tiny, wide[:, 7:23]))


def patches_of(pixels: np.ndarray) -> np.ndarray:
    """[images, 4, 48], row by row."""
    return pixels.reshape(-1, 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(-1, 4, 48)


def test_packed_images_have_the_codes_and_reconstructions_that_they_have_alone(tiny):
    pixels = images(3)
    alone = np.stack([image_to_codes(tiny, image) for image in pixels])
    decoded = np.concatenate([codes_to_images(tiny, codes[None]) for codes in alone])
    places = np.tile(np.array([[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]], np.float32), (3, 1))
    padding = np.full((1, 2, 48), 9, np.float32)
    row = np.concatenate([scaled(patches_of(pixels)).reshape(1, 12, 48), padding], axis=1)
    places = np.concatenate([places, np.zeros((2, 2), np.float32)])[None]
    numbers = np.array([[1] * 4 + [2] * 4 + [3] * 4 + [0] * 2])
    packed = jax.jit(tiny.reconstruct)(row, places, numbers, (numbers > 0).astype(np.float32))
    np.testing.assert_array_equal(packed.quantised.codes[0, :12].reshape(3, 4), alone)
    assert float(packed.quantised.counts.sum()) == 12
    found = np.clip(np.asarray(packed.patches)[0, :12].reshape(3, 4, 48), -1, 1)
    np.testing.assert_allclose((found + 1) * 127.5, patches_of(decoded), atol=0.51)


def test_patches_of_an_image_come_back_in_their_places():
    pixels = images(2)
    np.testing.assert_array_equal(unpatchified(patches_of(pixels), 2), pixels)


def test_the_number_of_parameters_is_that_of_the_model():
    for config in (TINY, preset("vq-tiny")):
        state = nnx.state(nnx.eval_shape(lambda config=config: VqImage(config, rngs=nnx.Rngs(0))))
        assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters()


def batch_of(pixels: np.ndarray, rows: int, per_row: int) -> Batch:
    """Rows of `per_row` images; the last one is padding."""
    numbers = np.tile(np.repeat(np.arange(1, per_row + 1), 4), (rows, 1))
    numbers[-1, -4:] = 0
    packed = PackedImages(patches_of(pixels).reshape(rows, per_row * 4, 48), np.zeros((rows, per_row * 4, 2)), numbers)
    ids = np.zeros((rows, 5), np.int32)
    return Batch(ids, ids, ids, ids, ids.astype(np.float32), Media(images=packed))


def test_the_loss_is_the_squared_error_of_images_that_are_no_padding_and_falls_along_its_gradient(tiny):
    pixels = scaled(images(4))
    batch = batch_of(pixels, 2, 2)
    graphdef, state = nnx.split(tiny, nnx.Param)

    def loss(state):
        sums = image_reconstruction_loss(nnx.merge(graphdef, state), batch)
        return sum(sums.auxiliary.values(), sums.loss) / sums.weight, sums

    @jax.jit
    def descend(state):
        def step(state, _):
            gradients, sums = jax.grad(loss, has_aux=True)(state)
            return jax.tree.map(lambda p, g: p - 0.1 * g, state, gradients), sums

        weights = np.ones((4, 4), np.float32)
        return jax.lax.scan(step, state, length=30)[1], tiny.reconstruct(
            patches_of(pixels), None, None, weights
        ).patches

    sums, reconstructed = descend(state)
    expected = np.square(np.asarray(reconstructed) - patches_of(pixels)).mean(-1)[:3].sum()
    np.testing.assert_allclose(sums.loss[0], expected, rtol=1e-5)
    assert np.all(sums.weight == 12)
    assert set(sums.auxiliary) == {"codebook_loss", "commitment_loss", "revival_loss"}
    commitment, codebook = sums.auxiliary["commitment_loss"], sums.auxiliary["codebook_loss"]
    np.testing.assert_allclose(commitment, 0.25 * codebook, rtol=1e-5)
    assert 12 <= sums.metrics["code_perplexity"][0] <= 12 * 11
    assert sums.loss[-1] < 0.7 * sums.loss[0]


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_on_a_mesh_loss_and_gradient_are_those_of_one_device(scan):
    config = replace(TINY, num_layers=2, num_codes=8)
    model = build(config, execution=Execution(scan_layers=scan), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model, nnx.Param)
    batch = batch_of(scaled(images(16)), 8, 2)

    def loss(state, batch):
        sums = image_reconstruction_loss(nnx.merge(graphdef, state), batch)
        return sum(sums.auxiliary.values(), sums.loss) / sums.weight

    alone = jax.jit(jax.value_and_grad(loss))(state, batch)
    with activation_sharding(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), ShardingRules()):
        divided = jax.jit(jax.value_and_grad(loss))(state, batch)
    for found, expected in zip(jax.tree.leaves(divided), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("image_size", 9, "image_size=9 is not a multiple of patch_size=4"),
        ("num_heads", 3, "not a multiple of num_heads=3"),
        ("num_codes", 1, "num_codes must be at least 2"),
        ("commitment", -1.0, "commitment must be at least 0"),
        ("num_layers", 0, "model.num_layers must be at least 1"),
    ],
)
def test_an_impossible_config_is_refused_by_name(field, value, problem):
    with pytest.raises(UserError, match=problem):
        replace(TINY, **{field: value})
