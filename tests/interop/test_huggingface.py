import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from zoo.errors import UserError
from zoo.interop import load_huggingface, save_huggingface
from zoo.interop.architectures import config_to_huggingface
from zoo.interop.huggingface import carried_files
from zoo.models import Gemma2Config
from zoo.nn import Execution, unstack_layers
from zoo.parallel import MeshConfig, ShardingRules, make_mesh


@pytest.fixture
def folder(golden_dir, tmp_path) -> Path:
    """A copy of the golden that may be damaged."""
    return Path(shutil.copytree(golden_dir, tmp_path / "model"))


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Everything in a folder's safetensors files."""
    return {name: array for file in sorted(folder.glob("*.safetensors")) for name, array in load_file(file).items()}


def rewrite(folder: Path, change) -> None:
    """Changes the weights of a folder with one file."""
    values = tensors(folder)
    change(values)
    save_file(values, folder / "model.safetensors")


def edit_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def same_bits(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return {n: (a.dtype, a.shape, a.tobytes()) for n, a in left.items()} == {
        n: (a.dtype, a.shape, a.tobytes()) for n, a in right.items()
    }


def flat_values(state: nnx.State) -> dict[str, np.ndarray]:
    return {"/".join(map(str, path)): np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(state)}


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 50_000])
def test_an_export_has_every_bit_of_the_original(folder, tmp_path, scan_layers, max_shard_bytes):
    model = load_huggingface(folder, execution=Execution(scan_layers=scan_layers), param_dtype="stored")
    files = save_huggingface(model, tmp_path / "out", max_shard_bytes=max_shard_bytes)
    assert same_bits(tensors(folder), tensors(tmp_path / "out"))
    assert len(files) == 1 if max_shard_bytes > 10**6 else len(files) > 3
    assert all(file.stat().st_size < max_shard_bytes + 5_000 for file in files)
    again = load_huggingface(tmp_path / "out", param_dtype="stored")
    assert again.config == model.config
    assert same_bits(flat_values(nnx.state(again)), flat_values(nnx.state(load_huggingface(folder))))


def test_bfloat16_weights_stay_bfloat16(folder, tmp_path):
    rewrite(folder, lambda values: values.update({n: a.astype(ml_dtypes.bfloat16) for n, a in values.items()}))
    model = load_huggingface(folder, param_dtype="stored")
    save_huggingface(model, tmp_path / "out")
    assert same_bits(tensors(folder), tensors(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_dtype_that_is_asked_for_is_written(folder, tmp_path):
    model = load_huggingface(folder)
    save_huggingface(model, tmp_path / "out", dtype="bfloat16")
    for name, array in tensors(tmp_path / "out").items():
        np.testing.assert_array_equal(array, tensors(folder)[name].astype(ml_dtypes.bfloat16))
    assert model.embedder.embedding.get_value().dtype == np.float32


def test_parameters_have_the_dtype_that_the_execution_asks_for(folder):
    model = load_huggingface(folder, execution=Execution(param_dtype="bfloat16"))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(model))} == {"bfloat16"}


def test_scanned_layers_are_the_stack_of_the_unrolled_ones(folder):
    unrolled = nnx.state(load_huggingface(folder))
    scanned = nnx.state(load_huggingface(folder, execution=Execution(scan_layers=True)))
    assert same_bits(flat_values(unrolled), flat_values(unstack_layers(scanned, 2)))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_with_a_mesh_every_parameter_is_born_on_its_shards(folder, tmp_path, scan_layers):
    mesh, rules = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)), ShardingRules()
    model = load_huggingface(folder, execution=Execution(scan_layers=scan_layers), mesh=mesh, rules=rules)
    embedding = model.embedder.embedding.get_value()
    assert embedding.sharding.spec == PartitionSpec("tensor", ShardingRules().embed)
    assert embedding.addressable_shards[0].data.shape == (64, 8)  # of (128, 32)
    query = model.layers[0].attention.query.get_value()
    assert query.addressable_shards[0].data.size == query.size // 8
    save_huggingface(model, tmp_path / "out")
    assert same_bits(tensors(folder), tensors(tmp_path / "out"))


def test_files_beside_the_weights_are_carried_along(folder, tmp_path):
    (folder / "tokenizer.json").write_bytes(b"{}")
    (folder / "chat_template.jinja").write_bytes(b"template")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 107], "top_k": 64}')
    model = load_huggingface(folder)
    assert model.config.eos_token_ids == (1, 107)
    save_huggingface(model, tmp_path / "out", carried=carried_files(folder))
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert load_huggingface(tmp_path / "out").config == model.config


def padded(vocab_size: int, rows: int, folder: Path) -> None:
    """A model with a Gemma-sized vocabulary and little else."""
    config = Gemma2Config(vocab_size=vocab_size, embed_dim=2, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2,
                          hidden_dim=2, query_pre_attn_scalar=2, layer_types=("local",))  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_to_huggingface(config, "float32")))
    values = {"model.embed_tokens.weight": np.ones((rows, 2), np.float32), "model.norm.weight": np.zeros(2, np.float32)}
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
        values[f"model.layers.0.{name}.weight"] = np.ones((2, 2), np.float32)
    for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        values[f"model.layers.0.{name}.weight"] = np.ones((2, 2), np.float32)
    for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        values[f"model.layers.0.{name}_layernorm.weight"] = np.zeros(2, np.float32)
    save_file(values, folder / "model.safetensors")


def test_256000_and_256128_rows_are_the_same_embedding(tmp_path, caplog):
    padded(256_000, 256_128, tmp_path / "more")
    assert load_huggingface(tmp_path / "more").embedder.embedding.shape == (256_000, 2)
    padded(256_128, 256_000, tmp_path / "fewer")
    embedding = np.asarray(load_huggingface(tmp_path / "fewer").embedder.embedding.get_value())
    assert embedding.shape == (256_128, 2)
    assert (embedding[:256_000] == 1).all()
    assert (embedding[256_000:] == 0).all()
    assert "256000 rows" in caplog.text
    padded(256_000, 256_064, tmp_path / "other")
    with pytest.raises(UserError, match="embed_tokens"):
        load_huggingface(tmp_path / "other")


def test_a_head_that_repeats_the_embedding_is_the_tied_head(folder):
    rewrite(folder, lambda values: values.update({"lm_head.weight": values["model.embed_tokens.weight"]}))
    load_huggingface(folder)


def test_a_head_of_its_own_is_refused(folder):
    rewrite(folder, lambda values: values.update({"lm_head.weight": values["model.embed_tokens.weight"] + 1}))
    with pytest.raises(UserError, match="untied head"):
        load_huggingface(folder)


NORM = "model.layers.2.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.pop(NORM), f"tensor {NORM} is missing"),
        (lambda v: v.update({"score.weight": v[NORM]}), "unexpected tensor score.weight"),
        (lambda v: v.update({NORM: v[NORM][:-1]}), "has shape (31,), config.json asks for (32,)"),
        (lambda v: v.update({NORM: v[NORM].astype(np.int8)}), "is I8; supported: F32, BF16, F16"),
        (lambda v: v.update({NORM: v[NORM].astype(np.float64)}), "is F64"),
        (lambda v: v.update({"model.layers.4.mlp.up_proj.weight": v[NORM]}), "weights of 5 layers"),
        (lambda v: v.update({NORM: np.full(32, np.inf, np.float32)}), f"tensor {NORM} holds NaN or infinity"),
    ],
)
def test_weights_of_another_model_are_refused_and_the_tensor_named(folder, change, said):
    rewrite(folder, change)
    with pytest.raises(UserError) as raised:
        load_huggingface(folder)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_configuration_of_another_size_is_refused_before_anything_is_allocated(folder):
    edit_config(folder, intermediate_size=2**31 - 1)
    with pytest.raises(UserError, match=r"gate_proj.weight has shape \(48, 32\)"):
        load_huggingface(folder)
    edit_config(folder, num_hidden_layers=9_000, layer_types=None)
    with pytest.raises(UserError, match="weights of 4 layers"):
        load_huggingface(folder)


def test_a_file_that_was_cut_off_is_refused_and_the_tensor_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model.safetensors is truncated: tensor model\."):
        load_huggingface(folder)


def test_a_malformed_generation_config_is_named(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": "one"}')
    with pytest.raises(UserError, match="generation_config.json"):
        load_huggingface(folder)


def test_layers_that_cannot_be_scanned_are_refused_in_one_line(folder, tmp_path):
    config = replace(load_huggingface(folder).config, num_layers=3)
    save_dir = tmp_path / "three"
    save_dir.mkdir()
    (save_dir / "config.json").write_text(json.dumps(config_to_huggingface(config, "float32")))
    save_file({n: a for n, a in tensors(folder).items() if ".3." not in n}, save_dir / "model.safetensors")
    with pytest.raises(UserError, match="scan_layers"):
        load_huggingface(save_dir, execution=Execution(scan_layers=True))
    save_huggingface(load_huggingface(save_dir), tmp_path / "out")
    assert same_bits(tensors(save_dir), tensors(tmp_path / "out"))


def test_transformers_opens_an_export_strictly_and_computes_the_same(golden_dir, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `verify`)")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `verify`)")
    save_huggingface(load_huggingface(golden_dir), tmp_path / "out", max_shard_bytes=60_000)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    assert not any(info.values()), info
    with np.load(golden_dir / "expected.npz", allow_pickle=False) as expected, torch.no_grad():
        logits = model(torch.as_tensor(expected["input_ids"]).long(), use_cache=False).logits.numpy()
        np.testing.assert_allclose(logits, expected["logits"], atol=5e-5)
