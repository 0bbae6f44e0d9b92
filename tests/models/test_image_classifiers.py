"""ResNet and DenseNet compute what a NumPy reference does, and public folders of weights load and are written."""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import zoo
from tests.models import convolution_reference as reference
from tests.models.encoder_folders import run
from zoo.errors import UserError
from zoo.interop import load_huggingface, load_torchvision, save_huggingface
from zoo.interop.architectures import config_from_huggingface, config_to_huggingface
from zoo.interop.places import read_stored, stored_sources
from zoo.interop.resnet_names import huggingface_places, sizes_of, torchvision_places
from zoo.interop.torchvision import densenet_places
from zoo.models import build
from zoo.models.densenet import DensenetConfig
from zoo.models.resnet import ResnetConfig
from zoo.nn.convolution import STATISTICS, BatchNorm, halved, max_pool
from zoo.nn.execution import Execution

BASIC = ResnetConfig(depths=(2, 1), widths=(8, 12), block="basic", stem_width=8, num_channels=1, num_classes=2)
BOTTLENECK = ResnetConfig(depths=(1, 2), widths=(8, 16), block="bottleneck", stem_width=4, num_classes=3)
DENSE = DensenetConfig(depths=(2, 1), growth=4, stem_width=6, bottleneck=2, num_channels=2, num_classes=3)
CONFIGS: dict[str, ResnetConfig | DensenetConfig] = {"basic": BASIC, "bottleneck": BOTTLENECK, "dense": DENSE}


def made_tensors(config, places, seed=0):
    """Random tensors under stored names; variances are above 0."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, source in stored_sources(places, sizes_of(places)).items():
        shape = source.place.stored_shape(sizes_of(places))
        values = rng.normal(0, 0.5, shape)
        tensors[name] = (np.abs(values) + 0.5 if name.endswith("running_var") else values).astype(np.float32)
    return tensors


def places_of(config):
    return torchvision_places(config) if isinstance(config, ResnetConfig) else densenet_places(config)


def torchvision_file(config, path):
    tensors = made_tensors(config, places_of(config))
    counter = {name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
               for name in tensors if name.endswith("running_mean")}  # fmt: skip
    save_file(tensors | counter, path)
    return tensors


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("sides", [(20, 13)])
def test_features_and_logits_are_those_of_the_reference(name, sides, tmp_path):
    config = CONFIGS[name]
    tensors = torchvision_file(config, tmp_path / "model.safetensors")
    model = load_torchvision(tmp_path)
    assert model.config == config
    pixels = np.random.default_rng(1).normal(size=(2, config.num_channels, *sides)).astype(np.float32)
    compute = reference.densenet if name == "dense" else reference.resnet
    features, logits = compute({k: v.astype(np.float64) for k, v in tensors.items()}, pixels.astype(np.float64))
    np.testing.assert_allclose(run(model, "features", pixels), features, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(model, "__call__", pixels), logits, rtol=1e-4, atol=1e-4)


def test_a_huggingface_folder_loads_and_an_export_repeats_it(tmp_path):
    """Same values under both public names: the two maps name the same parameters."""
    for config in (BASIC, BOTTLENECK):
        torchvision_file(config, tmp_path / "model.safetensors")
        model = load_torchvision(tmp_path / "model.safetensors")
        folder = tmp_path / config.block
        save_huggingface(model, folder)
        again = zoo.load(folder).model
        assert again.config == config
        for (path, one), (_, other) in zip(nnx.to_flat_state(nnx.state(model)), nnx.to_flat_state(nnx.state(again))):
            np.testing.assert_array_equal(one[...], other[...], err_msg=str(path))
    names = set(load_file(folder / "model.safetensors"))
    assert {
        "resnet.embedder.embedder.convolution.weight",
        "resnet.embedder.embedder.normalization.running_var",
        "resnet.encoder.stages.1.layers.0.shortcut.normalization.weight",
        "resnet.encoder.stages.1.layers.1.layer.2.convolution.weight",
        "resnet.encoder.stages.0.layers.0.layer.0.normalization.num_batches_tracked",
        "classifier.1.bias",
    } <= names
    assert json.loads((folder / "config.json").read_text())["model_type"] == "resnet"


def test_a_folder_without_a_classifier_gives_features_alone(tmp_path):
    bare = build(replace(BASIC, num_classes=0), rngs=nnx.Rngs(0))
    save_huggingface(bare, tmp_path / "bare")
    model = load_huggingface(tmp_path / "bare")
    assert model.config.num_classes == 0 and run(model, "features", jnp.zeros((1, 1, 16, 16))).shape == (1, 12)
    assert "embedder.embedder.convolution.weight" in load_file(tmp_path / "bare" / "model.safetensors")
    with pytest.raises(ValueError, match="no classifier"):
        model(jnp.zeros((1, 1, 16, 16)))


def test_presets_have_the_published_numbers_of_parameters():
    """Trained by gradients, as torchvision's pages give them; the norms' statistics are counted apart."""
    published = {
        "resnet-18": 11_689_512,
        "resnet-34": 21_797_672,
        "resnet-50": 25_557_032,
        "resnet-101": 44_549_160,
        "resnet-152": 60_192_808,
        "densenet-121": 7_978_856,
        "densenet-161": 28_681_000,
        "densenet-169": 14_149_480,
        "densenet-201": 20_013_928,
    }
    for name, count in published.items():
        config = zoo.presets()[name]
        places = places_of(config)
        sizes = sizes_of(places)
        statistics = sum(p.stored_shape(sizes)[0] for p in places.values() if re.search("running_(mean|var)", p.name))
        assert config.num_parameters() - statistics == count, name


@pytest.mark.parametrize("name", CONFIGS)
def test_the_number_of_parameters_is_that_of_the_model_and_every_one_has_a_place(name):
    config = CONFIGS[name]
    state = nnx.state(nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters()
    ours = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}
    assert ours == set(places_of(config))
    if isinstance(config, ResnetConfig):
        assert ours == set(huggingface_places(config))


def test_old_names_of_densenets_are_read(tmp_path):
    tensors = torchvision_file(DENSE, tmp_path / "new.safetensors")
    old = {re.sub(r"(denselayer\d\.(?:norm|conv))(\d)", r"\1.\2", name): value for name, value in tensors.items()}
    assert set(old) != set(tensors)
    save_file(old, tmp_path / "old.safetensors")
    new, found = (nnx.state(load_torchvision(tmp_path / f"{name}.safetensors")) for name in ("new", "old"))
    jax.tree.map(np.testing.assert_array_equal, new, found)


def test_wrong_files_are_refused_with_their_name(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = torchvision_file(BOTTLENECK, path)
    wide = dict(tensors) | {"layer1.0.conv1.weight": np.zeros((4, 4, 1, 1), np.float32)}
    for wrong, message in [
        ({k: v for k, v in tensors.items() if k != "layer2.1.bn2.bias"}, "layer2.1.bn2.bias is missing"),
        (tensors | {"layer1.0.se.weight": np.zeros(1, np.float32)}, "unexpected tensor layer1.0.se.weight"),
        (wide, "layer1.0.conv1.weight has shape"),
        ({"encoder.weight": np.zeros(1, np.float32)}, "no ResNet or DenseNet"),
    ]:
        save_file(wrong, path)
        with pytest.raises(UserError, match=message) as refused:
            load_torchvision(path)
        assert str(path) in str(refused.value)
    with pytest.raises(UserError, match="no such file"):
        load_torchvision(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("layer_type", "other"),
        ("depths", [1]),
        ("hidden_sizes", "all"),
        ("downsample_in_bottleneck", True),
        ("architectures", ["ResNetBackbone"]),
        ("id2label", {}),
    ],
)
def test_a_folder_that_asks_for_something_else_is_refused_by_key(key, value):
    values = config_to_huggingface(BOTTLENECK, "float32")
    assert config_from_huggingface(values) == BOTTLENECK
    with pytest.raises(UserError, match=key):
        config_from_huggingface(values | {key: value})


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (BASIC, {"depths": (1,)}, "a depth"),
        (BASIC, {"block": "other"}, "basic or bottleneck"),
        (BOTTLENECK, {"widths": (8, 10)}, "multiples of 4"),
        (DENSE, {"growth": 0}, "growth"),
        (DENSE, {"depths": ()}, "one or more layers"),
    ],
)
def test_an_impossible_config_is_refused_by_name(config, fields, message):
    with pytest.raises(UserError, match=message):
        replace(config, **fields)


def test_images_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="1 channels"):
        build(BASIC, rngs=nnx.Rngs(0)).features(jnp.zeros((1, 3, 16, 16)))
    assert DENSE.smallest_side == 5
    dense = build(DENSE, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="at least 5 pixels"):
        dense.features(jnp.zeros((1, 2, 4, 8)))
    assert np.isfinite(run(dense, "features", jnp.zeros((1, 2, 5, 5)))).all()


# Training


def test_a_norm_in_training_uses_the_batch_and_keeps_a_moving_mean():
    norm = BatchNorm(3, execution=Execution(), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(3, 2, (4, 5, 6, 3)).astype(np.float32)
    out = np.asarray(norm(jnp.asarray(x), True))
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.var((0, 1, 2)), 1, atol=1e-3)
    flat = x.reshape(-1, 3)
    np.testing.assert_allclose(norm.mean[...], 0.1 * flat.mean(0), rtol=1e-4)
    np.testing.assert_allclose(norm.variance[...], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-4)
    kept = np.asarray(norm.mean[...])
    wanted = (x - kept) / np.sqrt(np.asarray(norm.variance[...]) + 1e-5)
    np.testing.assert_allclose(norm(jnp.asarray(x)), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(norm.mean[...], kept)


def test_a_batch_on_several_devices_has_the_statistics_of_all_its_rows():
    graphdef, params = nnx.split(BatchNorm(2, execution=Execution(), rngs=nnx.Rngs(0)))
    pixels = jax.random.normal(jax.random.key(0), (8, 3, 3, 2)) * jnp.arange(1, 9)[:, None, None, None]
    rows = jax.sharding.NamedSharding(jax.make_mesh((8,), ("data",)), jax.sharding.PartitionSpec("data"))
    run = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x, True))
    np.testing.assert_allclose(run(params, jax.device_put(pixels, rows)), run(params, pixels), atol=1e-5)


def test_in_training_every_parameter_gets_a_gradient_and_statistics_get_new_values():
    graphdef, params = nnx.split(build(BASIC, rngs=nnx.Rngs(0)), nnx.Param)
    pixels = jax.random.normal(jax.random.key(0), (4, 1, 16, 16))

    @jax.jit
    def gradient(params):
        def loss(params):
            model = nnx.merge(graphdef, params)
            value = jnp.sum(jax.nn.log_softmax(model(pixels, training=True))[:, 0])
            return value, nnx.state(model, nnx.Param)

        return jax.grad(loss, has_aux=True)(params)

    gradients, after = gradient(params)
    flat = zip(nnx.to_flat_state(gradients), nnx.to_flat_state(after), nnx.to_flat_state(params))
    for (path, slope), (_, new), (_, old) in flat:
        statistic = path[-1] in STATISTICS
        assert (np.abs(slope[...]).max() > 0) != statistic, path
        assert (np.asarray(new[...]) != np.asarray(old[...])).any() == statistic, path


def test_pools_are_their_definitions():
    x = np.random.default_rng(0).normal(size=(2, 3, 7, 6)).astype(np.float32)
    found = max_pool(jnp.moveaxis(x, 1, -1))
    np.testing.assert_array_equal(np.moveaxis(np.asarray(found), -1, 1), reference.max_pooled(x).astype(np.float32))
    found = np.asarray(halved(jnp.moveaxis(x, 1, -1)))
    np.testing.assert_allclose(found[1, 2, 1], x[1, :, 4:6, 2:4].mean((1, 2)), rtol=1e-5)
    assert found.shape == (2, 3, 3, 3)


def test_stored_places_are_read_back(tmp_path):
    """A parameter goes to its place and comes back the same."""
    config = BOTTLENECK
    torchvision_file(config, tmp_path / "model.safetensors")
    model = load_torchvision(tmp_path)
    ours = {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}
    places, stored = torchvision_places(config), load_file(tmp_path / "model.safetensors")
    for name, source in stored_sources(places, sizes_of(places)).items():
        written = read_stored(source, sizes_of(places), lambda mine, _: ours[mine])
        np.testing.assert_array_equal(written, stored[name], err_msg=name)
