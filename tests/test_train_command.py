"""`python -m zoo.train`, from the first step to the report, stopped and resumed in every way."""

import json
import signal

import jax
import numpy as np
import pytest

from tests import tiny_run
from tests.tiny_run import arguments, assert_same_run, losses, run_command, saved_params
from zoo.parallel import make_mesh
from zoo.recipes import DEFAULT, recipe, recipe_to_dict
from zoo.train import main
from zoo.training.run_directory import read_run, saved_steps


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """An uninterrupted run on the eight devices of this process, some of its steps profiled, and what it printed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        main(arguments(corpus, run, sample_tokens=5, profile=2))
    return run, "\n".join(lines)


def test_a_run_leaves_everything_that_is_needed_to_go_on_from_it(whole):
    run, _ = whole
    assert [numbers[0] for numbers in losses(run)] == [1, 2, 3, 4, 5, 6]
    assert saved_steps(run / "checkpoints") == (2, 4, 6)
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "goodput.png").read_bytes().startswith(b"\x89PNG")
    info = read_run(run)
    assert info.recipe == "gemma2-nano" and info.model_dict["embed_dim"] == 16
    assert (info.tokenizer_dir / "tokenizer.model").is_file() and len(info.tokenizer_fingerprint) == 64


def test_the_report_has_the_loss_beside_the_baselines_a_sample_and_what_to_do_next(whole):
    _, output = whole
    for words in ("60 documents", "this model", "token frequencies", "byte frequencies", "bits per byte", "a sample:"):
        assert words in output
    for command in ("zoo.generate", "zoo.score", "zoo.export", "zoo.train"):
        assert f"python -m {command}" in output


def test_validation_is_of_the_last_parameters_and_in_the_metrics(whole):
    run, output = whole
    assert losses(run)[-1][5] is not None and f"{losses(run)[-1][5]:.4f}" in output


def test_print_config_prints_the_recipe_as_json_and_trains_nothing(tmp_path, capsys):
    main(["--print-config", "--run-dir", str(tmp_path / "run"), "--optimizer.learning-rate", "0.125"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["optimizer"]["learning_rate"] == 0.125
    assert shown.keys() == recipe_to_dict(recipe(DEFAULT)).keys()
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_stopped_cleanly_continues_bit_for_bit(whole, corpus, tmp_path, capsys):
    main(arguments(corpus, tmp_path / "run", stop_at_step=3))
    assert "stopped after step 3 of 6" in capsys.readouterr().out
    main(arguments(corpus, tmp_path / "run"))
    assert "resuming after step 3" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", whole[0])


def test_a_damaged_checkpoint_is_named_and_the_run_continues_bit_for_bit_from_the_one_before(
    whole, corpus, tmp_path, capsys
):
    run = tmp_path / "run"
    main(arguments(corpus, run, stop_at_step=4))
    params = max(
        (run / "checkpoints" / "4" / "params").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0
    )
    params.write_bytes(params.read_bytes()[:-20])
    capsys.readouterr()
    main(arguments(corpus, run))
    shown = capsys.readouterr()
    [warning] = [line for line in shown.err.splitlines() if "damaged" in line]
    assert warning.startswith("warning: ") and "checkpoints/4" in warning
    assert "resuming after step 2" in shown.out
    assert_same_run(run, whole[0])


def test_a_finished_run_reports_again_and_changes_nothing(whole, corpus, capsys):
    before = losses(whole[0])
    main(arguments(corpus, whole[0]))
    assert "this model" in capsys.readouterr().out
    assert losses(whole[0]) == before


def test_a_finished_run_can_be_made_longer_and_says_what_that_changes(corpus, tmp_path, capsys):
    main(arguments(corpus, tmp_path / "run", steps=2))
    main(arguments(corpus, tmp_path / "run", steps=4))
    assert "steps: 2 -> 4; the learning-rate schedule now ends at step 4" in capsys.readouterr().out
    assert [numbers[0] for numbers in losses(tmp_path / "run")] == [1, 2, 3, 4]


def test_another_number_of_devices_continues_the_same_curve(whole, corpus, tmp_path):
    run = tmp_path / "run"
    main(arguments(corpus, run, stop_at_step=3))
    code, output, errors = run_command(arguments(corpus, run, **{"mesh.data": 2, "mesh.fsdp": 1}), devices=2)
    assert code == 0, errors
    assert "2 x cpu (data=2)" in output
    found, expected = (np.array([numbers[1] for numbers in losses(path)]) for path in (run, whole[0]))
    np.testing.assert_array_equal(found[:3], expected[:3])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_accumulation_gives_the_same_curve(whole, corpus, tmp_path, monkeypatch):
    options = {"mesh.data": 1, "mesh.fsdp": 1, "mesh.tensor": 1, "optimizer.accumulation_steps": 4}
    monkeypatch.setattr("zoo.train.make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    main(arguments(corpus, tmp_path / "run", **options))
    found, expected = (np.array([numbers[1] for numbers in losses(path)]) for path in (tmp_path / "run", whole[0]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_another_run_can_begin_with_the_weights_of_this_one(whole, corpus, tmp_path):
    main(arguments(corpus, tmp_path / "run", init_from=whole[0], steps=1, **{"optimizer.learning_rate": 0.0}))
    assert read_run(tmp_path / "run").tokenizer_fingerprint == read_run(whole[0]).tokenizer_fingerprint
    for name, value in saved_params(tmp_path / "run").items():
        np.testing.assert_array_equal(value, saved_params(whole[0])[name])


def test_the_architecture_can_be_taken_from_the_checkpoint(whole, corpus, tmp_path):
    sizes = {name[2:].replace("-", "_"): None for name in tiny_run.SIZES if name.startswith("--model.")}
    main([*arguments(corpus, tmp_path / "run", init_from=whole[0], steps=1, **sizes), "--model-from-init"])
    assert read_run(tmp_path / "run").model_dict == read_run(whole[0]).model_dict


def test_frozen_parameters_stay_as_they_are(whole, corpus, tmp_path):
    main(arguments(corpus, tmp_path / "run", init_from=whole[0], steps=2, freeze="embedder"))
    before, after = saved_params(whole[0]), saved_params(tmp_path / "run")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if "embedder" not in name}


def test_conversations_are_trained_on(corpus, tmp_path):
    chats = tmp_path / "chats.jsonl"
    turns = [
        {"role": "user", "content": "return the token"},
        {"role": "assistant", "content": "the token of the batch"},
    ]
    chats.write_text("".join(json.dumps({"messages": turns + turns[: 2 * (i % 2)]}) + "\n" for i in range(40)))
    options = {"data.format": "chat", "data.packing": "first_fit", "data.sequence_length": 64, "data.vocab_size": 290}
    main(arguments(chats, tmp_path / "run", steps=2, **options))
    assert len(losses(tmp_path / "run")) == 2


def test_profile_writes_a_trace(whole):
    assert list((whole[0] / "profile").rglob("*.xplane.pb"))


@pytest.fixture(scope="module")
def single(corpus, tmp_path_factory):
    """An uninterrupted run in a process with one device: its folder, the options, the environment."""
    folder = tmp_path_factory.mktemp("single")
    options = {"steps": 40, "evaluate_every": 10, "checkpoint_every": 4}
    environment = tiny_run.own_cache(folder)
    code, _, errors = run_command(arguments(corpus, folder / "run", **options), **environment)
    assert code == 0, errors
    return folder / "run", options, environment


def test_sigterm_saves_first_exits_with_75_and_then_a_kill_at_any_moment_too_leaves_no_trace(single, corpus, tmp_path):
    whole, options, environment = single
    run = tmp_path / "run"
    process = tiny_run.start(arguments(corpus, run, **options | {"checkpoint_every": 100}), **environment)
    next(line for line in process.stdout if line.startswith("step  2/"))
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    assert "the same command resumes" in output and "goodput" in output
    [saved] = saved_steps(run / "checkpoints")
    assert 2 <= saved < 40
    counts = tiny_run.kill_until_done(arguments(corpus, run, **options), run, 1, **environment)
    assert counts["kills"] == 1 and counts["while starting"] == 0, counts
    # A start that is killed in its first ten seconds is in no account.
    starts = json.loads((run / "goodput.json").read_text())["starts"]
    assert [starts[0]["last_step"], starts[-1]["last_step"]] == [saved, 40] and starts[-1]["first_step"] >= saved
    assert_same_run(run, whole)


@pytest.mark.slow
def test_thirty_kills_at_any_moment_leave_no_trace(corpus, tmp_path):
    options, environment = {"steps": 360, "evaluate_every": 25}, tiny_run.own_cache(tmp_path)
    code, _, errors = run_command(arguments(corpus, tmp_path / "whole", **options), **environment)
    assert code == 0, errors
    command = arguments(corpus, tmp_path / "run", **options)
    counts = tiny_run.kill_until_done(command, tmp_path / "run", 30, seed=30, **environment)
    assert counts["kills"] == 30 and counts["while saving"] >= 5, counts
    assert_same_run(tmp_path / "run", tmp_path / "whole")
