"""Mixtral, Qwen3-MoE and gpt-oss folders in and out: config.json in both styles, every bit of every tensor."""

import json
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx

from tests.marks import slow
from zoo.errors import UserError
from zoo.interop import load, load_run, save_deepmind, save_huggingface, save_run
from zoo.interop.architectures import config_from_huggingface, config_to_huggingface
from zoo.interop.safetensors_folder import SafetensorsFolder
from zoo.models import gpt_oss, mixtral, preset, qwen3_moe
from zoo.nn import Execution

FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss")
PRESETS = {**mixtral.PRESETS, **qwen3_moe.PRESETS, **gpt_oss.PRESETS}


@pytest.fixture
def folder(repository, request):
    return repository / "tests" / "goldens" / request.param


def values_of(repository, family: str) -> dict:
    return json.loads((repository / "tests" / "goldens" / family / "config.json").read_text())


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("folder", FAMILIES, indirect=True)
def test_an_export_has_the_bits_of_the_folder_it_came_from(folder, scan_layers, tmp_path):
    model = load(folder, execution=Execution(scan_layers=scan_layers), param_dtype="stored").model
    save_huggingface(model, tmp_path / "out")
    written, original = SafetensorsFolder(tmp_path / "out"), SafetensorsFolder(folder)
    assert sorted(written.tensors) == sorted(original.tensors)
    for name, tensor in original.tensors.items():
        assert written.tensors[name].shape == tensor.shape
        assert written.tensors[name].dtype == tensor.dtype == "bfloat16"
        np.testing.assert_array_equal(written.read(name), original.read(name))
    assert load(tmp_path / "out").config == model.config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_the_way_there_and_back(name):
    written = json.loads(json.dumps(config_to_huggingface(preset(name), "bfloat16")))
    assert config_from_huggingface(written) == preset(name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_older_style_is_the_same_architecture(repository, family):
    values = values_of(repository, family)
    old = dict(values)
    rope = dict(old.pop("rope_parameters"))
    old["rope_theta"] = rope.pop("rope_theta")
    if family == "gpt_oss":
        old["rope_scaling"] = rope
    if "num_local_experts" in old and family == "qwen3_moe":
        old["num_experts"] = old.pop("num_local_experts")
    assert config_from_huggingface(old) == config_from_huggingface(values)


REFUSED = [
    ("mixtral", "hidden_act", "gelu", "hidden_act"),
    ("mixtral", "tie_word_embeddings", True, "tie_word_embeddings"),
    ("mixtral", "num_experts_per_tok", 9, "more than the 4 experts"),
    ("mixtral", "num_local_experts", 0, "num_local_experts"),
    ("mixtral", "sliding_window", -1, "sliding_window"),
    ("mixtral", "rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "rope_type"),
    ("qwen3_moe", "attention_bias", True, "attention_bias"),
    ("qwen3_moe", "norm_topk_prob", "yes", "norm_topk_prob"),
    ("qwen3_moe", "mlp_only_layers", [7], "mlp_only_layers"),
    ("qwen3_moe", "mlp_only_layers", [0, 1], "no sparse layer"),
    ("gpt_oss", "attention_bias", False, "attention_bias"),
    ("gpt_oss", "swiglu_limit", 5.0, "swiglu_limit"),
    ("gpt_oss", "layer_types", ["chunked_attention"] * 2, "chunked_attention"),
    ("gpt_oss", "quantization_config", {"quant_method": "mxfp4"}, "mxfp4"),
    ("gpt_oss", "rope_parameters", {"rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4}, "rope_type"),
]


@pytest.mark.parametrize(("family", "key", "value", "said"), REFUSED)
def test_what_would_change_the_function_is_refused_by_name(repository, family, key, value, said):
    with pytest.raises(UserError) as raised:
        config_from_huggingface(values_of(repository, family) | {key: value}, "folder/config.json")
    message = str(raised.value)
    assert said in message
    assert message.startswith("folder/config.json")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b", "gpt-oss-20b"])
def test_experts_that_transformers_does_not_compute_are_not_written(name):
    config = preset(name)
    for change in ({"routing": "sigmoid_topk"}, {"activation": "gelu_tanh"}, {"shared_hidden_dim": 8}):
        with pytest.raises(UserError, match=f"model.experts.({next(iter(change))}|has_selection_bias)"):
            config_to_huggingface(replace(config, experts=replace(config.experts, **change)), "float32")


def test_experts_of_unequal_dtypes_and_missing_ones_are_named(repository, tmp_path):
    from safetensors.numpy import load_file, save_file

    source = repository / "tests" / "goldens" / "mixtral"
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    save_file(tensors | {name: tensors[name].astype(np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"experts\.2\.w3\.weight is stored as float32"):
        load(tmp_path)
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"experts\.2\.w3\.weight is missing"):
        load(tmp_path)


@pytest.mark.parametrize("folder", ["gpt_oss", *slow("mixtral", "qwen3_moe")], indirect=True)
def test_a_run_of_ours_holds_the_same_model_in_either_layout(folder, tmp_path):
    model = load(folder).model
    save_run(model, tmp_path / "run")
    for scan_layers in (False, True):
        again = load_run(tmp_path / "run", execution=Execution(scan_layers=scan_layers))
        save_huggingface(again, tmp_path / str(scan_layers))
        written, original = SafetensorsFolder(tmp_path / str(scan_layers)), SafetensorsFolder(folder)
        for name in original.tensors:
            np.testing.assert_array_equal(written.read(name), original.read(name).astype(np.float32))


def test_a_deepmind_tree_holds_no_mixtral(repository, tmp_path):
    model = load(repository / "tests" / "goldens" / "mixtral").model
    with pytest.raises(UserError, match="is a Mixtral"):
        save_deepmind(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_weights_on_a_mesh_are_those_of_one_device(repository):
    from zoo.parallel import MeshConfig, make_mesh

    folder = repository / "tests" / "goldens" / "mixtral"
    whole = load(folder).model
    spread = load(folder, mesh=make_mesh(MeshConfig(expert=2, tensor=2))).model
    gate = spread.layers[0].mlp.gate.get_value()
    assert len(gate.sharding.device_set) == 8
    assert gate.addressable_shards[0].data.shape[0] == 2
    for one, other in zip(nnx.to_flat_state(nnx.state(spread)), nnx.to_flat_state(nnx.state(whole)), strict=True):
        np.testing.assert_array_equal(one[1].get_value(), other[1].get_value())
