"""Whisper's encoder computes what transformers does."""

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
from zoo.models.whisper import WhisperConfig, WhisperEncoder
from zoo.nn import Execution

TOLERANCE = 2e-4
TINY = WhisperConfig(embed_dim=8, num_layers=2, num_heads=2, hidden_dim=12, num_mel_bins=6, max_positions=10)


@pytest.mark.parametrize("name", ["whisper", "whisper-encoder-tiny"])
def test_hidden_states_are_those_of_transformers(name):
    folder, expected = encoder_folder(name)
    model, features = load_huggingface(folder), expected["input_features"]
    np.testing.assert_allclose(run(model, "__call__", features), expected["last_hidden_state"], atol=TOLERANCE)
    np.testing.assert_allclose(run(model, "hidden_states", features), expected["hidden_states"], atol=TOLERANCE)


def test_scanned_layers_give_the_same_hidden_states():
    folder, expected = encoder_folder("whisper")
    model = load_huggingface(folder, execution=Execution(scan_layers=True, remat_policy="mlp"))
    last = run(model, "__call__", expected["input_features"])
    np.testing.assert_allclose(last, expected["last_hidden_state"], atol=TOLERANCE)


def test_positions_of_a_new_model_are_those_of_a_released_one():
    loaded = load_huggingface(GOLDENS / "whisper")
    new = build(loaded.config, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(new.position[...], loaded.position[...], atol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_an_export_repeats_every_tensor(scan, tmp_path):
    folder, _ = encoder_folder("whisper")
    model = load_huggingface(folder, execution=Execution(scan_layers=scan))
    assert_export_repeats(model, folder, tmp_path / "copy")


def test_presets_have_as_many_parameters_as_in_transformers():
    counts = json.loads((GOLDENS / "num_parameters.json").read_text())
    own = {name: config for name, config in presets().items() if isinstance(config, WhisperConfig)}
    assert len(own) == 5
    assert {name: config.num_parameters() for name, config in own.items()} == {name: counts[name] for name in own}


def test_the_number_of_parameters_is_that_of_the_model():
    state = nnx.state(nnx.eval_shape(lambda: WhisperEncoder(TINY, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == TINY.num_parameters()


def test_features_of_another_shape_are_refused():
    model = build(TINY, rngs=nnx.Rngs(0))
    for shape in ((1, 6, 19), (1, 5, 20), (6, 20)):
        with pytest.raises(ValueError, match=r"must be \[B, 6, 20\]"):
            model(jnp.zeros(shape))


def test_an_impossible_config_is_refused_by_name():
    with pytest.raises(UserError, match="multiple of num_heads=3"):
        replace(TINY, num_heads=3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_function", "relu"),
        ("encoder_attention_heads", 3),
        ("architectures", ["WhisperForConditionalGeneration"]),
    ],
)
def test_a_folder_that_asks_for_something_else_is_refused_by_key(key, value):
    values = json.loads((GOLDENS / "whisper" / "config.json").read_text())
    with pytest.raises(UserError, match=key):
        config_from_huggingface(values | {key: value})
