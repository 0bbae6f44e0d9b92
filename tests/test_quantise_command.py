"""python -m zoo.export to packed weights and GGUF, and the commands that run from them."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from zoo.data import train_tokenizer
from zoo.errors import UserError
from zoo.export import main
from zoo.generate import main as generate
from zoo.interop import Packing, packed_bytes, save_run
from zoo.models import build
from zoo.score import main as score

CONFIG = replace(zoo.presets()["gemma2-nano"], vocab_size=280, num_layers=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained model with a tokenizer."""
    folder = tmp_path_factory.mktemp("quantise") / "run"
    tokenizer = train_tokenizer(["a little text to learn a few pieces from"] * 30, 280)
    save_run(build(CONFIG, rngs=nnx.Rngs(0)), folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def packed(run):
    """Its export with 4 bits."""
    main([str(run), str(run.parent / "packed"), "--format", "quantised", "--bits", "4"])
    return run.parent / "packed"


def test_the_size_on_disk_is_that_of_the_formula_and_the_header(packed):
    size, expected = (packed / "model.safetensors").stat().st_size, packed_bytes(CONFIG, Packing(4))
    header = int.from_bytes((packed / "model.safetensors").read_bytes()[:8], "little")
    assert size == expected + 8 + header


def test_generate_and_score_run_from_packed_weights(packed, tmp_path, capsys):
    generate(["--checkpoint", str(packed), "--prompt", "a little", "--max-new-tokens", "4", "--temperature", "0"])
    assert capsys.readouterr().out.strip()
    np.save(tmp_path / "ids.npy", np.array([[2, 40, 41, 42, 43]]))
    score(["--checkpoint", str(packed), "--tokens", str(tmp_path / "ids.npy"), "--json", str(tmp_path / "s.json")])
    loaded = zoo.load(packed)
    assert loaded.source == "quantised" and loaded.tokenizer.vocab_size == 280
    logits = np.asarray(jax.jit(loaded.model)(np.array([[2, 40, 41, 42, 43]])), np.float64)[0, :-1]
    expected = logits[np.arange(4), [40, 41, 42, 43]] - np.log(np.exp(logits).sum(-1))
    found = json.loads((tmp_path / "s.json").read_text())["total"]["mean_log_probability"]
    assert found == pytest.approx(expected.mean(), abs=1e-4)


def test_a_gguf_file_is_written_from_packed_weights(packed, tmp_path, capsys):
    pytest.importorskip("gguf", reason="gguf is not installed (extra `gguf`)")
    main([str(packed), str(tmp_path / "phone"), "--format", "gguf"])
    assert (tmp_path / "phone" / "model.gguf").read_bytes()[:4] == b"GGUF"
    assert "llama-cli" in capsys.readouterr().out


def refusal(*arguments) -> str:
    with pytest.raises(UserError) as raised:
        main([str(argument) for argument in arguments])
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_wrong_input_is_one_line(run, packed, tmp_path):
    out = tmp_path / "out"
    assert "belong to --format" in refusal(run, out, "--format", "orbax", "--bits", "4")
    assert "packed weights" in refusal(packed, out, "--format", "huggingface")
    assert "packed already" in refusal(packed, out, "--format", "gguf", "--bits", "8")
    assert "needs --bits" in refusal(run, out, "--format", "gguf", "--embedding-bits", "8")
    assert "groups of 48 do not divide" in refusal(run, out, "--format", "quantised", "--group", "48")
    assert list(tmp_path.iterdir()) == []
