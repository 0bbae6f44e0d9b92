import sys

import numpy as np
import pytest
from flax import nnx

from zoo import data
from zoo.data import train_tokenizer
from zoo.errors import UserError
from zoo.generate import main
from zoo.inference import Sampling, generate, left_pad
from zoo.interop import load, save_huggingface
from zoo.models import Gemma2Config, build

TEXT = ["the quick brown fox jumps over the lazy dog, and the naïve café serves 汉字 😀"] * 50


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A small model with random weights and a tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("generate") / "model"
    tokenizer = train_tokenizer(TEXT, 320)
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
        max_position_embeddings=128,
    )
    save_huggingface(build(config, rngs=nnx.Rngs(0)), folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="session")
def loaded(checkpoint):
    return load(checkpoint)


@pytest.fixture(scope="session")
def bare_checkpoint(tmp_path_factory, loaded):
    """The same model without a tokenizer."""
    folder = tmp_path_factory.mktemp("generate") / "bare"
    save_huggingface(loaded.model, folder)
    return folder


def save(path, array):
    np.save(path, np.asarray(array))
    return str(path)


def test_arrays_are_continued_by_exactly_n_tokens(tmp_path, checkpoint, loaded):
    tokens, mask = left_pad([[2, 50, 60, 70], [2, 80]])
    new = generate(loaded.model, tokens, mask, max_new_tokens=12)
    main(
        ["--checkpoint", str(checkpoint), "--tokens", save(tmp_path / "ids.npy", tokens)]
        + ["--mask", save(tmp_path / "mask.npy", mask), "--out", str(tmp_path / "new.npy"), "--max-new-tokens", "12"]
    )
    written = np.load(tmp_path / "new.npy", allow_pickle=False)
    assert written.dtype == np.int32
    assert written.tolist() == new.tolist()


def test_devices_of_a_mesh_share_a_prompt(tmp_path, checkpoint, loaded):
    """Eight of them, and a prompt of 19 tokens."""
    tokens = np.random.default_rng(0).integers(3, 300, (1, 19))
    arguments = ["--checkpoint", str(checkpoint), "--tokens", save(tmp_path / "ids.npy", tokens)]
    arguments += ["--out", str(tmp_path / "new.npy"), "--max-new-tokens", "12", "--temperature", "1"]
    main([*arguments, "--mesh", "context=8"])
    shared = np.load(tmp_path / "new.npy")
    assert shared.tolist() == generate(loaded.model, tokens, max_new_tokens=12, sampling=Sampling(1.0)).tolist()
    assert len(np.unique(shared)) > 6
    for mesh, message in (("contxt=8", "did you mean 'context'"), ("context=4", "takes 4 devices, there are 8")):
        with pytest.raises(UserError, match=message):
            main([*arguments, "--mesh", mesh])


def test_arrays_stop_only_at_the_tokens_that_are_asked_for(tmp_path, checkpoint, loaded):
    tokens = np.array([[2, 50, 60, 70]])
    free = generate(loaded.model, tokens, max_new_tokens=8)[0].tolist()
    arguments = ["--checkpoint", str(checkpoint), "--tokens", save(tmp_path / "ids.npy", tokens)]
    arguments += ["--out", str(tmp_path / "new.npy"), "--max-new-tokens", "8", "--stop-tokens", str(free[0]), "5"]
    main(arguments)
    assert np.load(tmp_path / "new.npy").tolist() == [[free[0]] + [0] * 7]


def test_text_goes_to_standard_output_and_the_rest_to_standard_error(checkpoint, loaded, capsys):
    main(["--checkpoint", str(checkpoint), "--prompt", "the quick", "--max-new-tokens", "9"])
    captured = capsys.readouterr()
    tokens = np.asarray([loaded.tokenizer.encode("the quick", bos=True)])
    new = generate(loaded.model, tokens, max_new_tokens=9, stop_tokens=loaded.config.eos_token_ids)[0].tolist()
    assert captured.out == loaded.tokenizer.decode(new) + "\n"
    assert "9 new tokens" in captured.err
    assert "tokens/s" in captured.err


def test_a_seed_gives_the_same_text_again(checkpoint, capsys):
    texts = []
    for seed in ("5", "5", "6"):
        arguments = ["--checkpoint", str(checkpoint), "--prompt", "the", "--max-new-tokens", "9", "--seed", seed]
        main([*arguments, "--temperature", "1.2", "--top-k", "50", "--top-p", "0.9"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_several_prompts_are_a_batch_of_unequal_lengths(tmp_path, checkpoint, loaded, capsys):
    prompts = ["the quick brown fox", "dog"]
    main(
        [
            "--checkpoint",
            str(checkpoint),
            "--prompt",
            *prompts,
            "--max-new-tokens",
            "6",
            "--out",
            str(tmp_path / "n.npy"),
        ]
    )
    out = capsys.readouterr().out
    tokens, mask = left_pad([loaded.tokenizer.encode(prompt, bos=True) for prompt in prompts])
    new = generate(loaded.model, tokens, mask, max_new_tokens=6, stop_tokens=loaded.config.eos_token_ids)
    assert np.load(tmp_path / "n.npy").tolist() == new.tolist()
    for prompt, row in zip(prompts, new.tolist(), strict=True):
        assert f"[{prompt}]\n{loaded.tokenizer.decode(row)}" in out


def test_a_chat_prompt_is_put_into_the_turn_template(checkpoint, loaded, capsys):
    main(["--checkpoint", str(checkpoint), "--chat", "--prompt", "the fox", "--max-new-tokens", "5"])
    start, end = (loaded.tokenizer.id_of(name) for name in ("<start_of_turn>", "<end_of_turn>"))
    encode = loaded.tokenizer.encode
    ids = [2, start, *encode("user\n"), *encode("the fox"), end, *encode("\n"), start, *encode("model\n")]
    new = generate(loaded.model, np.asarray([ids]), max_new_tokens=5, stop_tokens=(1, end))[0].tolist()
    kept = new[: next((i for i, token in enumerate(new) if token in (1, end)), 5)]
    assert capsys.readouterr().out == loaded.tokenizer.decode(kept) + "\n"


def test_turns_typed_at_the_terminal_are_answered_with_the_whole_conversation(checkpoint, monkeypatch, capsys):
    typed, conversations = iter(["the fox", "the dog", ""]), []
    original = data.render_chat

    def recorded(messages, tokenizer):
        conversations.append([message["role"] for message in messages])
        return original(messages, tokenizer)

    monkeypatch.setattr(data, "render_chat", recorded)
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    main(["--checkpoint", str(checkpoint), "--chat", "--max-new-tokens", "4", "--temperature", "1"])
    assert conversations == [["user"], ["user", "model", "user"]]
    assert capsys.readouterr().err.count("new tokens") == 2


BAD_INPUT = {
    "no checkpoint": (["--prompt", "a"], "--checkpoint"),
    "missing checkpoint": (["--checkpoint", "no/such", "--prompt", "a"], "no/such"),
    "nothing to do": (["--checkpoint", "CKPT"], "--prompt TEXT"),
    "unknown option": (["--checkpoint", "CKPT", "--promt", "a"], "--promt"),
    "not a number": (["--checkpoint", "CKPT", "--prompt", "a", "--seed", "x"], "--seed"),
    "repeated option": (["--checkpoint", "CKPT", "--prompt", "a", "--prompt", "b"], "2 times"),
    "both inputs": (["--checkpoint", "CKPT", "--prompt", "a", "--tokens", "IDS", "--out", "OUT"], "cannot be combined"),
    "no out": (["--checkpoint", "CKPT", "--tokens", "IDS"], "--out"),
    "records and a prompt": (["--checkpoint", "CKPT", "--interleaved", "R", "--prompt", "a"], "cannot be combined"),
    "images of a prompt": (["--checkpoint", "CKPT", "--prompt", "a", "--images-out", "OUT"], "belong to --interleaved"),
    "full folder": (
        ["--checkpoint", "CKPT", "--interleaved", "R", "--images-out", "CKPT"],
        "exists already",
    ),
    "records for a model of text": (["--checkpoint", "CKPT", "--interleaved", "R"], "--interleaved needs a run"),
    "mask of a prompt": (["--checkpoint", "CKPT", "--prompt", "a", "--mask", "IDS"], "--mask"),
    "zero new tokens": (["--checkpoint", "CKPT", "--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens"),
    "negative new tokens": (["--checkpoint", "CKPT", "--prompt", "a", "--max-new-tokens", "-5"], "--max-new-tokens"),
    "absurd new tokens": (
        ["--checkpoint", "CKPT", "--prompt", "a", "--max-new-tokens", "1000000000"],
        "context of 128",
    ),
    "prompt beyond the context": (["--checkpoint", "CKPT", "--prompt", "a " * 200], "fills the model's context"),
    "negative temperature": (["--checkpoint", "CKPT", "--prompt", "a", "--temperature", "-1"], "temperature"),
    "top-p above 1": (["--checkpoint", "CKPT", "--prompt", "a", "--top-p", "2"], "top-p"),
    "top-k 0": (["--checkpoint", "CKPT", "--prompt", "a", "--top-k", "0"], "top-k"),
    "negative seed": (["--checkpoint", "CKPT", "--prompt", "a", "--seed", "-1"], "seed"),
    "unknown stop token": (["--checkpoint", "CKPT", "--prompt", "a", "--stop-tokens", "320"], "--stop-tokens: 320"),
    "no tokenizer": (["--checkpoint", "BARE", "--prompt", "a"], "no tokenizer"),
    "float ids": (["--checkpoint", "CKPT", "--tokens", "FLOATS", "--out", "OUT"], "dtype float64"),
    "flat ids": (["--checkpoint", "CKPT", "--tokens", "FLAT", "--out", "OUT"], "shape"),
    "ids beyond the vocabulary": (["--checkpoint", "CKPT", "--tokens", "LARGE", "--out", "OUT"], "id 320 at [0, 1]"),
    "mask of another shape": (["--checkpoint", "CKPT", "--tokens", "IDS", "--mask", "LARGE", "--out", "OUT"], "shape"),
    "right-padded mask": (
        ["--checkpoint", "CKPT", "--tokens", "IDS", "--mask", "RIGHT", "--out", "OUT"],
        "on the left",
    ),
    "no such ids": (["--checkpoint", "CKPT", "--tokens", "no.npy", "--out", "OUT"], "no.npy"),
    "ids are text": (["--checkpoint", "CKPT", "--tokens", "TEXT", "--out", "OUT"], "not a .npy file"),
    "out is a folder": (["--checkpoint", "CKPT", "--tokens", "IDS", "--out", "CKPT"], "is a folder"),
    "out in no folder": (["--checkpoint", "CKPT", "--tokens", "IDS", "--out", "no/such/new.npy"], "cannot be written"),
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
        "FLAT": save("flat.npy", [2, 5]),
        "LARGE": save("large.npy", [[2, 320]]),
        "RIGHT": save("right.npy", [[1, 1, 0]]),
        "TEXT": "text.npy",
    }
    (tmp_path / "text.npy").write_text("hello")
    before = set(tmp_path.iterdir())
    arguments, said = BAD_INPUT[case]
    with pytest.raises(UserError) as raised:
        main([names.get(argument, argument) for argument in arguments])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert set(tmp_path.iterdir()) == before, "no file is left behind"


def test_the_command_ends_with_code_2_and_one_line_and_no_traceback(run_module):
    code, output, errors = run_module("zoo.generate", "--checkpoint", "no/such", "--prompt", "a")
    assert code == 2
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: no/such")


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for name in ["--checkpoint", "--prompt", "--tokens", "--mask", "--out", "--max-new-tokens", "--temperature"]:
        assert name in out
    for name in ["--top-k", "--top-p", "--seed", "--chat", "--stop-tokens", "--interleaved", "--images-out"]:
        assert name in out
