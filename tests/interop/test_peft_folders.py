"""LoRA folders of the library peft: one written by hand, one of ours read by hand, and every way of being wrong."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from tests.peft.small import CONFIG, LORA, PREFIX, logits, random_adapter, sparse_model
from zoo.errors import UserError
from zoo.interop import load, load_adapter, save_adapter, save_huggingface, save_peft
from zoo.models import BertConfig, build, preset
from zoo.peft import PeftConfig, base_fingerprint, merged, with_adapters

RANK, ALPHA = 2, 5.0


@pytest.fixture(scope="module")
def base():
    return build(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder, its tensors) as peft writes a LoRA of q_proj and o_proj of all layers, by hand."""
    draw, folder = np.random.default_rng(3), tmp_path_factory.mktemp("peft") / "lora"
    folder.mkdir()
    tensors = {}
    for layer in range(CONFIG.num_layers):
        for module, inner, out in (("q_proj", 16, 32), ("o_proj", 32, 16)):
            path = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{path}.lora_A.weight"] = draw.normal(size=(RANK, inner)).astype(np.float32)
            tensors[f"{path}.lora_B.weight"] = 0.3 * draw.normal(size=(out, RANK)).astype(np.float32)
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "target_modules": ["o_proj", "q_proj"],
        "base_model_name_or_path": "somewhere/else",
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "use_dora": False,
        "megatron_core": "megatron.core",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    return folder, tensors


def changed_by_hand(base, tensors, scale):
    """The base with W + scale * B . A in place of q_proj and o_proj, both as torch keeps them: [out, in]."""
    model = nnx.merge(*nnx.split(base))
    for layer in range(CONFIG.num_layers):
        attention, path = model.layers[layer].attention, f"base_model.model.model.layers.{layer}.self_attn"
        change = {
            module: scale * tensors[f"{path}.{module}.lora_B.weight"] @ tensors[f"{path}.{module}.lora_A.weight"]
            for module in ("q_proj", "o_proj")
        }
        query = change["q_proj"].reshape(4, 8, 16).transpose(2, 0, 1)  # (N H) D -> D N H
        output = change["o_proj"].reshape(16, 4, 8).transpose(1, 2, 0)  # D (N H) -> N H D
        attention.query = nnx.Param(attention.query[...] + query, axes=attention.query.get_metadata("axes"))
        attention.output = nnx.Param(attention.output[...] + output, axes=attention.output.get_metadata("axes"))
    return model


def test_a_folder_written_by_hand_has_pefts_names_and_orientation(base, written):
    folder, tensors = written
    adapter = load_adapter(folder, base)
    wanted = logits(changed_by_hand(base, tensors, ALPHA / RANK))
    np.testing.assert_allclose(logits(with_adapters(base, [adapter])), wanted, atol=3e-5)
    assert np.abs(wanted - logits(base)).max() > 0.1


def test_rank_stabilised_scaling_is_alpha_over_the_root(base, written, tmp_path):
    shutil.copytree(written[0], tmp_path / "lora")
    change(tmp_path / "lora", use_rslora=True)
    wanted = logits(changed_by_hand(base, written[1], ALPHA / RANK**0.5))
    np.testing.assert_allclose(logits(merged(base, [load_adapter(tmp_path / "lora", base)])), wanted, atol=3e-5)


def test_a_text_of_targets_is_a_regular_expression_and_layers_may_be_chosen(base, written, tmp_path):
    folder = tmp_path / "lora"
    shutil.copytree(written[0], folder)
    change(folder, target_modules=r"model\.layers\.\d+\.self_attn\.(q|o)_proj")
    wanted = logits(with_adapters(base, [load_adapter(written[0], base)]))
    np.testing.assert_array_equal(logits(with_adapters(base, [load_adapter(folder, base)])), wanted)
    change(folder, target_modules=["q_proj", "o_proj"], layers_to_transform=[])  # as if it were not there
    assert len(load_adapter(folder, base).values) == 16
    kept = {name: value for name, value in written[1].items() if ".layers.1." in name or ".layers.3." in name}
    safetensors.numpy.save_file(kept, folder / "adapter_model.safetensors")
    change(folder, layers_to_transform=[1, 3])
    assert len(load_adapter(folder, base).values) == 8


def test_what_we_write_is_what_was_read(base, written, tmp_path):
    folder, tensors = written
    save_peft(load_adapter(folder, base), tmp_path / "again", config=CONFIG)
    found = safetensors.numpy.load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 5, ["o_proj", "q_proj"])
    assert config["base_model_name_or_path"] == "somewhere/else" and config["peft_type"] == "LORA"


def test_a_part_of_the_layers_is_named_by_whole_paths(base, tmp_path):
    adapter = random_adapter(base, PeftConfig("lora", target=("layers/2/attention/query", "down")))
    save_peft(adapter, tmp_path / "lora", config=CONFIG)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "model.layers.2.self_attn.q_proj"]
    again = load_adapter(tmp_path / "lora", base)
    assert again.values.keys() == adapter.values.keys()


def test_experts_are_one_module_each(tmp_path):
    model = sparse_model("mixtral-8x7b")
    adapter = random_adapter(model, PeftConfig("lora", rank=2, target=("gate",)))
    save_peft(adapter, tmp_path / "lora", config=model.config)
    found = safetensors.numpy.load_file(tmp_path / "lora" / "adapter_model.safetensors")
    one = found["base_model.model.model.layers.1.block_sparse_moe.experts.3.w1.lora_A.weight"]
    np.testing.assert_array_equal(one, adapter.values["layers/1/mlp/gate_lora_a"][3].T)
    np.testing.assert_array_equal(
        load_adapter(tmp_path / "lora", model).values["layers/1/mlp/gate_lora_b"],
        adapter.values["layers/1/mlp/gate_lora_b"],
    )
    stabilised = random_adapter(model, PeftConfig("lora", rank=4, alpha=6.0, rslora=True, target=("gate",)))
    save_peft(stabilised, tmp_path / "stabilised", config=model.config)
    written = json.loads((tmp_path / "stabilised" / "adapter_config.json").read_text())
    assert (written["lora_alpha"], written["use_rslora"]) == (12, False)  # 6 / sqrt(4) = 12 / 4
    joined = sparse_model("gpt-oss-20b")
    adapter = random_adapter(joined, PeftConfig("lora", rank=2, target=("gate",)))
    with pytest.raises(UserError, match="no linear layer of gpt-oss in transformers: peft has no name for it"):
        save_peft(adapter, tmp_path / "joined", config=joined.config)


def test_an_encoder_has_the_names_of_its_public_counterpart(tmp_path):
    sizes = dict(vocab_size=48, embed_dim=16, num_layers=1, num_heads=2, hidden_dim=24, num_positions=16)
    config: BertConfig = dataclasses.replace(preset("bert-tiny"), **sizes)
    save_peft(random_adapter(build(config, rngs=nnx.Rngs(0)), PeftConfig("lora")), tmp_path / "lora", config=config)
    found = safetensors.numpy.load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight" in found


@pytest.mark.parametrize("config", [LORA, PREFIX], ids=lambda config: config.method)
def test_our_own_folder_gives_back_every_bit(config, base, tmp_path):
    adapter = random_adapter(base, config)
    save_adapter(adapter, tmp_path / "adapter", config=CONFIG)
    again = load_adapter(tmp_path / "adapter", base)
    assert again.config == config and again.values.keys() == adapter.values.keys()
    for name, value in adapter.values.items():
        np.testing.assert_array_equal(again.values[name], value)


def test_load_puts_adapters_beside_or_into_the_weights(base, written, tmp_path):
    save_huggingface(base, tmp_path / "base")
    beside = load(tmp_path / "base", adapter=written[0])
    assert beside.adapters[0].config.rank == RANK
    into = load(tmp_path / "base", adapter=[written[0]], adapter_weights=[0.5], merge=True)
    np.testing.assert_allclose(
        logits(into.model), logits(changed_by_hand(base, written[1], 0.5 * ALPHA / RANK)), atol=3e-5
    )


def change(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(folder, function):
    path = folder / "adapter_model.safetensors"
    safetensors.numpy.save_file(function(safetensors.numpy.load_file(path)), path)


A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
BAD = {
    "of rank 2, adapter_config.json says r = 4": lambda folder: change(folder, r=4),
    f"lacks tensor {A0} .1 in all., which target_modules asks for": lambda folder: rewrite(
        folder, lambda tensors: {name: value for name, value in tensors.items() if name != A0}
    ),
    "has tensor base_model.model.lm_head.lora_A.weight .1 in all.": lambda folder: rewrite(
        folder, lambda tensors: tensors | {"base_model.model.lm_head.lora_A.weight": np.ones((2, 16), np.float32)}
    ),
    "holds NaN or infinity": lambda folder: rewrite(
        folder, lambda tensors: tensors | {A0: np.full((2, 16), np.nan, np.float32)}
    ),
    r"is an adapter for another base model: tensor .* has shape \(2, 24\), this model needs \(2, 16\)": (
        lambda folder: rewrite(folder, lambda tensors: tensors | {A0: np.ones((2, 24), np.float32)})
    ),
    "target_modules has 'Wqkv', which is no linear layer of this Gemma 2": lambda folder: change(
        folder, target_modules=["q_proj", "o_proj", "Wqkv"]
    ),
    "target_modules must be a text or a list": lambda folder: change(folder, target_modules=None),
    "use_dora = True is not computed here; False is": lambda folder: change(folder, use_dora=True),
    "init_lora_weights = 'pissa_niter_4' is not computed here; True is": lambda folder: change(
        folder, init_lora_weights="pissa_niter_4"
    ),
    "bias = 'all' is not computed here; 'none' is": lambda folder: change(folder, bias="all"),
    "rank_pattern = {'q_proj': 4} is not computed here": lambda folder: change(folder, rank_pattern={"q_proj": 4}),
    "peft_type 'IA3' is not read, 'LORA' is": lambda folder: change(folder, peft_type="IA3"),
    "r = 'eight' and lora_alpha": lambda folder: change(folder, r="eight"),
    "holds no adapter_model.safetensors": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "is truncated": lambda folder: (folder / "adapter_model.safetensors").write_bytes(
        (folder / "adapter_model.safetensors").read_bytes()[:-40]
    ),
    "holds no adapter: looked for": lambda folder: (folder / "adapter_config.json").unlink(),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_folder_is_refused_with_the_reason_in_one_line(reason, base, written, tmp_path):
    shutil.copytree(written[0], tmp_path / "lora")
    BAD[reason](tmp_path / "lora")
    with pytest.raises(UserError, match=reason) as refused:
        load_adapter(tmp_path / "lora", base)
    assert "\n" not in str(refused.value)


def test_an_adapter_of_another_base_is_refused(base, tmp_path):
    known = dataclasses.replace(random_adapter(base, LORA), base_sha256=base_fingerprint(base), base="its/base")
    for name, save in (("ours", save_adapter), ("peft", save_peft)):
        save(known, tmp_path / name, config=CONFIG)
        load_adapter(tmp_path / name, base)
        with pytest.raises(UserError, match=r"was trained on another base model: weights of sha256 .*\(its/base\)"):
            load_adapter(tmp_path / name, build(CONFIG, rngs=nnx.Rngs(1)))
    save_adapter(random_adapter(base, PREFIX), tmp_path / "prefix", config=CONFIG)
    with pytest.raises(UserError, match="is an adapter for another base model: a gemma2, this is a mixtral"):
        load_adapter(tmp_path / "prefix", sparse_model("mixtral-8x7b"))
    wider = build(dataclasses.replace(CONFIG, head_dim=12), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"prefix_key has shape \(3, 2, 8\), this model needs \(3, 2, 12\)"):
        load_adapter(tmp_path / "prefix", wider)
    with pytest.raises(UserError, match=r"lacks layers/4/attention/prefix_key \(4 in all\)"):
        load_adapter(tmp_path / "prefix", build(dataclasses.replace(CONFIG, num_layers=6), rngs=nnx.Rngs(0)))
    short = dataclasses.replace(PREFIX, prefix_length=5)
    save_adapter(dataclasses.replace(random_adapter(base, PREFIX), config=short), tmp_path / "five", config=CONFIG)
    with pytest.raises(UserError, match="is of prefix_length 3, its configuration says 5"):
        load_adapter(tmp_path / "five", base)


def test_an_adapter_in_its_own_file_is_checked_for_numbers(base, tmp_path):
    adapter = random_adapter(base, LORA)
    values = dict(adapter.values) | {"layers/0/mlp/gate_lora_b": np.full((3, 24), np.inf, np.float32)}
    save_adapter(dataclasses.replace(adapter, values=values), tmp_path / "adapter", config=CONFIG)
    with pytest.raises(UserError, match="holds NaN or infinity"):
        load_adapter(tmp_path / "adapter", base)
