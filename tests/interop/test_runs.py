import dataclasses
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.marks import slow
from zoo.data import train_tokenizer
from zoo.errors import UserError
from zoo.interop import load, load_huggingface, load_run, save_run
from zoo.interop.load import read_config
from zoo.models import CoDistilledConfig, GeminiConfig, build
from zoo.nn import Execution
from zoo.parallel import MeshConfig, ShardingRules, make_mesh


@pytest.fixture(scope="module")
def model(golden_dir):
    return load_huggingface(golden_dir)


def values(model: nnx.Module) -> dict[str, np.ndarray]:
    return {
        "/".join(map(str, path)): np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(nnx.state(model))
    }


def assert_same(left: nnx.Module, right: nnx.Module) -> None:
    jax.tree.map(np.testing.assert_array_equal, values(left), values(right))


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_scanned_and_unrolled_runs_load_as_either(golden_dir, tmp_path, saved, wanted):
    save_run(load_huggingface(golden_dir, execution=Execution(scan_layers=saved)), tmp_path / "run")
    loaded = load_run(tmp_path / "run", execution=Execution(scan_layers=wanted))
    assert_same(loaded, load_huggingface(golden_dir, execution=Execution(scan_layers=wanted)))


@pytest.mark.parametrize("part", [".", "checkpoints", "checkpoints/7"])
def test_a_run_its_checkpoints_folder_and_one_step_are_all_checkpoints(model, tmp_path, part):
    save_run(model, tmp_path / "run", step=7)
    loaded = load(tmp_path / "run" / part)
    assert loaded.source == "run"
    assert loaded.config == model.config == read_config(tmp_path / "run" / part)
    assert_same(loaded.model, model)


def test_the_tokenizer_travels_with_the_run(model, tmp_path):
    tokenizer = train_tokenizer(["some text to learn from, twice over"] * 20, 300)
    save_run(model, tmp_path / "run", tokenizer=tokenizer)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["tokenizer_fingerprint"] == tokenizer.fingerprint
    with pytest.raises(UserError, match="300 tokens, the model 128"):
        load(tmp_path / "run").tokenizer  # noqa: B018 (reading it is what raises)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_run_is_restored_onto_a_mesh(model, golden_dir, tmp_path, scan_layers):
    save_run(model, tmp_path / "run")
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    execution = Execution(scan_layers=scan_layers)
    loaded = load_run(tmp_path / "run", execution=execution, mesh=mesh, rules=ShardingRules())
    query = loaded.layers[0].attention.query.get_value()
    assert query.addressable_shards[0].data.size == query.size // 8
    assert_same(loaded, load_huggingface(golden_dir, execution=execution))


def test_dtypes_are_kept_or_changed_as_asked(model, tmp_path):
    save_run(model, tmp_path / "run", dtype="bfloat16")
    assert load_run(tmp_path / "run", param_dtype="stored").embedder.embedding.get_value().dtype == "bfloat16"
    assert load_run(tmp_path / "run").embedder.embedding.get_value().dtype == "float32"
    assert model.embedder.embedding.get_value().dtype == "float32"


def test_a_damaged_checkpoint_is_named(model, tmp_path):
    save_run(model, tmp_path / "run")
    victim = max((tmp_path / "run" / "checkpoints" / "0" / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 255
    victim.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        load_run(tmp_path / "run")


def test_a_description_that_is_not_understood_is_named(model, tmp_path):
    save_run(model, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"execution": {"warp": 9}}))
    with pytest.raises(UserError, match="warp"):
        load_run(tmp_path / "run")
    wider = dataclasses.replace(model.config, hidden_dim=64)
    path.write_text(json.dumps(described | {"model": described["model"] | {"hidden_dim": wider.hidden_dim}}))
    with pytest.raises(UserError, match="another model"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize("scan_layers", [True, *slow(False)])
def test_of_a_run_of_online_distillation_the_student_is_loaded_or_the_part_that_is_asked_for(tmp_path, scan_layers):
    student = GeminiConfig(32, 16, 2, 2, 8, 24, block="parallel", post_norms=False)
    teacher = replace(student, block="serial", hidden_dim=40)
    pair = build(CoDistilledConfig(teacher, student), rngs=nnx.Rngs(0))
    save_run(pair, tmp_path / "run")
    execution = Execution(scan_layers=scan_layers)
    for part, wanted in ((None, pair.student), ("student", pair.student), ("teacher", pair.teacher)):
        loaded = load(tmp_path / "run", execution=execution, part=part).model
        assert loaded.config == wanted.config == read_config(tmp_path / "run", part)
        tokens = jnp.arange(6)[None]
        np.testing.assert_allclose(jax.jit(loaded)(tokens), jax.jit(wanted)(tokens), atol=1e-5)
    save_run(pair.student, tmp_path / "one")
    with pytest.raises(UserError, match="holds one model"):
        load(tmp_path / "one", part="teacher")
