"""Parakeet's encoder computes what transformers does, with and without padding."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.marks import all_but
from tests.models.encoder_folders import GOLDENS, assert_export_repeats, encoder_folder, run
from zoo.errors import UserError
from zoo.interop import load_huggingface
from zoo.interop.architectures import config_from_huggingface
from zoo.models import build
from zoo.models.parakeet import Parakeet, ParakeetConfig
from zoo.nn import Execution

TOLERANCE = 2e-4
FOLDERS = ("parakeet", "parakeet-encoder-tiny")
TINY = ParakeetConfig(
    embed_dim=8, num_layers=1, num_heads=2, hidden_dim=12, num_mel_bins=8, subsampling_factor=4, subsampling_channels=3
)


@pytest.mark.parametrize("name", all_but([FOLDERS[0]], list(FOLDERS)))
def test_hidden_states_are_those_of_transformers(name):
    folder, expected = encoder_folder(name)
    model, features = load_huggingface(folder), expected["input_features"]
    np.testing.assert_allclose(run(model, "__call__", features), expected["last_hidden_state"], atol=TOLERANCE)
    np.testing.assert_allclose(run(model, "hidden_states", features), expected["hidden_states"], atol=TOLERANCE)


@pytest.mark.parametrize("name", all_but([FOLDERS[0]], list(FOLDERS)))
def test_with_padding_hidden_states_and_mask_are_those_of_transformers(name):
    folder, expected = encoder_folder(name)
    model, mask = load_huggingface(folder, execution=Execution(scan_layers=True)), expected["attention_mask"]
    last = run(model, "__call__", expected["input_features"], mask)
    np.testing.assert_allclose(last, expected["last_hidden_state_masked"], atol=TOLERANCE)
    np.testing.assert_array_equal(model.output_mask(jnp.asarray(mask)), expected["output_mask"])


@pytest.mark.slow
def test_real_frames_see_one_frame_of_padding_and_no_more():
    model = build(TINY, rngs=nnx.Rngs(0))
    mel = jax.random.normal(jax.random.key(0), (1, 24, 8))
    mask = (jnp.arange(24) < 13)[None].astype(jnp.int32)
    one = run(model, "__call__", mel, mask)
    other = run(model, "__call__", mel.at[:, 14:].set(9.0), mask)
    real = np.asarray(model.output_mask(mask))
    assert real.sum() == 4
    np.testing.assert_array_equal(one[real], other[real])


@pytest.mark.parametrize("scan", [False, True])
def test_an_export_repeats_every_tensor_and_counter(scan, tmp_path):
    folder, _ = encoder_folder("parakeet")
    model = load_huggingface(folder, execution=Execution(scan_layers=scan))
    assert_export_repeats(model, folder, tmp_path / "copy")


def test_the_number_of_parameters_is_that_of_the_model():
    state = nnx.state(nnx.eval_shape(lambda: Parakeet(TINY, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == TINY.num_parameters()


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("num_heads", 3, "multiple of num_heads=3"),
        ("conv_kernel_size", 4, "conv_kernel_size must be odd"),
        ("subsampling_factor", 6, "power of two"),
        ("num_mel_bins", 10, "not a multiple of 4"),
    ],
)
def test_an_impossible_config_is_refused_by_name(field, value, problem):
    with pytest.raises(UserError, match=problem):
        replace(TINY, **{field: value})


@pytest.mark.parametrize(
    ("key", "value"), [("attention_bias", False), ("hidden_act", "relu"), ("num_key_value_heads", 1)]
)
def test_a_folder_that_asks_for_something_else_is_refused_by_key(key, value):
    values = json.loads((GOLDENS / "parakeet" / "config.json").read_text())
    with pytest.raises(UserError, match=key):
        config_from_huggingface(values | {key: value})
