"""ResNet and DenseNet compute what transformers and torchvision do, at inference and in a step of training."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import zoo
from tests.goldens.drawn_weights import drawn_images, drawn_weights
from tests.marks import slow
from tests.models.encoder_folders import assert_export_repeats, run
from zoo.interop import load_torchvision
from zoo.interop.parameters import parameter_name
from zoo.interop.resnet_names import huggingface_places, sizes_of
from zoo.interop.torchvision import densenet_places
from zoo.models.densenet import DensenetConfig
from zoo.nn.convolution import STATISTICS

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
FOLDERS = (
    "resnet_basic",
    "resnet_bottleneck",
    "torchvision_resnet_basic",
    "torchvision_resnet_bottleneck",
    "torchvision_densenet",
)
TOLERANCE = 1e-4


def opened(name: str, folder: Path):
    """(our model, images, what the public implementation computes) of a golden, whose weights are drawn into a folder
    as its library would have written it."""
    golden = GOLDENS / "classifiers" / name
    network = json.loads((golden / "network.json").read_text())
    save_file(drawn_weights(network["tensors"], network["seed"]), folder / "model.safetensors")
    if (golden / "config.json").is_file():
        shutil.copy(golden / "config.json", folder)
    model = load_torchvision(folder) if name.startswith("torchvision") else zoo.load(folder).model
    with np.load(golden / "expected.npz", allow_pickle=False) as expected:
        return model, drawn_images(network["pixel_values"], network["seed"] + 1), dict(expected)


@pytest.mark.parametrize("name", FOLDERS)
def test_features_and_logits_are_those_of_the_public_implementation(name, tmp_path):
    model, pixels, expected = opened(name, tmp_path)
    for method, key in (("features", "features"), ("__call__", "logits")):
        np.testing.assert_allclose(run(model, method, pixels), expected[key], rtol=0, atol=TOLERANCE, err_msg=key)


@pytest.mark.parametrize("name", FOLDERS[:2])
def test_an_export_has_the_tensors_and_the_configuration_that_transformers_wrote(name, tmp_path):
    model, *_ = opened(name, tmp_path)
    assert_export_repeats(model, tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["resnet_basic", "torchvision_densenet"])
def test_a_step_of_training_has_the_gradients_and_moved_statistics_of_torch(name, tmp_path):
    model, pixels, expected = opened(name, tmp_path)
    graphdef, params = nnx.split(model, nnx.Param)

    @jax.jit
    def step(params):
        def loss(params):
            model = nnx.merge(graphdef, params)
            logits = model(pixels, training=True)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), expected["labels"][:, None], axis=1)
            return -jnp.mean(chosen), (logits, nnx.state(model, nnx.Param))

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (logits, after)), gradients = step(params)
    np.testing.assert_allclose(loss, expected["training_loss"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(logits, expected["training_logits"], rtol=0, atol=TOLERANCE)
    config = model.config
    places = densenet_places(config) if isinstance(config, DensenetConfig) else huggingface_places(config)
    compared = set()
    for (path, moved), (_, slope) in zip(nnx.to_flat_state(after), nnx.to_flat_state(gradients)):
        place = places[parameter_name(path)]
        kind, value = ("after", moved) if path[-1] in STATISTICS else ("gradient", slope)
        key = f"{kind}/{place.name}"
        found, wanted = place.to_stored(np.asarray(value[...]), sizes_of(places)), expected[key]
        scale = max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * scale, err_msg=key)
        compared.add(key)
    assert compared == {key for key in expected if "/" in key}


@pytest.mark.parametrize(
    ("name", "preset"),
    slow(("resnet18", "resnet-18"), ("resnet50", "resnet-50"), ("densenet121", "densenet-121")),
)
def test_torchvisions_whole_networks_load_and_compute_the_same(name, preset, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `verify`)")
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed (extra `verify`)")
    theirs = torchvision.models.get_model(name, weights=None)
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    tensors = drawn_weights(shapes, 0)
    theirs.load_state_dict({key: torch.as_tensor(value) for key, value in tensors.items()})
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_torchvision(tmp_path)
    assert model.config == zoo.presets()[preset]
    pixels = drawn_images((2, 3, 96, 64), 1)
    with torch.no_grad():
        wanted = theirs.eval()(torch.as_tensor(pixels)).numpy()
    error = np.abs(run(model, "__call__", pixels) - wanted).max()
    assert error < TOLERANCE * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("script", ["make_classifier_goldens.py", "drawn_weights.py"])
def test_nothing_of_zoo_makes_the_goldens(script):
    text = (GOLDENS / script).read_text()
    assert "import zoo" not in text and "from zoo" not in text
