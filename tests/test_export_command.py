"""python -m zoo.export: every format, from every kind of checkpoint; failures are one line and leave nothing behind."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import zoo
from tests.marks import slow
from zoo.data import train_tokenizer
from zoo.errors import UserError
from zoo.export import main
from zoo.interop import load_deepmind, load_huggingface, save_huggingface, save_run
from zoo.models import build


@pytest.fixture(scope="module")
def golden_dir(repository: Path) -> Path:
    """A tiny Gemma 2 that transformers wrote."""
    return repository / "tests" / "goldens" / "gemma2"


def tensors(folder: Path) -> dict[str, bytes]:
    return {n: a.tobytes() for file in folder.glob("*.safetensors") for n, a in load_file(file).items()}


def test_a_hugging_face_folder_comes_back_bit_for_bit(golden_dir, tmp_path, capsys):
    main([str(golden_dir), str(tmp_path / "out"), "--format", "huggingface"])
    assert tensors(tmp_path / "out") == tensors(golden_dir)
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / 'out'}" in said
    assert "from_pretrained" in said


def test_all_formats_lead_back_to_the_same_weights(golden_dir, tmp_path):
    main([str(golden_dir), str(tmp_path / "run"), "--format", "orbax"])
    main([str(tmp_path / "run"), str(tmp_path / "tree"), "--format", "deepmind"])
    main([str(tmp_path / "run" / "checkpoints" / "0"), str(tmp_path / "again"), "--format", "huggingface"])
    assert tensors(tmp_path / "again") == tensors(golden_dir)
    config = zoo.load(tmp_path / "run").config
    embedding = load_deepmind(tmp_path / "tree", config=config).embedder.embedding.get_value()
    np.testing.assert_array_equal(embedding, zoo.load(golden_dir).model.embedder.embedding.get_value())


def test_a_run_is_exported_with_its_tokenizer_and_dtype(tmp_path):
    tokenizer = train_tokenizer(["a little text to learn a few pieces from"] * 30, 280)
    config = replace(zoo.presets()["gemma2-nano"], vocab_size=280, num_layers=2)
    save_run(build(config, rngs=nnx.Rngs(0)), tmp_path / "run", tokenizer=tokenizer)
    main([str(tmp_path / "run"), str(tmp_path / "out"), "--format", "huggingface", "--dtype", "bfloat16"])
    loaded = zoo.load(tmp_path / "out")
    assert loaded.config == config
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `verify`)")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "a  little text, 123\n\tand \u00e9"
    assert theirs(text)["input_ids"] == tokenizer.encode(text, bos=True)


def test_an_encoder_is_opened_as_what_it_is(repository, tmp_path, capsys):
    encoder = repository / "tests" / "goldens" / "encoders" / "siglip"
    main([str(encoder), str(tmp_path / "out"), "--format", "huggingface"])
    written = capsys.readouterr()
    assert "transformers.AutoModel.from_pretrained(" in written.out and "tokenizer" not in written.err
    assert tensors(tmp_path / "out") == tensors(encoder)


def refusal(*arguments: str | Path) -> str:
    with pytest.raises(UserError) as raised:
        main([str(argument) for argument in arguments])
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_wrong_input_is_one_line(golden_dir, tmp_path):
    out = tmp_path / "out"
    assert "--format" in refusal(golden_dir, out, "--format", "onnx")
    assert "no such file" in refusal(tmp_path / "absent", out, "--format", "orbax")
    assert "--max-shard-gb" in refusal(golden_dir, out, "--format", "huggingface", "--max-shard-gb", "-1")
    assert "would replace" in refusal(golden_dir, golden_dir, "--format", "huggingface", "--overwrite")
    assert sorted(tmp_path.iterdir()) == []
    out.mkdir()
    (out / "file").touch()
    assert "not empty" in refusal(golden_dir, out, "--format", "orbax")
    assert "does not look like" in refusal(golden_dir, out, "--format", "orbax", "--overwrite")


def test_an_existing_folder_is_refused_before_the_checkpoint_is_read(golden_dir, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("zoo.interop.load", lambda *_a, **_k: pytest.fail("the checkpoint was read"))
    assert "not empty" in refusal(golden_dir, tmp_path, "--format", "orbax")


def run_export(repository: Path, *arguments: str | Path, before: str = "true") -> subprocess.CompletedProcess[str]:
    """Runs the command in a shell that has executed `before`, without the tests' compile cache."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = ["sh", "-c", f'{before} && exec "$@"', "sh", sys.executable, "-m", "zoo.export", *map(str, arguments)]
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=300)


def test_a_damaged_file_is_named_in_one_line_and_nothing_is_left_behind(golden_dir, tmp_path, capsys):
    folder = Path(shutil.copytree(golden_dir, tmp_path / "model"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors is truncated" in refusal(folder, tmp_path / "out", "--format", "orbax")
    assert capsys.readouterr().out == ""
    assert sorted(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("format_name", ["huggingface", "orbax", *slow("deepmind")])
def test_when_the_disk_is_full_nothing_is_left_behind(golden_dir, tmp_path, repository, format_name):
    small_files = "ulimit -f 40"  # blocks of 512 or 1,024 bytes: every write beyond fails, as on a full disk
    done = run_export(repository, golden_dir, tmp_path / "out", "--format", format_name, before=small_files)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "could not be written" in done.stderr
    assert list(tmp_path.iterdir()) == []


FIXTURES = ("gemma2-tiny", "gemma2-tiny-b", "gemma2-nocap", "gemma2-bf16-sharded", "gemma2-train-smooth")


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXTURES)
def test_exports_of_the_shared_fixtures_pass_their_check(shared_dir, tmp_path, name):
    for module in ("torch", "transformers"):
        pytest.importorskip(module, reason=f"{module} is not installed (extra `verify`)")
    folder = shared_dir / "fixtures" / name
    if not folder.is_dir():
        pytest.skip(f"optional test data: no {folder}")
    main([str(folder), str(tmp_path / "out"), "--format", "huggingface", "--max-shard-gb", "0.0003"])
    script = shared_dir / "fixtures" / "check_export.py"
    arguments = [tmp_path / "out", folder / "expected.npz", "--like", folder, "--generate"]
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS" in done.stdout


def test_save_huggingface_can_be_called_without_the_command(golden_dir, tmp_path):
    save_huggingface(load_huggingface(golden_dir), tmp_path / "out")
    with pytest.raises(UserError, match="not empty"):
        save_huggingface(load_huggingface(golden_dir), tmp_path / "out")
    save_huggingface(load_huggingface(golden_dir), tmp_path / "out", overwrite=True)
