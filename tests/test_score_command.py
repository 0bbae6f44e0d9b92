import json
import math

import jax
import numpy as np
import pytest
from flax import nnx

from tests.marks import slow
from zoo.data import train_tokenizer
from zoo.errors import UserError
from zoo.inference import score_text, token_log_probabilities
from zoo.inference.prompts import left_pad
from zoo.interop import load, save_huggingface
from zoo.models import Gemma2Config, build
from zoo.score import main

TEXT = "the quick brown fox jumps over the lazy dog, and the naïve café serves 汉字 😀\n"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A small model with random weights and a tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("score") / "model"
    config = Gemma2Config(
        vocab_size=320,
        embed_dim=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        hidden_dim=64,
        query_pre_attn_scalar=16.0,
        sliding_window=8,
        max_position_embeddings=64,
    )
    save_huggingface(build(config, rngs=nnx.Rngs(0)), folder, tokenizer=train_tokenizer([TEXT] * 50, 320))
    return folder


@pytest.fixture(scope="session")
def loaded(checkpoint):
    return load(checkpoint)


@pytest.fixture(scope="session")
def bare_checkpoint(tmp_path_factory, loaded):
    """The same model without a tokenizer."""
    folder = tmp_path_factory.mktemp("score") / "bare"
    save_huggingface(loaded.model, folder)
    return folder


def save(path, array) -> str:
    np.save(path, np.asarray(array))
    return str(path)


@pytest.mark.parametrize("attention", ["reference", "pallas_tpu", *slow("pallas_gpu")])
def test_attention_names_the_kernels_and_changes_no_logit(attention, tmp_path, checkpoint, loaded):
    tokens = np.random.default_rng(0).integers(3, 300, (2, 20))
    out = tmp_path / "logits.npy"
    main(
        ["--checkpoint", str(checkpoint), "--tokens", save(tmp_path / "ids.npy", tokens), "--logits", str(out)]
        + ["--attention", attention]
    )
    np.testing.assert_allclose(np.load(out), jax.jit(loaded.model)(tokens), atol=1e-5)


def test_logits_of_tokens_are_written_and_their_scores_printed(tmp_path, checkpoint, loaded, capsys):
    tokens, mask = left_pad([[2, 50, 60, 70, 80], [2, 90]])
    tokens, mask = tokens[:, ::-1].copy(), mask[:, ::-1].copy()  # right padding
    arguments = ["--checkpoint", str(checkpoint), "--tokens", save(tmp_path / "ids.npy", tokens)]
    arguments += ["--mask", save(tmp_path / "mask.npy", mask), "--logits", str(tmp_path / "logits.npy")]
    main([*arguments, "--json", str(tmp_path / "score.json")])
    logits = np.load(tmp_path / "logits.npy", allow_pickle=False)
    assert logits.dtype == np.float32
    assert logits.shape == (2, 5, 320)
    for i in range(2):
        row = tokens[i][mask[i] == 1]
        np.testing.assert_allclose(logits[i][mask[i] == 1], jax.jit(loaded.model)(row[None])[0], atol=1e-5)
    figures = json.loads((tmp_path / "score.json").read_text())
    scores = token_log_probabilities(loaded.model, tokens, mask)
    assert [row["tokens"] for row in figures["rows"]] == [4, 1]
    assert figures["total"]["tokens"] == 5
    assert figures["total"]["mean_log_probability"] == pytest.approx(scores.sum() / 5, rel=1e-5)
    assert figures["rows"][1]["perplexity"] == pytest.approx(math.exp(-scores[1].sum()), rel=1e-4)
    out = capsys.readouterr().out
    assert "perplexity" in out
    assert f"{figures['total']['perplexity']:.4f}" in out


def test_text_files_are_scored_one_by_one_and_together(tmp_path, checkpoint, loaded, capsys):
    (tmp_path / "a.txt").write_text(TEXT * 5)
    (tmp_path / "b.md").write_text("a dog")
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "the fox"}) + "\n" + json.dumps({"text": "the dog"}) + "\n")
    names = [str(tmp_path / name) for name in ("a.txt", "b.md", "c.jsonl")]
    main(["--checkpoint", str(checkpoint), "--text", *names, "--json", str(tmp_path / "score.json")])
    figures = json.loads((tmp_path / "score.json").read_text())
    assert [row["name"] for row in figures["rows"]] == names
    assert [row["bytes"] for row in figures["rows"]] == [len((TEXT * 5).encode()), 5, 14]
    score = score_text(loaded.model, loaded.tokenizer, TEXT * 5)
    assert figures["rows"][0]["tokens"] == score.tokens == len(loaded.tokenizer.encode(TEXT * 5)) > 64
    assert figures["rows"][0]["bits_per_byte"] == pytest.approx(score.bits_per_byte)
    assert figures["total"]["tokens"] == sum(row["tokens"] for row in figures["rows"])
    assert names[1] in capsys.readouterr().out


def test_context_and_overlap_are_options(tmp_path, checkpoint, loaded):
    (tmp_path / "a.txt").write_text(TEXT * 5)
    arguments = ["--checkpoint", str(checkpoint), "--text", str(tmp_path / "a.txt"), "--context", "20"]
    main([*arguments, "--overlap", "5", "--json", str(tmp_path / "score.json")])
    total = json.loads((tmp_path / "score.json").read_text())["total"]
    expected = score_text(loaded.model, loaded.tokenizer, TEXT * 5, context=20, overlap=5)
    assert total["bits_per_byte"] == pytest.approx(expected.bits_per_byte)


def test_a_context_beyond_the_trained_one_is_said(tmp_path, checkpoint, capsys):
    tokens = np.full((1, 70), 5)
    main(["--checkpoint", str(checkpoint), "--tokens", save(tmp_path / "ids.npy", tokens)])
    assert "trained for a context of 64" in capsys.readouterr().err


def test_one_token_has_no_score_and_json_has_no_nan(tmp_path, checkpoint):
    arguments = ["--checkpoint", str(checkpoint), "--tokens", save(tmp_path / "ids.npy", [[5]])]
    main([*arguments, "--json", str(tmp_path / "score.json")])
    assert json.loads((tmp_path / "score.json").read_text())["total"]["perplexity"] is None


BAD_INPUT = {
    "nothing to score": (["--checkpoint", "CKPT"], "either --tokens"),
    "both inputs": (["--checkpoint", "CKPT", "--tokens", "IDS", "--text", "TEXT"], "either --tokens"),
    "missing checkpoint": (["--checkpoint", "no/such", "--tokens", "IDS"], "no/such"),
    "unknown option": (["--checkpoint", "CKPT", "--token", "IDS"], "--token"),
    "logits of text": (["--checkpoint", "CKPT", "--text", "TEXT", "--logits", "OUT"], "belong to --tokens"),
    "no tokenizer": (["--checkpoint", "BARE", "--text", "TEXT"], "no tokenizer"),
    "batch size": (["--checkpoint", "CKPT", "--tokens", "IDS", "--batch-size", "0"], "--batch-size"),
    "context": (["--checkpoint", "CKPT", "--text", "TEXT", "--context", "1"], "context"),
    "negative context": (["--checkpoint", "CKPT", "--text", "TEXT", "--context", "-8"], "context"),
    "overlap": (["--checkpoint", "CKPT", "--text", "TEXT", "--context", "8", "--overlap", "7"], "overlap"),
    "float ids": (["--checkpoint", "CKPT", "--tokens", "FLOATS"], "floats.npy: need integer token ids"),
    "ids beyond the vocabulary": (["--checkpoint", "CKPT", "--tokens", "LARGE"], "large.npy: id 320"),
    "mask of another shape": (["--checkpoint", "CKPT", "--tokens", "IDS", "--mask", "LARGE"], "large.npy: shape"),
    "mask with holes": (["--checkpoint", "CKPT", "--tokens", "IDS", "--mask", "HOLES"], "holes.npy: row 0"),
    "no such text": (["--checkpoint", "CKPT", "--text", "no.txt"], "no.txt"),
    "empty text": (["--checkpoint", "CKPT", "--text", "EMPTY"], "holds no text"),
    "binary text": (["--checkpoint", "CKPT", "--text", "IDS"], "binary"),
    "wrongly encoded text": (["--checkpoint", "CKPT", "--text", "LATIN"], "not UTF-8"),
    "logits in no folder": (
        ["--checkpoint", "CKPT", "--tokens", "IDS", "--logits", "no/such.npy"],
        "cannot be written",
    ),
    "logits is a folder": (["--checkpoint", "CKPT", "--tokens", "IDS", "--logits", "."], "is a folder"),
    "json is a folder": (["--checkpoint", "CKPT", "--tokens", "IDS", "--json", "."], "is a folder"),
    "one file for two": (["--checkpoint", "CKPT", "--tokens", "IDS", "--json", "OUT", "--logits", "OUT"], "same file"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_wrong_input_is_one_line(tmp_path, monkeypatch, checkpoint, bare_checkpoint, case):
    monkeypatch.chdir(tmp_path)
    names = {
        "CKPT": str(checkpoint),
        "BARE": str(bare_checkpoint),
        "OUT": "out.npy",
        "IDS": save("ids.npy", [[2, 5, 6]]),
        "FLOATS": save("floats.npy", [[2.0, 5.0]]),
        "LARGE": save("large.npy", [[2, 320]]),
        "HOLES": save("holes.npy", [[1, 0, 1]]),
        "TEXT": "text.txt",
        "EMPTY": "empty.txt",
        "LATIN": "latin.txt",
    }
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    before = set(tmp_path.iterdir())
    arguments, said = BAD_INPUT[case]
    with pytest.raises(UserError) as raised:
        main([names.get(argument, argument) for argument in arguments])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert set(tmp_path.iterdir()) == before, "no file is left behind"


def test_the_command_ends_with_code_2_and_one_line_and_no_traceback(run_module):
    code, output, errors = run_module("zoo.score", "--checkpoint", "no/such", "--text", "README.md")
    assert code == 2
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: no/such")
