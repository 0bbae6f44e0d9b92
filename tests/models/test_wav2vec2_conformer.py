"""wav2vec 2.0's conformer computes what transformers does."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from tests.marks import all_but
from tests.models.encoder_folders import GOLDENS, assert_export_repeats, encoder_folder, run
from zoo.errors import UserError
from zoo.interop import load_huggingface
from zoo.interop.architectures import config_from_huggingface
from zoo.models.wav2vec2_conformer import Wav2Vec2Conformer
from zoo.nn import Execution

TOLERANCE = 2e-4
FOLDERS = ("wav2vec2_conformer", "wav2vec2-conformer-tiny")


@pytest.mark.parametrize("name", all_but([FOLDERS[0]], list(FOLDERS)))
def test_hidden_states_are_those_of_transformers(name):
    folder, expected = encoder_folder(name)
    model, samples = load_huggingface(folder), expected["input_values"]
    np.testing.assert_allclose(run(model, "__call__", samples), expected["last_hidden_state"], atol=TOLERANCE)
    np.testing.assert_allclose(run(model, "hidden_states", samples), expected["hidden_states"], atol=TOLERANCE)
    np.testing.assert_allclose(run(model, "extract_features", samples), expected["extract_features"], atol=TOLERANCE)


@pytest.mark.parametrize("name", all_but([FOLDERS[0]], list(FOLDERS)))
def test_an_export_repeats_every_tensor_unused_ones_too(name, tmp_path):
    folder, _ = encoder_folder(name)
    model = load_huggingface(folder, execution=Execution(scan_layers=True))
    assert_export_repeats(model, folder, tmp_path / "copy")


@pytest.mark.parametrize("name", all_but([FOLDERS[0]], list(FOLDERS)))
def test_the_number_of_parameters_is_that_of_the_model(name):
    folder, _ = encoder_folder(name)
    config = config_from_huggingface(json.loads((folder / "config.json").read_text()))
    state = nnx.state(nnx.eval_shape(lambda: Wav2Vec2Conformer(config, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters()


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("num_heads", 3, "multiple of num_heads=3"),
        ("conv_kernel_size", 4, "conv_kernel_size must be odd"),
        ("front_strides", (1,), "do not fit"),
    ],
)
def test_an_impossible_config_is_refused_by_name(field, value, problem):
    config = config_from_huggingface(json.loads((GOLDENS / FOLDERS[0] / "config.json").read_text()))
    with pytest.raises(UserError, match=problem):
        replace(config, **{field: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position_embeddings_type", "rotary"),
        ("feat_extract_norm", "group"),
        ("add_adapter", True),
        ("conv_stride", [1]),
        ("conv_kernel", [5, 0]),
    ],
)
def test_a_folder_that_asks_for_something_else_is_refused_by_key(key, value):
    values = json.loads((GOLDENS / FOLDERS[0] / "config.json").read_text())
    with pytest.raises(UserError, match="conv_dim" if key == "conv_stride" else key):
        config_from_huggingface(values | {key: value})
