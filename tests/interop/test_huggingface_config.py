import json
from dataclasses import replace

import pytest

from zoo.errors import UserError
from zoo.interop.architectures import config_from_huggingface, config_to_huggingface
from zoo.interop.config_fields import read_json_object, smallest_pattern
from zoo.models import gemma2, preset


@pytest.fixture
def values(golden_dir) -> dict:
    """The config.json that transformers 5 wrote for the golden."""
    return json.loads((golden_dir / "config.json").read_text())


def legacy(values: dict) -> dict:
    """The same in the style of transformers 4.42: what the released checkpoints carry."""
    old = {
        k: v for k, v in values.items() if k not in ("layer_types", "rope_parameters", "dtype", "tie_word_embeddings")
    }
    return old | {
        "rope_theta": values["rope_parameters"]["rope_theta"],
        "torch_dtype": "float32",
        "hidden_act": "gelu_pytorch_tanh",
        "cache_implementation": "hybrid",
    }


def test_both_styles_describe_the_same_architecture(values):
    config = config_from_huggingface(values)
    assert config == config_from_huggingface(legacy(values))
    assert (config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim) == (32, 4, 2, 12)
    assert (config.query_pre_attn_scalar, config.sliding_window, config.rope_theta) == (8, 6, 10_000)
    assert config.layer_types == ("local", "global")


@pytest.mark.parametrize("name", ["gemma2-tiny", "gemma2-tiny-b"])
def test_the_legacy_config_of_a_fixture_is_the_new_one(shared_dir, name):
    folder = shared_dir / "fixtures" / name
    if not (folder / "config.legacy.json").is_file():
        pytest.skip(f"optional test data: no {folder}")
    new, old = (config_from_huggingface(read_json_object(folder / f"config{kind}.json")) for kind in ("", ".legacy"))
    assert new == old


@pytest.mark.parametrize("name", gemma2.PRESETS)
def test_every_preset_survives_the_way_there_and_back(name):
    config = preset(name)
    written = json.loads(json.dumps(config_to_huggingface(config, "bfloat16")))
    assert config_from_huggingface(written) == config
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"]


def test_soft_caps_may_be_switched_off(values):
    config = config_from_huggingface(values | {"attn_logit_softcapping": None, "final_logit_softcapping": None})
    assert (config.attn_logit_soft_cap, config.final_logit_soft_cap) == (None, None)
    assert config_from_huggingface(config_to_huggingface(config, "float32")) == config


@pytest.mark.parametrize(
    ("types", "pattern"),
    [
        ("lglg", "lg"),
        ("lglgl", "lg"),
        ("gggg", "g"),
        ("llgllg", "llg"),
        ("llgllgl", "llg"),
        ("glgg", "glg"),
        ("llll", "l"),
        ("lllg", "lllg"),
    ],
)
def test_the_pattern_is_the_shortest_that_repeats(types, pattern):
    assert "".join(smallest_pattern(types)) == pattern


def test_layer_types_become_the_repeating_pattern(values):
    order = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    config = config_from_huggingface(values | {"layer_types": order})
    assert config.layer_types == ("global", "local", "local")
    assert config_to_huggingface(config, "float32")["layer_types"] == order


REFUSED = [
    ("model_type", "llama", "'llama' is not supported (supported: gemma2"),
    ("model_type", None, "supported: gemma2"),
    ("architectures", ["Gemma2ForSequenceClassification"], "Gemma2ForSequenceClassification"),
    ("hidden_activation", "gelu", "gelu_pytorch_tanh"),
    ("hidden_activation", "silu", "hidden_activation"),
    ("attention_bias", True, "attention_bias"),
    ("attention_dropout", 0.1, "attention_dropout"),
    ("use_bidirectional_attention", True, "use_bidirectional_attention"),
    ("tie_word_embeddings", False, "tie_word_embeddings"),
    ("quantization_config", {"bits": 4}, "quantization_config"),
    ("rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling"),
    ("rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "rope_type"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4, "factor": 2.0}, "factor"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}, "partial_rotary"),
    ("rope_parameters", {"full_attention": {"rope_theta": 1e4}}, "rope_parameters"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 0}, "rope_theta"),
    ("partial_rotary_factor", 0.5, "partial_rotary_factor"),
    ("layer_types", ["sliding_attention"], "num_hidden_layers = 4"),
    ("layer_types", ["chunked_attention"] * 4, "'chunked_attention'"),
    ("num_attention_heads", 3, "not a multiple of num_key_value_heads"),
    ("head_dim", 7, "odd"),
    ("hidden_size", -1, "hidden_size"),
    ("hidden_size", 32.0, "whole number"),
    ("hidden_size", "32", "whole number"),
    ("hidden_size", True, "whole number"),
    ("hidden_size", 10**12, "whole number"),
    ("num_hidden_layers", 10**9, "num_hidden_layers"),
    ("vocab_size", 0, "vocab_size"),
    ("sliding_window", None, "sliding_window"),
    ("rms_norm_eps", "small", "rms_norm_eps"),
    ("rms_norm_eps", float("nan"), "rms_norm_eps"),
    ("query_pre_attn_scalar", 0, "query_pre_attn_scalar"),
    ("attn_logit_softcapping", -50.0, "attn_logit_softcapping"),
    ("attn_logit_softcapping", float("inf"), "attn_logit_softcapping"),
    ("eos_token_id", [1, 128], "eos_token_id"),
    ("eos_token_id", "1", "eos_token_id"),
    ("pad_token_id", -1, "pad_token_id"),
    ("bos_token_id", 2.5, "bos_token_id"),
    ("auto_map", {"AutoModel": "custom.Model"}, "auto_map"),
]


@pytest.mark.parametrize(("key", "value", "said"), REFUSED)
def test_what_would_change_the_function_is_refused_by_name(values, key, value, said):
    with pytest.raises(UserError) as raised:
        config_from_huggingface(values | {key: value}, "folder/config.json")
    message = str(raised.value)
    assert said in message
    assert message.startswith("folder/config.json")
    assert "\n" not in message


NEEDED = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_activation",
    "rms_norm_eps",
    "query_pre_attn_scalar",
    "sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "max_position_embeddings",
]


@pytest.mark.parametrize("key", NEEDED)
def test_a_missing_key_is_named(values, key):
    del values[key]
    with pytest.raises(UserError, match=f"'{key}' is missing"):
        config_from_huggingface(values)


def test_a_missing_rope_base_is_named(values):
    del values["rope_parameters"]
    with pytest.raises(UserError, match="'rope_theta' is missing"):
        config_from_huggingface(values)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_a_file_that_is_no_json_object_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="config.json"):
        read_json_object(path)


def test_what_transformers_refuses_to_open_is_not_written():
    with pytest.raises(UserError, match="whole numbers"):
        config_to_huggingface(replace(preset("gemma2-nano"), query_pre_attn_scalar=12.5), "float32")
    with pytest.raises(UserError, match="multiple of num_heads"):
        config_to_huggingface(replace(preset("gemma2-nano"), embed_dim=190), "float32")
