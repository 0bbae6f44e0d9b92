import json
import shutil
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from zoo.errors import UserError
from zoo.interop import load_deepmind, load_huggingface, save_deepmind
from zoo.interop.deepmind import preset_of, released_gating_is_transposed
from zoo.interop.deepmind_tree import DeepMindTree
from zoo.models import build, preset
from zoo.nn import Execution, unstack_layers
from zoo.parallel import MeshConfig, ShardingRules, make_mesh


@pytest.fixture(scope="module")
def model(golden_dir):
    return load_huggingface(golden_dir)


def assert_same(left: nnx.Module, right: nnx.Module) -> None:
    for (path, a), (other, b) in zip(
        nnx.to_flat_state(nnx.state(left)), nnx.to_flat_state(nnx.state(right)), strict=True
    ):
        assert path == other
        np.testing.assert_array_equal(a.get_value(), b.get_value(), err_msg=str(path))


@pytest.mark.parametrize("layout", ["flat", "nested", "stacked"])
@pytest.mark.parametrize("transpose_gating", [False, True])
def test_every_layout_comes_back_bit_for_bit(model, tmp_path, layout, transpose_gating):
    save_deepmind(model, tmp_path / "tree", layout=layout, transpose_gating=transpose_gating)
    assert_same(load_deepmind(tmp_path / "tree", config=model.config), model)
    scanned = load_deepmind(tmp_path / "tree", config=model.config, execution=Execution(scan_layers=True))
    graphdef, _ = nnx.split(model)
    assert_same(nnx.merge(graphdef, unstack_layers(nnx.state(scanned), 2)), model)


@pytest.mark.parametrize("transpose_gating", [False, True])
def test_the_nested_tree_is_the_one_that_deepminds_modules_declare(model, golden_dir, tmp_path, transpose_gating):
    save_deepmind(model, tmp_path / "tree", layout="nested", transpose_gating=transpose_gating)
    listed = json.loads((golden_dir / "deepmind_tree.json").read_text())
    metadata = ocp.StandardCheckpointer().metadata(tmp_path / "tree").item_metadata.tree
    shapes = {
        "/".join(str(key.key) for key in path): list(leaf.shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(metadata)[0]
    }
    assert shapes == listed[f"transpose_gating={str(transpose_gating).lower()}"]


def test_the_flat_tree_has_the_names_of_the_released_checkpoints(model, tmp_path):
    save_deepmind(model, tmp_path / "tree")
    tree = ocp.StandardCheckpointer().metadata(tmp_path / "tree").item_metadata.tree
    assert tree["transformer/layer_3/mlp/gating_einsum"]["w"].shape == (2, 32, 48)
    assert tree["transformer/layer_0/attn/kv_einsum"]["w"].shape == (2, 2, 32, 12)
    assert set(tree["transformer/final_norm"]) == {"scale"}


def nested_tree(model: nnx.Module) -> dict:
    """The model as DeepMind's Flax tree, made by hand from ours."""
    values = {
        "/".join(map(str, path)): np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(nnx.state(model))
    }
    tree: dict = {
        "embedder": {"input_embedding": values["embedder/embedding"]},
        "final_norm": {"scale": values["final_norm/scale"]},
    }
    for i in range(model.config.num_layers):
        layer = {name.removeprefix(f"layers/{i}/"): array for name, array in values.items() if f"layers/{i}/" in name}
        key_value = np.stack([layer["attention/key"], layer["attention/value"]]).transpose(0, 2, 1, 3)
        tree[f"layer_{i}"] = {
            "attn": {
                "q_einsum": {"w": layer["attention/query"].transpose(1, 0, 2)},
                "kv_einsum": {"w": key_value},
                "attn_vec_einsum": {"w": layer["attention/output"]},
            },
            "mlp": {"gating_einsum": np.stack([layer["mlp/gate"], layer["mlp/up"]]), "linear": layer["mlp/down"]},
        }
        for norm in ("pre_attention_norm", "post_attention_norm", "pre_ffw_norm", "post_ffw_norm"):
            tree[f"layer_{i}"][norm] = {"scale": layer[f"{norm}/scale"]}
    return tree


@pytest.mark.parametrize(
    "checkpointer",
    [
        lambda: ocp.StandardCheckpointer(),
        lambda: ocp.PyTreeCheckpointer(),
        lambda: ocp.PyTreeCheckpointer(use_ocdbt=False),  # one folder an array, as in the first releases
    ],
    ids=["standard", "pytree", "zarr"],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_trees_that_orbax_wrote_are_read(model, tmp_path, checkpointer, wrapped):
    tree = nested_tree(model)
    with checkpointer() as writer:
        writer.save(tmp_path / "tree", {"params": tree} if wrapped else tree)
    assert_same(load_deepmind(tmp_path / "tree", config=model.config), model)


def test_as_many_key_value_heads_as_query_heads_are_one_array(model, tmp_path):
    config = replace(model.config, num_kv_heads=4)
    wide = build(config, rngs=nnx.Rngs(1))
    save_deepmind(wide, tmp_path / "tree")
    tree = DeepMindTree(tmp_path / "tree")
    assert tree.shapes["layer_0/attn/qkv_einsum/w"] == (3, 4, 32, 12)
    assert_same(load_deepmind(tmp_path / "tree", config=config), wide)


def test_bfloat16_is_kept_and_can_be_asked_for(model, tmp_path):
    save_deepmind(model, tmp_path / "tree", dtype="bfloat16")
    kept = load_deepmind(tmp_path / "tree", config=model.config, param_dtype="stored")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(kept))} == {"bfloat16"}
    wanted = np.asarray(model.layers[1].mlp.down.get_value()).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(kept.layers[1].mlp.down.get_value(), wanted)


def test_with_a_mesh_every_parameter_goes_to_its_shards(model, tmp_path):
    save_deepmind(model, tmp_path / "tree")
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    loaded = load_deepmind(tmp_path / "tree", config=model.config, mesh=mesh, rules=ShardingRules())
    assert loaded.layers[0].mlp.gate.get_value().addressable_shards[0].data.shape == (8, 24)
    assert_same(loaded, model)


def test_256000_rows_are_padded_to_256128_and_cut_again(tmp_path):
    config = replace(
        preset("gemma2-2b"), embed_dim=2, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2, hidden_dim=3
    )
    tiny = build(config, rngs=nnx.Rngs(0))
    save_deepmind(tiny, tmp_path / "tree")
    assert DeepMindTree(tmp_path / "tree").shapes["embedder/input_embedding"] == (256_128, 2)
    assert_same(load_deepmind(tmp_path / "tree", config=config), tiny)


def test_the_released_sizes_have_their_own_gating_layouts():
    assert not released_gating_is_transposed(preset("gemma2-2b"))
    assert released_gating_is_transposed(preset("gemma2-9b"))
    assert released_gating_is_transposed(preset("gemma2-27b"))


def test_a_tree_with_the_shapes_of_a_preset_needs_no_configuration(tmp_path, monkeypatch, model):
    monkeypatch.setattr(
        "zoo.interop.deepmind.presets", lambda: {"other": preset("gemma2-nano"), "golden": model.config}
    )
    save_deepmind(model, tmp_path / "tree")
    assert preset_of(DeepMindTree(tmp_path / "tree")) == model.config
    assert_same(load_deepmind(tmp_path / "tree"), model)


def refused(*arguments, **options) -> str:
    with pytest.raises(UserError) as raised:
        load_deepmind(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_shapes_of_no_preset_ask_for_a_configuration(model, tmp_path):
    save_deepmind(model, tmp_path / "tree")
    message = refused(tmp_path / "tree")
    assert "config=" in message
    assert "embedder/input_embedding (128, 32)" in message


def test_a_square_feed_forward_layer_asks_for_the_gating_layout(model, tmp_path):
    config = replace(model.config, hidden_dim=32)
    square = build(config, rngs=nnx.Rngs(1))
    save_deepmind(square, tmp_path / "tree", transpose_gating=True)
    assert "transpose_gating=" in refused(tmp_path / "tree", config=config)
    assert_same(load_deepmind(tmp_path / "tree", config=config, transpose_gating=True), square)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree.pop("layer_3"), "layer_3/pre_attention_norm/scale is missing"),
        (lambda tree: tree.update(vision_encoder={"w": np.ones(2)}), "unexpected array vision_encoder/w"),
        (lambda tree: tree["final_norm"].update(scale=np.ones(3, np.float32)), "final_norm/scale has shape (3,)"),
    ],
)
def test_a_tree_of_another_model_is_refused_and_the_array_named(model, tmp_path, change, said):
    tree = nested_tree(model)
    change(tree)
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "tree", tree)
    assert said in refused(tmp_path / "tree", config=model.config)


def test_a_tree_of_something_else_is_refused(tmp_path):
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "tree", {"step": np.zeros(1)})
    assert "none of the arrays" in refused(tmp_path / "tree")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the storage library's threads
def test_a_damaged_tree_is_refused(model, tmp_path):
    save_deepmind(model, tmp_path / "tree")
    shutil.rmtree(tmp_path / "tree" / "ocdbt.process_0")
    (tmp_path / "tree" / "manifest.ocdbt").write_bytes(b"damaged")
    assert "damaged" in refused(tmp_path / "tree", config=model.config)
    (tmp_path / "tree" / "_METADATA").write_text("{")
    assert "cannot be read" in refused(tmp_path / "tree", config=model.config)
