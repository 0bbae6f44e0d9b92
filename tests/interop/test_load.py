import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.errors import UserError
from zoo.interop import load, read_config, save_deepmind, save_run, source_of
from zoo.models import preset


def test_importing_zoo_imports_no_library(repository):
    code = "import sys, zoo; print(zoo.__version__, [m for m in ('jax', 'flax', 'numpy', 'orbax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    version, imported = done.stdout.split()
    assert version
    assert imported == "[]"


def test_the_public_names_are_there():
    assert zoo.presets()["gemma2-9b"] == preset("gemma2-9b")
    assert zoo.load is load
    with pytest.raises(AttributeError, match="nonsense"):
        zoo.nonsense  # noqa: B018


def test_a_loaded_model_maps_tokens_to_float32_logits(golden_dir):
    loaded = zoo.load(golden_dir)
    assert (loaded.source, loaded.tokenizer) == ("huggingface", None)
    logits = jax.jit(loaded.model)(jnp.ones((2, 5), jnp.int32))
    assert (logits.shape, logits.dtype) == ((2, 5, loaded.config.vocab_size), jnp.float32)


def test_every_kind_of_checkpoint_is_recognised(golden_dir, tmp_path, monkeypatch):
    loaded = load(str(golden_dir))
    save_run(loaded.model, tmp_path / "run")
    save_deepmind(loaded.model, tmp_path / "tree")
    assert [source_of(p) for p in (golden_dir, tmp_path / "run", tmp_path / "tree")] == [
        "huggingface",
        "run",
        "deepmind",
    ]
    monkeypatch.setattr("zoo.interop.deepmind.presets", lambda: {"golden": loaded.config})
    for path in (golden_dir, tmp_path / "run", tmp_path / "tree"):
        assert read_config(path) == loaded.config
        again = load(path).model.layers[2].attention.key.get_value()
        np.testing.assert_array_equal(again, loaded.model.layers[2].attention.key.get_value())


def test_a_broken_tokenizer_is_reported_only_when_it_is_asked_for(golden_dir, tmp_path):
    folder = shutil.copytree(golden_dir, tmp_path / "model")
    (folder / "tokenizer.model").write_bytes(b"broken")
    loaded = load(folder)
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        loaded.tokenizer  # noqa: B018


def test_nothing_there_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="give the folder"):
        load(tmp_path / "file")
    with pytest.raises(UserError) as raised:
        load(tmp_path)
    for looked_for in ("run.json", "config.json", "_METADATA"):
        assert looked_for in str(raised.value)
    assert "\n" not in str(raised.value)
