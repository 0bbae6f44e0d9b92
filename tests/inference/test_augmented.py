"""A trained network with a twin head: the network stays as it is, and any batch size gives the same."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from zoo.errors import UserError
from zoo.inference.augmented import penultimate
from zoo.models import ModelConfig, build
from zoo.models.densenet import DensenetConfig
from zoo.models.resnet import ResnetConfig
from zoo.models.siglip import SiglipConfig

TINY = dict(num_channels=1, num_classes=2)
VIT = SiglipConfig(embed_dim=16, num_layers=1, num_heads=2, hidden_dim=16, patch_size=8, image_size=16, num_channels=1)
CONFIGS: dict[str, ModelConfig] = {
    "resnet": ResnetConfig(depths=(1,), widths=(8,), block="basic", stem_width=4, **TINY),
    "densenet": DensenetConfig(depths=(1,), growth=4, stem_width=4, bottleneck=1, **TINY),
    "siglip": VIT,
    "siglip with a head": replace(VIT, use_head=True),
}


def images(count, seed):
    """Noise, every fourth image with a bright square."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 4 == 0).astype(int)
    pixels = rng.normal(0, 0.3, (count, 1, 16, 16)).astype(np.float32)
    pixels[labels == 1, :, 4:12, 4:12] += 2
    return pixels, labels


@pytest.mark.parametrize("name", CONFIGS)
def test_a_network_gets_a_calibrated_twin_head_and_stays_as_it_is(name):
    model = build(CONFIGS[name], rngs=nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.state(model))
    classifier = zoo.augment(model, *images(60, 0), *images(40, 1), batch_size=16)
    new, labels = images(30, 2)
    assert np.mean(classifier.predictions(new) == labels) > 0.8
    probabilities = classifier.probabilities(new)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert probabilities[labels == 1, 1].mean() > probabilities[labels == 0, 1].mean() + 0.3
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


def test_features_do_not_depend_on_the_batch():
    model = build(CONFIGS["resnet"], rngs=nnx.Rngs(0))
    pixels, _ = images(7, 0)
    one, other = penultimate(model, pixels, 3), penultimate(model, pixels, 16)
    assert one.shape == (7, 8)
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_models_of_text_and_no_images_are_refused():
    config = zoo.presets()["gemma2-nano"]
    text = nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match="Gemma2 gives no features of images"):
        penultimate(text, np.zeros((1, 1, 16, 16)))
    with pytest.raises(ValueError, match="no image"):
        penultimate(build(CONFIGS["resnet"], rngs=nnx.Rngs(0)), np.zeros((0, 1, 16, 16)))
